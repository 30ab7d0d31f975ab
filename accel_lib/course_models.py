"""The models that the course serves: built, validated and put into a model repository, or reused from there.

`ensure` builds what a notebook serves, `build` and `wait_until_built` what a deployment serves, `repository_to_serve`
finds what ``accel serve`` serves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accel_lib.artifact import MANIFEST_FILE, Artifact, Format, Manifest
from accel_lib.atomic import locked
from accel_lib.convert.cache import incompatibility
from accel_lib.engines.onnxruntime import weight_bits
from accel_lib.engines.select import choices
from accel_lib.errors import AccelError, ArtifactError, OutputError, ServerError, ValidationError, require
from accel_lib.formatting import listed
from accel_lib.machine import cache_dir, inspect_machine, project_root
from accel_lib.progress import Progress
from accel_lib.triton.repository import (
    ARTIFACT_FOLDER,
    default_config,
    foreign_version,
    model_names,
    read_config,
    unbuilt,
    versions,
    write_model,
)

if TYPE_CHECKING:
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

    _AnyModel = Model | GenerationModel

_REPOSITORY = "model_repository"
_ENGINE_VERSION = 3  # of the TensorRT engine that a deployment may ask for


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How a version is converted, and the recipe to use if that is refused."""

    name: str
    format: Format
    precision: str = "fp32"
    packed: bool = False
    instead: _Recipe | None = None


_Recipes = dict[int, _Recipe]
_ONNX_FP32 = _Recipe(name="onnx fp32", format="onnx")
_PACKED_FP32 = _Recipe(name="onnx fp32 without padding", format="onnx", packed=True)
_PACKED_INT8 = _Recipe(
    name="onnx int8 without padding", format="onnx", precision="int8", packed=True, instead=_PACKED_FP32
)
_OPENVINO_INT8 = _Recipe(
    name="openvino int8 without padding", format="openvino", precision="int8", packed=True, instead=_PACKED_INT8
)
_INT8 = _Recipe(name="onnx int8", format="onnx", precision="int8", instead=_ONNX_FP32)
_TORCH = _Recipe(name="torch fp32", format="torch")
_HALF = _Recipe(name="torch fp16", format="torch", precision="fp16")
_PACKED_HALF = _Recipe(name="torch fp16 without padding", format="torch", precision="fp16", packed=True, instead=_HALF)
_ON_CPU: _Recipes = {1: _ONNX_FP32, 2: _PACKED_INT8}
_GENERATION: _Recipes = {
    1: _Recipe(
        name="OpenVINO int8",
        format="openvino",
        precision="int8",
        instead=_Recipe(name="transformers fp32", format="transformers"),
    )
}
_GENERATION_ON_GPU: _Recipes = {1: _Recipe(name="transformers", format="transformers")}
# Late interaction goes through each text of a pair by itself, which no packed graph and no profile of lengths knows.
_RERANK: dict[bool, _Recipes] = {False: {1: _ONNX_FP32, 2: _INT8}, True: {1: _TORCH, 2: _HALF}}  # with a GPU


