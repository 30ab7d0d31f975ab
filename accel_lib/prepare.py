"""Build what a notebook of the course serves, or reuse what is there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accel_lib.artifact import Artifact, Format
from accel_lib.atomic import locked
from accel_lib.choice import choices
from accel_lib.convert.cache import unfit
from accel_lib.engines.onnxruntime import weight_bits
from accel_lib.errors import AccelError, ArtifactError, OutputError, require
from accel_lib.find_repository import (
    check_built_here,
    course_repository,
    given_repository,
    repositories_above,
    repository_of,
)
from accel_lib.formatting import listed
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.triton.repository import ARTIFACT_FOLDER, model_names, unbuilt, write_model

if TYPE_CHECKING:
    from accel_lib.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How a version is made, and what is taken where that is refused."""

    name: str
    format: Format
    precision: str = "fp32"
    packed: bool = False
    instead: _Recipe | None = None


_Recipes = dict[int, _Recipe]
_PACKED_FP32 = _Recipe(name="onnx fp32 without padding", format="onnx", packed=True)
_PACKED_INT8 = _Recipe(
    name="onnx int8 without padding", format="onnx", precision="int8", packed=True, instead=_PACKED_FP32
)
_TORCH, _HALF = (_Recipe(name=f"torch {kind}", format="torch", precision=kind) for kind in ("fp32", "fp16"))
_PACKED_HALF = dataclasses.replace(_HALF, name="torch fp16 without padding", packed=True, instead=_HALF)
_ON_CPU: _Recipes = {1: _Recipe(name="onnx fp32", format="onnx"), 2: _PACKED_INT8}


def ensure(name: str = "embedding") -> Path:
    """Build both versions of a model into the model repository, or reuse them.

    Version 1 is FP32, version 2 the optimized one; both are validated. On a CPU they are ONNX, the second
    without padding, and in INT8 where that keeps 95% of the ten nearest neighbours; where PyTorch has a GPU they are
    PyTorch programs, the second in FP16 (without padding from compute capability 8.0 on), or a TensorRT engine where
    one is installed that suits the GPU; an engine that was built for another GPU, driver or TensorRT is built again.
    The repository is ``$ACCEL_REPOSITORY``, else the nearest ``model_repository`` folder upward from here that has the
    model, else the course's own. A version that was not built here, such as a model of your own under that name, is
    never replaced.

    Parameters
    ----------
    name
        ``"embedding"`` (the default model) or ``"sentiment"`` (a classifier trained on its frozen vectors).

    Returns
    -------
    Path
        The repository, for ``accel.serve``.

    Raises
    ------
    AccelError
        There is no such model or repository, or a model of your own has the name.

    Examples
    --------
    >>> server = accel.serve(accel.ensure("embedding"))  # doctest: +SKIP
    """
    if name not in _BUILDERS:
        names = ", ".join(_BUILDERS)
        raise AccelError(
            "The course has no such model.", seen=repr(name), fix=f"accel.ensure(...) with one of: {names}"
        )
    recipes = _recipes()
    repository = _build_missing(name, recipes)
    print(f"{name}: versions {' and '.join(map(str, recipes))} are in {repository.name}, validated")
    return repository


def workbench(*names: str) -> Path:
    """A model repository beside the course's own, with its FP32 embedding model under other names.

    For experiments that need a model twice, or that change what the course's notebooks share.

    Parameters
    ----------
    names
        Of the models; each serves version 1 of ``"embedding"``, which is built if it is not there yet.

    Returns
    -------
    Path
        The repository, for ``accel.serve``; the same names take the same folder of the cache.
    """
    recipes = _recipes()
    own = _build_missing("embedding", {1: recipes[1]})
    repository = cache_dir("workbench", "-".join(names))
    for name in names:
        write_model(repository, name, Artifact.load(own / "embedding" / "1" / "artifact"))
    print(f"{listed(list(names))}: {recipes[1].name}, validated")
    return repository


def _build_missing(name: str, recipes: _Recipes) -> Path:
    repository = repository_of(name)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(locked(repository))
        missing = [version for version, recipe in recipes.items() if not _usable(repository / name, version, recipe)]
        if missing:
            check_built_here(repository / name, missing, kept=recipes.keys() - missing)
            model, texts = source_model(name)
        for version in missing:
            put = functools.partial(write_model, repository, name, version=version, recipe=recipes[version].name)
            _build_or_fall_back(model, recipes[version], texts, put)
    return repository


