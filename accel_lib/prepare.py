"""Build what a notebook of the course serves, or reuse what is there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accel_lib.artifact import Artifact, Format
<<<<<<< HEAD
from accel_lib.choice import choices
from accel_lib.convert.cache import unfit
from accel_lib.errors import AccelError, ArtifactError, require
=======
from accel_lib.errors import AccelError, ArtifactError, ConversionError, require
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)
from accel_lib.frame import project_root
from accel_lib.machine import inspect_machine

if TYPE_CHECKING:
    from accel_lib.models import Model

_REPOSITORY = "model_repository"
<<<<<<< HEAD
_ON_CPU: _Recipes = {1: ("onnx", "fp32"), 2: ("onnx", "int8")}
_ON_GPU: _Recipes = {1: ("torch", "fp32"), 2: ("torch", "fp16")}
_WITH_TENSORRT: _Recipes = {1: ("torch", "fp32"), 2: ("tensorrt", "fp16")}
_IN_PLACE_OF = "in place of a TensorRT engine: "
=======


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a version is made; where INT8 does not hold its targets, `otherwise` takes its place."""

    format: Format
    precision: str = "fp32"
    packed: bool = False
    otherwise: _Recipe | None = None

    def made(self, artifact: Artifact) -> bool:
        """Whether an artifact is what this makes."""
        held = artifact.manifest
        this = (held.format, held.precision, held.packed) == (self.format, self.precision, self.packed)
        return this or (self.otherwise is not None and self.otherwise.made(artifact))


_Recipes = dict[int, _Recipe]
_PACKED = _Recipe("onnx", packed=True)
_ON_CPU: _Recipes = {1: _Recipe("onnx"), 2: _Recipe("onnx", "int8", packed=True, otherwise=_PACKED)}
_ON_GPU: _Recipes = {1: _Recipe("torch"), 2: _Recipe("torch", "fp16")}
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)


def ensure(name: str = "embedding") -> Path:
    """Build both versions of a model into the model repository, or reuse them.

<<<<<<< HEAD
    Version 1 is FP32, version 2 the optimized one; both are validated. On a CPU they are ONNX, the second in INT8;
    where PyTorch has a GPU they are PyTorch programs, the second in FP16, or a TensorRT engine where one is installed
    that suits the GPU; an engine that was built for another GPU, driver or TensorRT is built again. The repository is
    ``$ACCEL_REPOSITORY`` (made if it is not there), else the nearest ``model_repository`` folder upward from here, else
    the course's own.
=======
    Version 1 is FP32, version 2 the optimized one; both are validated. On a CPU they are ONNX, the second without
    padding, and in INT8 where that keeps 95% of the ten nearest neighbours;
    where PyTorch has a GPU they are PyTorch programs, the second in FP16. The repository is ``$ACCEL_REPOSITORY`` (made
    if it is not there), else the nearest ``model_repository`` folder upward from here, else the course's own.
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)

    Parameters
    ----------
    name
        ``"embedding"`` (the default model) or ``"sentiment"`` (a classifier trained on its frozen vectors).

    Returns
    -------
    Path
        The repository, for ``accel.serve``.

    Examples
    --------
    >>> server = accel.serve(accel.ensure("embedding"))  # doctest: +SKIP
    """
    if name not in _BUILDERS:
        names = ", ".join(_BUILDERS)
        raise AccelError(
            "The course has no such model.", seen=repr(name), fix=f"accel.ensure(...) with one of: {names}"
        )
    repository = _repository(name)
    recipes = _recipes()
    folders = {version: repository / name / str(version) / "artifact" for version in recipes}
    missing = [version for version, folder in folders.items() if not _usable(folder, recipes[version])]
    if missing:
        model, texts = source_model(name)
        for version in missing:
<<<<<<< HEAD
            _build_or_fall_back(model, *recipes[version], texts, folders[version])
=======
            _build(model, recipes[version], texts, folders[version])
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)
    print(f"{name}: versions {' and '.join(map(str, recipes))} are in {repository.name}, validated")
    return repository


def source_model(name: str) -> tuple[Model, Sequence[str]]:
    """A model of the course before any conversion, and texts to validate it with."""
    return _BUILDERS[name]()