def ensure(name: str = "embedding") -> Path:
    """Build both versions of a model into the model repository, or reuse them.

    Version 1 is FP32, version 2 the optimized one; both are validated. On a CPU the first is ONNX, the second without
    padding, in the fastest INT8 of the quality class "small" (`accel_lib.stats.QUALITY_CLASSES`): OpenVINO's where the
    CPU has VNNI and it is in the class, else ONNX Runtime's; in FP32 where neither is. `accel_lib.choose` measures
    which is fastest on a machine. Where PyTorch has a GPU they are PyTorch
    programs, the second in FP16, or a TensorRT engine where one is installed that suits the GPU; an engine that was
    built for another GPU, driver or TensorRT is built again.

    Parameters
    ----------
    name
        ``"embedding"`` (the default model), ``"sentiment"`` (a classifier trained on its frozen vectors), ``"rerank"``
        (ranks passages for a question by how its tokens match theirs; ``models.reranker``) or ``"generation"``
        (SmolLM2-135M-Instruct, a chat model: one version, INT8 weights in OpenVINO; in an environment without OpenVINO
        the original weights, opened by transformers).

    Returns
    -------
    Path
        The repository, for ``accel.serve``: ``$ACCEL_REPOSITORY``, else the nearest ``model_repository`` folder upward
        from here that has the model, else the course's own.

    Raises
    ------
    AccelError
        There is no such model or repository, or the version to build holds a model of your own, which stays.

    Examples
    --------
    >>> server = accel.serve(accel.ensure("embedding"))  # doctest: +SKIP
    """
    if name not in _BUILDERS:
        names = ", ".join(_BUILDERS)
        raise AccelError(
            "The course has no such model.", seen=repr(name), fix=f"accel.ensure(...) with one of: {names}"
        )
    recipes = _recipes(name)
    repository = _build_missing(name, recipes)
    numbers = f"version{'s' if len(recipes) > 1 else ''} {' and '.join(map(str, recipes))}"
    print(f"{name}: {numbers} {'are' if len(recipes) > 1 else 'is'} in {repository.name}, validated")
    return repository


def scratch_repository(*names: str) -> Path:
    """A repository in the cache with the course's FP32 embedding model under these names, for experiments with it.

    The same names give the same folder.
    """
    recipes = _recipes("embedding")
    own = _build_missing("embedding", {1: recipes[1]})
    repository = cache_dir("scratch", "-".join(names))
    for name in names:
        write_model(repository, name, Artifact.load(own / "embedding" / "1" / ARTIFACT_FOLDER))
    print(f"{listed(list(names))}: {recipes[1].name}, validated")
    return repository


def build(names: Sequence[str], *, target: str | None = None) -> Path:
    """Build models into the repository for a deployment, or reuse what is there, and return the repository.

    Parameters
    ----------
    names
        Models of the course, such as ``"embedding"``.
    target
        A GPU, or ``"auto"`` for the one here: each model also gets a TensorRT engine, as version 3.

    Raises
    ------
    AccelError
        A model is unknown, or does not convert, build or validate; nothing slower is built instead of an engine.
    """
    repository = Path()
    for name in dict.fromkeys(names):
        repository = ensure(name)
        if target and not _validated(repository / name, _ENGINE_VERSION):
            check_built_here(repository / name, [_ENGINE_VERSION])
            _build_engine(repository, name, target)
    return repository


def wait_until_built(names: Sequence[str], *, engine: bool = False, timeout_s: float, poll_s: float = 1.0) -> None:
    """Return once another process has built these models of ``$ACCEL_REPOSITORY``, whole and validated.

    With `engine` their TensorRT engines are waited for too; after `timeout_s` a `ServerError` names what is missing.
    """
    repository = Path(os.environ.get("ACCEL_REPOSITORY", _REPOSITORY))
    progress, until = Progress("waiting for the build"), time.monotonic() + timeout_s
    while missing := [what for name in names for what in _missing(repository / name, engine)]:
        if time.monotonic() > until:
            raise ServerError(
                "The models were not built in time.",
                seen=f"missing: {', '.join(missing)}",
                fix="read the log of the build; give it longer, or run it here: accel build " + " ".join(names),
            )
        progress.tick(f"{len(missing)} versions missing")
        time.sleep(poll_s)
    progress.done(f"{', '.join(names)} built and validated")


def repository_to_serve(names: Sequence[str] = ()) -> Path:
    """The repository of ``accel serve``: nothing is added to your own; in the course's own ``embedding`` is built.

    It is ``$ACCEL_REPOSITORY``, else the nearest ``model_repository`` folder with a model upward from here, else the
    course's own.

    Parameters
    ----------
    names
        Models to serve; none means all.

    Raises
    ------
    AccelError
        There is no such repository, or no model in it is built.
    """
    given = _given_repository()
    repository = given or next(filter(model_names, _repositories_above()), None) or _course_repository()
    if given is None and repository == _course_repository() and (not names or "embedding" in names):
        return ensure("embedding")
    if not any(not unbuilt(repository / name) for name in model_names(repository)):
        raise AccelError(
            f"{repository.name} holds no model that is built.",
            seen=", ".join(model_names(repository)) or "no model",
            fix='accel build embedding, or server.add("mine", artifact) in Python',
        )
    return repository


