"""Triton model repository on disk: read, and written whole or not at all.

::

    model_repository/<model>/config.pbtxt           how it is batched and served
    model_repository/<model>/<version>/model.py     one import: accel_lib's Python backend
    model_repository/<model>/<version>/artifact/    the converted model, built on each machine, never committed
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accel_lib.artifact import Artifact, foreign_files
from accel_lib.atomic import atomic_directory, draft_beside, is_draft, put, replaceable, write_text
from accel_lib.errors import ArtifactError, ServerError
from accel_lib.generate import wire
from accel_lib.machine import inspect_machine
from accel_lib.triton.config import CONFIG_FILE, ModelConfig, TensorSpec

ARTIFACT_FOLDER = "artifact"
MODEL_FILE = "model.py"
_BACKENDS = {"generation": "generation_backend"}  # of a task; of every other one, `accel_lib.triton.backend`
_NEEDS_ARTIFACT = re.compile(r"from accel_lib\.triton\.(generation_)?backend import TritonPythonModel")
_ON_GPU: dict[str, Any] = {"max_batch_size": 1024, "instance_count": 2}
_OWN_CODE = re.compile(r"from accel_lib\.triton\.\w+ import \w+( as TritonPythonModel)?\s*")


def read_config(path: str | Path) -> ModelConfig:
    """Read a model's ``config.pbtxt``; `path` is the file or the model's folder.

    Raises
    ------
    ServerError
        The file is missing, holds something else, or names another model than its folder.
    """
    path = Path(path)
    path = path if path.name == CONFIG_FILE else path / CONFIG_FILE
    short = f"{path.parent.name}/{CONFIG_FILE}"
    if not path.is_file():
        raise ServerError(
            f"The repository has no model {path.parent.name!r}.",
            seen=f"no {short}",
            fix=f"choose from {', '.join(model_names(path.parents[1])) or 'none yet'}, or server.add(name, artifact)",
        )
    config = ModelConfig.from_text(path.read_text(encoding="utf-8", errors="replace"), file=short)
    if config.name != path.parent.name:
        raise ServerError(
            f"{short} names another model than its folder.",
            seen=f"name: {config.name!r}",
            fix="give both the same name",
        )
    return config


def write_config(path: str | Path, config: ModelConfig) -> None:
    """Write a model's ``config.pbtxt``, whole or not at all; `path` is the file or the model's folder.

    Raises
    ------
    ServerError
        There is another model's configuration.
    OutputError
        The disk is full, or it cannot be written.
    """
    path = Path(path)
    path = path if path.name == CONFIG_FILE else path / CONFIG_FILE
    there = path.is_file() and ModelConfig.from_text(path.read_text(encoding="utf-8", errors="replace")).name
    if there and there != config.name:
        raise ServerError(
            f"{path.parent.name}/{CONFIG_FILE} is of another model, so it stays.",
            seen=f"name: {there!r}",
            fix=f"write into {config.name}",
        )
    write_text(path, config.to_text())


def default_config(name: str, artifact: Artifact, *, gpu: bool | None = None) -> ModelConfig:
    """The configuration this project serves an artifact with: dynamic, ragged batches, all versions, no timeout.

    On a GPU (`gpu`, by default whether one is here that computes the artifact) a batch may have 1,024 rows instead of
    64, and one of two instances computes while the other reads requests or writes responses. A model that generates
    makes its batches itself, and gives several responses to a request.
    """
    manifest = artifact.manifest
    if manifest.task == "generation":
        return ModelConfig(
            name=name,
            max_batch_size=0,
            dynamic_batching=False,
            decoupled=True,
            inputs=(TensorSpec(name=wire.PROMPT_IDS, data_type="INT64", dims=(-1,)),),
            outputs=tuple(TensorSpec(name=each, data_type=kind, dims=dims) for each, kind, dims in wire.OUTPUTS),
        )
    inputs = (TensorSpec(name=tensor, data_type="INT64", dims=(-1,), ragged=True) for tensor in manifest.inputs)
    output = TensorSpec(name=manifest.output_name, data_type="FP32", dims=(manifest.dimension,))
    if gpu is None:
        gpu = manifest.format in ("torch", "tensorrt") and bool(inspect_machine().gpus)
    settings = _ON_GPU if gpu else {}
    return ModelConfig(name=name, inputs=tuple(inputs), outputs=(output,), **settings)


def write_model(
    repository: str | Path,
    name: str,
    artifact: Artifact,
    *,
    version: int = 1,
    config: ModelConfig | None = None,
    recipe: str = "",
) -> Path:
    """Put one version of a model into a repository, whole or not at all.

    Parameters
    ----------
    repository
        Folder with a folder per model.
    name, version
        Model name and version number; a version that this library wrote is replaced.
    artifact
        A validated artifact; its folder is read again (a validation may have been recorded since) and copied.
    config
        Written when given; else an existing ``config.pbtxt`` stays, and a new model gets `default_config`.
    recipe
        Kept in the copy's manifest.

    Returns
    -------
    Path
        The version's folder.

    Raises
    ------
    ArtifactError
        The artifact was not validated, or is damaged.
    ServerError
        The name or version cannot be used, the model has another backend or other tensors, or `config` is invalid.
    OutputError
        The version's folder holds what this library did not write, or the disk is full; everything is as it was.
    """
    _check_name(name, version)
    artifact = Artifact.load(artifact.folder)
    if not artifact.validated:
        raise ArtifactError(
            "An artifact that was not validated is not served.",
            seen=f"{artifact.name} of {artifact.manifest.model}",
            fix="accel_lib.validate(artifact, reference=model, texts=texts)",
        )
    model = Path(repository) / name
    plain = default_config(name, artifact)
    written = config or _existing(model, plain, version)
    if _tensors(written) != _tensors(plain):
        raise ServerError(
            f"{name} has other inputs or another output than this artifact.",
            seen=f"{_others(written, plain)} in {CONFIG_FILE}, {_others(plain, written)} in the artifact",
            fix="add it under another name",
        )
    if written.name != name:
        raise ServerError(
            "The configuration is of another model.", seen=f"{written.name!r}", fix=f"config.replace(name={name!r})"
        )
    written.to_text()  # what cannot be written is refused before anything is
    unchanged = (model / CONFIG_FILE).is_file() and written == read_config(model)
    with atomic_directory(model / str(version), foreign=foreign_version) as draft:
        (draft / MODEL_FILE).write_text(_model_code(artifact), encoding="utf-8")
        artifact.copy_to(draft / ARTIFACT_FOLDER, recipe=recipe)
    if not unchanged:
        write_config(model, written)
    return model / str(version)


@contextlib.contextmanager
def rollback_on_error(model: Path) -> Iterator[None]:
    """Restore a model's folder if what is done inside the ``with`` fails."""
    with draft_beside(model) as draft:
        before, there = draft / model.name, model.is_dir()
        if there:
            shutil.copytree(model, before, copy_function=_link, symlinks=True)
        try:
            yield
        except BaseException:
            if there:
                put(before, model)
            else:
                shutil.rmtree(model, ignore_errors=True)
            raise