def _repository(name: str) -> Path:
    given = os.environ.get("ACCEL_REPOSITORY")
    if given:
        repository = Path(given)
        if not (repository / name).is_dir():
            own = project_root() / _REPOSITORY / name
            shutil.copytree(own, repository / name, ignore=shutil.ignore_patterns("artifact", "__pycache__"))
        return repository
    here = Path.cwd()
    above = (folder / _REPOSITORY for folder in (here, *here.parents))
    return next((folder for folder in above if (folder / name).is_dir()), None) or project_root() / _REPOSITORY


def _recipes() -> _Recipes:
    if not _torch_has_a_gpu():
        return _ON_CPU
    return _WITH_TENSORRT if choices()[0].engine.startswith("tensorrt") else _ON_GPU


def _torch_has_a_gpu() -> bool:
    return bool(inspect_machine().gpus) and bool(require("torch", extra="models").cuda.is_available())


def _usable(folder: Path, recipe: _Recipe) -> bool:
    from accel_lib.models.places import DEFAULT, locate

    try:
        artifact = Artifact.load(folder)
    except ArtifactError:
        return False
<<<<<<< HEAD
    held = artifact.manifest
    if form == "tensorrt" and held.format == "tensorrt" and (reason := unfit(held)):
        print(f"the engine in {folder.parent.parent.name} is built again: {reason}", flush=True)
        return False
    if form == "tensorrt" and any(note.startswith(_IN_PLACE_OF) for note in held.notes):
        form = "torch"
    fits = (held.format, held.precision) == (form, precision) and held.source.startswith(locate(DEFAULT).source)
    return artifact.validated and fits
=======
    same_model = artifact.manifest.source.startswith(locate(DEFAULT).source)
    return artifact.validated and same_model and recipe.made(artifact)
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)


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


<<<<<<< HEAD
def _build_or_fall_back(model: Model, form: Format, precision: str, texts: Sequence[str], folder: Path) -> None:
    """Build a recipe; PyTorch in the same precision where TensorRT refuses, said and kept in the manifest."""
    try:
        _build(model, form, precision, texts, folder)
    except AccelError as refusal:
        if form != "tensorrt":
            raise
        print(f"no TensorRT engine: {refusal.cause} {refusal.seen or ''}".rstrip(), flush=True)
        _build(model, "torch", precision, texts, folder)
        Artifact.load(folder).with_note(f"{_IN_PLACE_OF}{refusal.cause}")


def _to_tensorrt(model: Model, *, precision: str, progress: bool) -> Artifact:
    """An engine for this GPU and texts of the corpus's lengths."""
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.texts import load_texts

    onnx = to_onnx(model, precision=precision, progress=progress)
    return to_tensorrt(onnx, lengths=model.lengths(load_texts("mixed")), max_batch_size=64, progress=progress)


def _build(model: Model, form: Format, precision: str, texts: Sequence[str], folder: Path) -> None:
    from accel_lib.convert.onnx import to_onnx, to_torch
    from accel_lib.convert.validate import validate

    convert = {"onnx": to_onnx, "torch": to_torch, "tensorrt": _to_tensorrt}[form]
    with _step(f"converting to {form} {precision}, and validating"):
        artifact = convert(model, precision=precision, progress=False)
=======
def _build(model: Model, recipe: _Recipe, texts: Sequence[str], folder: Path) -> None:
    from accel_lib.convert.validate import validate

    what = f"{recipe.format} {recipe.precision}{' without padding' if recipe.packed else ''}"
    with _step(f"converting to {what}, and validating"):
        artifact = _convert(model, recipe)
>>>>>>> eab3fc0 (Compute without padding: packed graphs, INT8 with a scale a token, and a search for what it must not touch)
        if not artifact.validated:
            validate(artifact, reference=model, texts=texts)
        Artifact.load(artifact.folder).copy_to(folder)


def _convert(model: Model, recipe: _Recipe) -> Artifact:
    from accel_lib.convert.onnx import to_onnx, to_torch

    if recipe.format == "torch":
        return to_torch(model, precision=recipe.precision, progress=False)
    try:
        keep: Literal["auto"] | tuple[()] = "auto" if recipe.precision == "int8" else ()
        return to_onnx(model, precision=recipe.precision, packed=recipe.packed, keep=keep, progress=False)
    except ConversionError as error:
        if recipe.otherwise is None:
            raise
        print(f"({error.cause} {recipe.otherwise.precision} instead) … ", end="", flush=True)
        return _convert(model, recipe.otherwise)


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{what} … ", end="", flush=True)
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)
