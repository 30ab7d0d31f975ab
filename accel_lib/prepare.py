"""Build what a notebook of the course serves, or reuse what is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel_lib.artifact import Artifact
from accel_lib.errors import AccelError, ArtifactError
from accel_lib.frame import project_root

if TYPE_CHECKING:
    from accel_lib.models import Model

_REPOSITORY = "model_repository"
_VERSIONS = {1: "fp32", 2: "int8"}


def ensure(name: str = "embedding") -> Path:
    """Build both versions of a model into the model repository, or reuse them.

    Version 1 is FP32, version 2 INT8; both are ONNX, and validated. The repository is ``$ACCEL_REPOSITORY`` (made if it
    is not there), else the nearest ``model_repository`` folder upward from here, else the course's own.

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
    folders = {version: repository / name / str(version) / "artifact" for version in _VERSIONS}
    missing = [version for version, folder in folders.items() if not _usable(folder)]
    if missing:
        model, texts = _BUILDERS[name]()
        for version in missing:
            _build(model, _VERSIONS[version], texts, folders[version])
    print(f"{name}: versions {' and '.join(map(str, _VERSIONS))} are in {repository.name}, validated")
    return repository


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


def _usable(folder: Path) -> bool:
    from accel_lib.models.places import DEFAULT, locate

    try:
        artifact = Artifact.load(folder)
    except ArtifactError:
        return False
    return artifact.validated and artifact.manifest.source.startswith(locate(DEFAULT).source)


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


def _build(model: Model, precision: str, texts: Sequence[str], folder: Path) -> None:
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.validate import validate

    with _step(f"converting to ONNX {precision}, and validating"):
        artifact = to_onnx(model, precision=precision, progress=False)
        if not artifact.validated:
            validate(artifact, reference=model, texts=texts)
        Artifact.load(artifact.folder).copy_to(folder)


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"{what} … ", end="", flush=True)
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)