def check_built_here(model: Path, numbers: Iterable[int], *, kept: Iterable[int] = ()) -> None:
    """Refuse, by `AccelError`, to build versions of a model that `ensure` did not build.

    Parameters
    ----------
    model
        The model's folder.
    numbers, kept
        Versions to build, and versions that exist and stay.
    """
    folders = {int(each.name): each for each in model.glob("[0-9]*") if each.is_dir() and each.name.isdecimal()}
    built = {number for number, folder in folders.items() if _recipe_of(folder)} | set(kept)
    rest = folders.keys() - built
    own = {n for n in rest if foreign_version(folders[n]) or (folders[n] / ARTIFACT_FOLDER).is_dir()}
    if own & set(numbers) or (own and not built):
        as_it_is = f"ACCEL_REPOSITORY={model.parent.name} accel serve"
        raise AccelError(
            f"{model.name} in {model.parent.name} was not built by accel.ensure, so nothing of it is replaced.",
            seen=f"version {', '.join(map(str, sorted(own)))}",
            fix=f"serve it as it is: {as_it_is}; or build elsewhere: export ACCEL_REPOSITORY=$(mktemp -d)",
        )


def _recipe_of(version: Path) -> str:
    """The recipe in a version's manifest, also if its files are damaged; empty if `ensure` did not build it."""
    try:
        return Manifest.from_json((version / ARTIFACT_FOLDER / MANIFEST_FILE).read_text(encoding="utf-8")).recipe
    except (OSError, ValueError, ArtifactError):
        return ""


def _given_repository() -> Path | None:
    given = os.environ.get("ACCEL_REPOSITORY")
    if given and not Path(given).is_dir():
        raise AccelError(
            "There is no such model repository.",
            seen=f"ACCEL_REPOSITORY={given}",
            fix=f"name the right one: export ACCEL_REPOSITORY=…; or make it: mkdir {given}",
        )
    return Path(given) if given else None


def _repositories_above() -> Iterator[Path]:
    """Where ``model_repository`` folders might be, upward from here."""
    here = Path.cwd().resolve()
    return (folder / _REPOSITORY for folder in (here, *here.parents))


def _course_repository() -> Path:
    return project_root() / _REPOSITORY


def _build_missing(name: str, recipes: _Recipes) -> Path:
    """Build what the repository lacks, and return the repository."""
    above = (folder for folder in _repositories_above() if (folder / name).is_dir())
    repository = _given_repository() or next(above, None) or _course_repository()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(locked(repository))
        missing = [version for version, recipe in recipes.items() if not _usable(repository / name, version, recipe)]
        if missing:
            check_built_here(repository / name, missing, kept=recipes.keys() - missing)
            model, texts = _BUILDERS[name]()
        for version in missing:
            put = functools.partial(_put, repository, name, version, recipes[version].name)
            _build_or_fall_back(model, recipes[version], texts, put)
    return repository


def _put(repository: Path, name: str, version: int, recipe: str, artifact: Artifact) -> Path:
    """Write a version; on a GPU the configuration as the course ships it, a CPU's, becomes a GPU's."""
    there = dataclasses.replace(read_config(repository / name), kept=b"") if name in model_names(repository) else None
    shipped = there == default_config(name, artifact, gpu=False)
    config = default_config(name, artifact) if shipped else None
    return write_model(repository, name, artifact, version=version, config=config, recipe=recipe)


