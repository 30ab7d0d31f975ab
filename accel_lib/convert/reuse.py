"""Artifacts made once: reused as long as nothing they depend on has changed, else written aside and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_lib.artifact import MODEL_FILES, TOKENIZER_FILE, Artifact, Format, Manifest, foreign_files, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.convert.room import check_room
from accel_lib.errors import ArtifactError
from accel_lib.machine import cache_dir

if TYPE_CHECKING:
    from torch import nn

    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def label_of(precision: str = "fp32", *, packed: bool, form: Format = "onnx", kept: str = "") -> str:
    """Name of a conversion's folder in the cache."""
    return "-".join(filter(None, [form, precision, "packed" if packed else "", kept]))


def folder_of(model: Model | GenerationModel, label: str) -> Path:
    """Where the cache keeps a model's artifact of that label."""
    return cache_dir("artifacts", model.name.replace("/", "--"), label)


def reusable(folder: Path, facts: dict[str, Any]) -> Artifact | None:
    """The artifact in a folder, where nothing that it depends on has changed."""
    with contextlib.suppress(ArtifactError):
        found = Artifact.load(folder)
        if all(getattr(found.manifest, name) == value for name, value in facts.items()):
            return found
    return None


def make(
    model: Model | GenerationModel,
    facts: dict[str, Any],
    label: str,
    write: Callable[[Path], tuple[str, ...]],
    output: str | Path | None,
    progress: bool,
) -> Artifact:
    """Reuse an artifact that nothing has changed for, or write it aside and rename it."""
    folder = Path(output) if output else folder_of(model, label)
    found = None if output else reusable(folder, facts)
    if found:
        if progress:
            print(f"{found.name}: reused, {found.size_bytes / 1e6:.1f} MB", flush=True)
        return found
    check_room(model, folder, facts["format"], facts["precision"], packed=facts["packed"])
    started = time.monotonic()
    with atomic_directory(folder, foreign=foreign_files if output else None) as draft:
        notes = write(draft / MODEL_FILES[facts["format"]])
        model.tokenizer.save(str(draft / TOKENIZER_FILE))
        seconds = time.monotonic() - started
        manifest = write_manifest(draft, Manifest(**facts, seconds=seconds, notes=(*model.notes, *notes)))
    artifact = Artifact(folder, manifest)
    if progress:
        print(f"{artifact.name}: {artifact.size_bytes / 1e6:.1f} MB in {manifest.seconds:.1f} s", flush=True)
    return artifact


def versions_of_packages() -> dict[str, str]:
    """Versions of the packages a conversion depends on, those that are installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hash_of_weights(module: nn.Module) -> str:
    """Twelve hex digits that change with any weight, and with the pooling."""
    digest = hashlib.blake2b(str(getattr(module, "tail", "")).encode(), digest_size=6)  # pooling has no weights
    for name, weight in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()


def short_hash(data: bytes) -> str:
    """Eight hex digits."""
    return hashlib.blake2b(data, digest_size=4).hexdigest()