def _link(source: str, target: str) -> None:
    """A hard link, which takes no space; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_version(repository: str | Path, name: str, version: int) -> list[int]:
    """Delete one version of a model, and the model with its last one; returns the versions that are left.

    A folder that holds what this library did not write stays, with an `OutputError`.
    """
    model = Path(repository) / name
    read_config(model)
    there = versions(model)
    if version not in there:
        raise ServerError(
            f"{name} has no version {version}.", seen=f"versions {', '.join(map(str, there))}", fix="name one of these"
        )
    left = [number for number in there if number != version]
    gone = replaceable(model / str(version), foreign_version)
    if not left:
        gone = replaceable(model, lambda folder: _foreign(folder, {CONFIG_FILE, gone.name}))
    with draft_beside(gone) as draft:
        gone.rename(draft / "removed")
    return left


def foreign_version(folder: Path) -> list[str]:
    """What in a version's folder this library did not write."""
    code = folder / MODEL_FILE
    own = {MODEL_FILE} if code.is_file() and _OWN_CODE.fullmatch(code.read_text("utf-8", "replace")) else set()
    if (folder / ARTIFACT_FOLDER).is_dir() and not foreign_files(folder / ARTIFACT_FOLDER):
        own.add(ARTIFACT_FOLDER)
    return _foreign(folder, own)


def _foreign(folder: Path, own: set[str]) -> list[str]:
    kept = own | {"__pycache__"}
    return sorted(each.name for each in folder.iterdir() if each.name not in kept and not is_draft(each.name))


def model_names(repository: str | Path) -> list[str]:
    """Models of a repository: its folders with a ``config.pbtxt``."""
    return sorted(file.parent.name for file in Path(repository).glob(f"[!.]*/{CONFIG_FILE}"))


def unbuilt(model: Path) -> list[int]:
    """Versions that need an artifact and have none yet."""
    return [
        version
        for version in versions(model)
        if not (model / str(version) / ARTIFACT_FOLDER / "manifest.json").is_file()
        and _NEEDS_ARTIFACT.search((model / str(version) / MODEL_FILE).read_text(encoding="utf-8"))
    ]


def versions(model: Path) -> list[int]:
    """Version numbers that have a ``model.py``, in order."""
    return sorted(int(file.parent.name) for file in model.glob(f"*/{MODEL_FILE}") if file.parent.name.isdecimal())


def _model_code(artifact: Artifact) -> str:
    module = _BACKENDS.get(artifact.manifest.task, "backend")
    return f"from accel_lib.triton.{module} import TritonPythonModel as TritonPythonModel\n"


def _existing(model: Path, plain: ModelConfig, version: int) -> ModelConfig:
    """The file's configuration, with the new tensors where the only version is being replaced."""
    if not (model / CONFIG_FILE).is_file():
        return plain
    config = read_config(model)
    if config.backend != plain.backend:
        raise ServerError(
            f"{model.name} is a model of another backend.",
            seen=f"backend: {config.backend!r} in {CONFIG_FILE}",
            fix="add it under another name",
        )
    alone = _tensors(config) != _tensors(plain) and not set(versions(model)) - {version}
    return config.replace(inputs=plain.inputs, outputs=plain.outputs) if alone else config


def _tensors(config: ModelConfig) -> tuple[list[str], tuple[TensorSpec, ...]]:
    return [spec.name for spec in config.inputs], config.outputs


def _others(config: ModelConfig, known: ModelConfig) -> str:
    """The tensors of one configuration that another does not have."""
    shown = [[f"{spec.name} {list(spec.dims)}" for spec in (*each.inputs, *each.outputs)] for each in (config, known)]
    return ", ".join(name for name in shown[0] if name not in shown[1]) or "none"


def _check_name(name: str, version: int) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ServerError(
            "That is no name for a model.", seen=repr(name), fix="use letters, digits, '_', '-' and '.', a letter first"
        )
    if type(version) is not int or version < 1:
        raise ServerError("A version is a whole number from 1.", seen=repr(version), fix="pass version=1")
