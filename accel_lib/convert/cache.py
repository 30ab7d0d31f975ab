"""Whether a cached engine may be used again: by weights, shapes, TensorRT, GPU and driver; else the reason why not."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from accel_lib.artifact import MANIFEST_FILE, ONNX_FILES, Artifact, Manifest
from accel_lib.engines.tensorrt_runtime import LIBRARIES, built_with, compute_target, installed, load_library
from accel_lib.errors import ArtifactError
from accel_lib.machine import inspect_machine


def built_on() -> dict[str, str]:
    """The GPU and driver of this machine, as a manifest keeps them; empty without a GPU."""
    gpus = inspect_machine().gpus
    return {"gpu": gpus[0].name, "driver": gpus[0].driver} if gpus else {}


def cached(folder: Path, wanted: Manifest, weights: str) -> tuple[Artifact | None, str]:
    """A cached engine that is what would be built now, or None and why the one that is there is not.

    Parameters
    ----------
    folder
        Where it would be.
    wanted
        The manifest that a new engine would get.
    weights
        `weights_digest` of what it would be built from.

    Returns
    -------
    Artifact or None, str
        The engine; without one, the reason, empty where there is nothing cached.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None, ""
    try:
        found = Artifact.load(folder)
    except ArtifactError as error:
        return None, f"{error.cause} {error.seen}"
    reason = refusal(found.manifest, wanted, weights)
    return (None, reason) if reason else (found, "")


def refusal(found: Manifest, wanted: Manifest, weights: str) -> str:
    """The first difference that forbids using an engine instead of the wanted one; empty if there is none.

    TensorRT tunes an engine on the card it is built on, so card and driver count where both are known; an engine of
    TensorRT-RTX that was built without a GPU runs on every card of its compute capability.
    """
    then, now = found.machine, wanted.machine
    compared = [
        ("for the weights", weights_digest(found)[:12], weights[:12]),
        ("for", found.target, wanted.target),
        ("by", _library(found), _library(wanted)),
        ("in", found.precision, wanted.precision),
        ("for the shapes", _shapes(found), _shapes(wanted)),
    ]
    if then and now:
        compared += [("on", then["gpu"], now["gpu"]), ("with driver", then["driver"], now["driver"])]
    return next((f"it was built {how} {old}, now it is {new}" for how, old, new in compared if old != new), "")


def incompatibility(found: Manifest) -> str:
    """Why an engine that was built somewhere cannot be used on this machine; empty if nothing is against it."""
    gpus = inspect_machine().gpus
    name = built_with(found)
    here = {name: load_library(name).version} if name in installed() else {}
    target = compute_target(gpus[0]) if gpus else found.target
    wanted = dataclasses.replace(found, target=target, versions=here, machine=built_on())
    return refusal(found, wanted, weights_digest(found))


def weights_digest(manifest: Manifest) -> str:
    """SHA-256 of the ONNX file that a manifest lists, with its weights where they lie beside it; ``"none"`` without."""
    found = [manifest.files[name]["sha256"] for name in ONNX_FILES if name in manifest.files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest() if found else "none"


def _library(manifest: Manifest) -> str:
    names = [f"{name} {manifest.versions[name]}" for name in LIBRARIES if name in manifest.versions]
    return " ".join(names) or "a TensorRT that is not installed"


def _shapes(manifest: Manifest) -> str:
    return ", ".join(f"{p.min} to {p.max} at best {p.opt}" for p in manifest.profiles)
