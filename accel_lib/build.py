"""Fill a model repository for a deployment: on the GPU that will serve, once, while whoever serves waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from accel_lib.artifact import Artifact
from accel_lib.errors import ArtifactError, ServerError
from accel_lib.find_repository import check_built_here
from accel_lib.prepare import ensure, source_model
from accel_lib.progress import Progress
from accel_lib.triton.repository import ARTIFACT_FOLDER, model_names, unbuilt, versions, write_model

ENGINE_VERSION = 3
_POLL_S = 1.0


def build(names: Sequence[str], *, target: str | None = None) -> Path:
    """Build models into the repository, validated, or reuse what is there.

    Parameters
    ----------
    names
        Models of the course, such as ``"embedding"``.
    target
        A GPU, or ``"auto"`` for the one here: each model also gets a TensorRT engine, as version 3.

    Returns
    -------
    Path
        The repository, ``$ACCEL_REPOSITORY``.

    Raises
    ------
    AccelError
        A model is unknown, or does not convert, build or validate; nothing slower takes its place.
    """
    repository = Path()
    for name in dict.fromkeys(names):
        repository = ensure(name)
        if target and not _usable(repository / name, ENGINE_VERSION):
            check_built_here(repository / name, [ENGINE_VERSION])
            _engine(repository, name, target)
    return repository


def wait_until_built(names: Sequence[str], *, engine: bool = False, timeout_s: float, poll_s: float = _POLL_S) -> None:
    """Return once another process has built these models, whole and validated.

    Parameters
    ----------
    names
        Models of ``$ACCEL_REPOSITORY``.
    engine
        Wait for the TensorRT engine too.
    timeout_s, poll_s
        How long to wait, and how long between two looks.

    Raises
    ------
    ServerError
        They were not there in time; names what is missing.
    """
    repository = Path(os.environ.get("ACCEL_REPOSITORY", "model_repository"))
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


def _engine(repository: Path, name: str, target: str) -> None:
    from accel_lib.convert.onnx import to_onnx
    from accel_lib.convert.tensorrt import to_tensorrt
    from accel_lib.convert.validate import validate

    model, texts = source_model(name)
    onnx = to_onnx(model, precision="fp16")
    plan = to_tensorrt(onnx, target=target, lengths=model.lengths(texts))
    validate(plan, reference=model, texts=texts)
    write_model(repository, name, plan, version=ENGINE_VERSION, recipe="TensorRT engine")


def _missing(model: Path, engine: bool) -> list[str]:
    """Versions of a model that cannot be served yet, as ``name/version``."""
    if model.name not in model_names(model.parent):
        return [model.name]
    wanted = {*versions(model), *([ENGINE_VERSION] if engine else [])}
    late = set(unbuilt(model)) | {version for version in wanted if not _usable(model, version)}
    return [f"{model.name}/{version}" for version in sorted(late)]


def _usable(model: Path, version: int) -> bool:
    try:
        return Artifact.load(model / str(version) / ARTIFACT_FOLDER).validated
    except ArtifactError:
        return False