def _recipes(name: str) -> _Recipes:
    gpu = _torch_has_a_gpu()
    if name == "generation":
        return _GENERATION_ON_GPU if gpu else _GENERATION
    if name == "rerank":
        return _RERANK[gpu]
    if not gpu:
        best = next(choice for choice in choices() if choice.engine in ("openvino", "onnxruntime"))
        return _ON_CPU | ({2: _OPENVINO_INT8} if (best.engine, best.precision) == ("openvino", "int8") else {})
    from accel_lib.engines.cuda_graphs import supported

    half = _PACKED_HALF if supported("cuda:0") else _HALF
    engine = _Recipe(name="TensorRT engine", format="tensorrt", precision="fp16", instead=half)
    return {1: _TORCH, 2: engine if choices()[0].engine.startswith("tensorrt") else half}


def _torch_has_a_gpu() -> bool:
    return bool(inspect_machine().gpus) and bool(require("torch", extra="models").cuda.is_available())


def _usable(model: Path, version: int, recipe: _Recipe) -> bool:
    from accel_lib.models.hub import DEFAULT, SMOLLM2, resolve

    try:
        artifact = Artifact.load(model / str(version) / ARTIFACT_FOLDER)
    except ArtifactError:
        return False
    held = artifact.manifest
    if recipe.format == "tensorrt" and held.format == "tensorrt" and (reason := incompatibility(held)):
        print(f"the engine in {model.name} is built again: {reason}", flush=True)
        return False
    as_made = (held.format, held.precision, held.packed) == (recipe.format, recipe.precision, recipe.packed)
    rounded = (held.format, held.precision) == ("onnx", "int8")
    for_this_cpu = held.weight_bits == (weight_bits() if rounded else 0)
    fits = (held.recipe == recipe.name or as_made) and for_this_cpu
    origin = resolve(SMOLLM2 if held.task == "generation" else DEFAULT).source
    return artifact.validated and fits and held.source.startswith(origin)