def repository_to_serve(names: Sequence[str] = ()) -> Path:
    """The repository of ``accel serve``: nothing is added to your own, and ``embedding`` is built in the course's own.

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
    given = given_repository()
    repository = given or next(filter(model_names, repositories_above()), None) or course_repository()
    if given is None and repository == course_repository() and (not names or "embedding" in names):
        return ensure("embedding")
    if not any(not unbuilt(repository / name) for name in model_names(repository)):
        raise AccelError(
            f"{repository.name} holds no model that is built.",
            seen=", ".join(model_names(repository)) or "no model",
            fix='accel build embedding, or server.add("mine", artifact) in Python',
        )
    return repository


def source_model(name: str) -> tuple[Model, Sequence[str]]:
    """A model of the course before any conversion, and texts to validate it with."""
    return _BUILDERS[name]()


def _recipes() -> _Recipes:
    if not _torch_has_a_gpu():
        return _ON_CPU
    from accel_lib.engines.graphs import supported

    half = _PACKED_HALF if supported("cuda:0") else _HALF
    engine = _Recipe(name="TensorRT engine", format="tensorrt", precision="fp16", instead=half)
    return {1: _TORCH, 2: engine if choices()[0].engine.startswith("tensorrt") else half}


def _torch_has_a_gpu() -> bool:
    return bool(inspect_machine().gpus) and bool(require("torch", extra="models").cuda.is_available())


def _usable(model: Path, version: int, recipe: _Recipe) -> bool:
    from accel_lib.models.places import DEFAULT, locate

    try:
        artifact = Artifact.load(model / str(version) / ARTIFACT_FOLDER)
    except ArtifactError:
        return False
    held = artifact.manifest
    if recipe.format == "tensorrt" and held.format == "tensorrt" and (reason := unfit(held)):
        print(f"the engine in {model.name} is built again: {reason}", flush=True)
        return False
    as_made = (held.format, held.precision, held.packed) == (recipe.format, recipe.precision, recipe.packed)
    for_this_cpu = held.weight_bits == (weight_bits() if held.precision == "int8" else 0)
    fits = (held.recipe == recipe.name or as_made) and for_this_cpu
    return artifact.validated and fits and held.source.startswith(locate(DEFAULT).source)


def _embedding() -> tuple[Model, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.texts import load_texts

    with _step("loading the model"):
        return load_model(), load_texts("mixed", limit=64)


def _sentiment() -> tuple[Model, Sequence[str]]:
    from accel_lib.models import load_model
    from accel_lib.models.sentiment import train_classifier
    from accel_lib.texts import load_texts

    texts = load_texts("sentiment-train")
    with _step(f"training a sentiment head on {len(texts)} texts"):
        return train_classifier(load_model(), texts), load_texts("sentiment-test")


_BUILDERS: dict[str, Callable[[], tuple[Model, Sequence[str]]]] = {"embedding": _embedding, "sentiment": _sentiment}


def _build_or_fall_back(model: Model, recipe: _Recipe, texts: Sequence[str], put: Callable[[Artifact], Path]) -> Path:
    """Build a recipe, or what is taken in its place where it is refused, said and kept in the manifest."""
    try:
        return _build(model, recipe, texts, put)
    except OutputError:
        raise
    except AccelError as refusal:
        if recipe.instead is None:
            raise
        print(f"no {recipe.name}: {refusal.cause} {refusal.seen or ''}".rstrip(), flush=True)
        version = _build_or_fall_back(model, recipe.instead, texts, put)
        Artifact.load(version / ARTIFACT_FOLDER).with_note(f"in place of {recipe.name}: {refusal.cause}")
        return version


def _to_tensorrt(model: Model, *, precision: str) -> Artifact:
    """An engine for this GPU and texts of the corpus's lengths."""
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.texts import load_texts

    onnx = to_onnx(model, precision=precision, progress=False)
    return to_tensorrt(onnx, lengths=model.lengths(load_texts("mixed")), max_batch_size=64, progress=False)


def _convert(model: Model, recipe: _Recipe) -> Artifact:
    from accel_lib.convert.onnx import to_onnx, to_torch

    if recipe.format == "tensorrt":
        return _to_tensorrt(model, precision=recipe.precision)
    if recipe.format == "torch":
        return to_torch(model, precision=recipe.precision, packed=recipe.packed, progress=False)
    keep: Literal["auto"] | tuple[()] = "auto" if recipe.precision == "int8" else ()
    return to_onnx(model, precision=recipe.precision, packed=recipe.packed, keep=keep, progress=False)


def _build(model: Model, recipe: _Recipe, texts: Sequence[str], put: Callable[[Artifact], Path]) -> Path:
    from accel_lib.convert.validate import validate

    with _step(f"converting to {recipe.name}, and validating"):
        artifact = _convert(model, recipe)
        if not artifact.validated:
            validate(artifact, reference=model, texts=texts)
        return put(artifact)


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{what} … ", end="", flush=True)
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)