def _embedding() -> tuple[Model, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.texts import load_texts

    with _step("loading the model"):
        return load_model(), load_texts("mixed", limit=64)


def _sentiment() -> tuple[Model, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.models.classifier import train_classifier
    from accel_lib.texts import load_texts

    texts = load_texts("sentiment-train")
    with _step(f"training a sentiment head on {len(texts)} texts"):
        return train_classifier(load_model(), texts), load_texts("sentiment-test", limit=64)


def _generation() -> tuple[GenerationModel, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.models.hub import SMOLLM2
    from accel_lib.texts import load_texts

    with _step("loading the language model"):
        model = load_model(SMOLLM2, task="generation")
        return model, load_texts("mixed", limit=16)


def _rerank() -> tuple[Model, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.models.reranker import train_reranker
    from accel_lib.texts import load_texts
    from accel_lib.texts.questions import load_questions

    questions = load_questions("train")
    with _step(f"training a reranker on {len(questions)} questions"):
        return train_reranker(load_model(), questions), load_texts("mixed", limit=64)


_BUILDERS: dict[str, Callable[[], tuple[_AnyModel, Sequence[str]]]] = {
    "embedding": _embedding,
    "sentiment": _sentiment,
    "rerank": _rerank,
    "generation": _generation,
}


def _build_or_fall_back(
    model: _AnyModel, recipe: _Recipe, texts: Sequence[str], put: Callable[[Artifact], Path]
) -> Path:
    """Build a recipe, or the one instead of it if it is refused, which is printed and noted in the manifest."""
    try:
        return _build(model, recipe, texts, put)
    except OutputError:
        raise
    except AccelError as refusal:
        if recipe.instead is None:
            raise
        print(f"no {recipe.name}: {refusal.cause} {refusal.seen or ''}".rstrip(), flush=True)
        version = _build_or_fall_back(model, recipe.instead, texts, put)
        Artifact.load(version / ARTIFACT_FOLDER).with_note(f"instead of {recipe.name}: {refusal.cause}")
        return version


def _to_tensorrt(model: Model, *, precision: str) -> Artifact:
    """An engine for this GPU and texts of the corpus's lengths."""
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.texts import load_texts

    onnx = to_onnx(model, precision=precision, progress=False)
    return to_tensorrt(onnx, lengths=model.lengths(load_texts("mixed")), max_batch_size=64, progress=False)


def _build_generation(model: GenerationModel, recipe: _Recipe, texts: Sequence[str]) -> Artifact:
    from accel_lib.convert.generation import generation_to_openvino
    from accel_lib.convert.generation_files import generation_to_transformers
    from accel_lib.convert.validate_generation import validate_generation

    if recipe.format == "transformers":
        return generation_to_transformers(model, cache_dir("artifacts", "generation-transformers"))
    artifact = generation_to_openvino(model, precision=recipe.precision, progress=False)
    if not artifact.validated:
        validate_generation(artifact, reference=model, texts=texts)
    return artifact


def _convert(model: Model, recipe: _Recipe) -> Artifact:
    from accel_lib.convert.onnx import to_onnx, to_torch
    from accel_lib.convert.openvino import to_openvino

    if recipe.format == "tensorrt":
        return _to_tensorrt(model, precision=recipe.precision)
    if recipe.format == "openvino":
        return to_openvino(model, precision=recipe.precision, packed=recipe.packed, progress=False)
    if recipe.format == "torch":
        return to_torch(model, precision=recipe.precision, packed=recipe.packed, progress=False)
    keep: Literal["auto"] | tuple[()] = "auto" if recipe.precision == "int8" else ()
    return to_onnx(model, precision=recipe.precision, packed=recipe.packed, keep=keep, progress=False)


def _build(model: _AnyModel, recipe: _Recipe, texts: Sequence[str], put: Callable[[Artifact], Path]) -> Path:
    from accel_lib.convert.validate import validate

    with _step(f"converting to {recipe.name}, and validating"):
        if model.task == "generation":
            return put(_build_generation(model, recipe, texts))
        artifact = _convert(model, recipe)
        if not artifact.validated:
            artifact = validate(artifact, reference=model, texts=texts).artifact or artifact
        if (recipe.format, recipe.precision) == ("openvino", "int8"):  # ONNX's was searched for what it has to keep
            _check_class(artifact, model)
        return put(artifact)


def _check_class(artifact: Artifact, model: Model) -> None:
    """Refuse INT8 in no quality class; what it keeps is noted in the manifest."""
    from accel_lib.bench.quality import artifact_quality

    found = artifact_quality(artifact, model)
    if not found.reaches("small"):
        raise ValidationError(
            f"{artifact.name} is not in the quality class 'small'.",
            seen=str(found),
            fix="keep its most sensitive products in FP32: accel.to_openvino(..., keep=[...])",
        )
    artifact.with_note(f"quality: {found}")


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{what} … ", end="", flush=True)
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)


def _build_engine(repository: Path, name: str, target: str) -> None:
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.convert.validate import validate

    model, texts = _BUILDERS[name]()
    if model.task == "generation":
        fix = f"leave the target out: accel build {name}"
        raise AccelError("A language model has no TensorRT engine here.", seen=f"{name} for {target}", fix=fix)
    onnx = to_onnx(model, precision="fp16")
    plan = to_tensorrt(onnx, target=target, lengths=model.lengths(texts))
    validate(plan, reference=model, texts=texts)
    write_model(repository, name, plan, version=_ENGINE_VERSION, recipe="TensorRT engine")


def _missing(model: Path, engine: bool) -> list[str]:
    """Versions of a model that cannot be served yet, as ``name/version``."""
    if model.name not in model_names(model.parent):
        return [model.name]
    wanted = {*versions(model), *([_ENGINE_VERSION] if engine else [])}
    late = set(unbuilt(model)) | {version for version in wanted if not _validated(model, version)}
    return [f"{model.name}/{version}" for version in sorted(late)]


def _validated(model: Path, version: int) -> bool:
    try:
        return Artifact.load(model / str(version) / ARTIFACT_FOLDER).validated
    except ArtifactError:
        return False
