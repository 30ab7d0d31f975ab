"""GPUs by name, and which TensorRT builds for one: the library here, the target there, the precision between."""

from __future__ import annotations

from accel_lib.artifact import Manifest
from accel_lib.engines.tensorrt_runtime import Library, compute_target, installed, load_library
from accel_lib.errors import ConversionError, MissingDependencyError
from accel_lib.machine import inspect_machine

# Compute capability by product: https://developer.nvidia.com/cuda-gpus
TARGETS = {
    **dict.fromkeys(("t4", "rtx20"), "sm75"),
    **dict.fromkeys(("a100",), "sm80"),
    **dict.fromkeys(("a10", "a10g", "rtx30"), "sm86"),
    **dict.fromkeys(("l4", "l40s", "rtx40"), "sm89"),
    **dict.fromkeys(("h100", "h200"), "sm90"),
    **dict.fromkeys(("rtx50",), "sm120"),
}


def resolve_target(target: str) -> str:
    """A product, a compute capability or ``"auto"`` as a compute capability: ``"t4"`` is ``"sm75"``.

    Raises
    ------
    ConversionError
        There is no such target, or ``"auto"`` found no GPU.
    """
    gpus = inspect_machine().gpus
    if target == "auto":
        if not gpus:
            raise ConversionError(
                "There is no GPU here to build for.",
                seen='target="auto"',
                fix='name the GPU it will run on: to_tensorrt(onnx, target="t4")',
            )
        return compute_target(gpus[0])
    resolved = TARGETS.get(target.lower(), target.lower())
    if resolved not in TARGETS.values():
        raise ConversionError("There is no such target.", seen=repr(target), fix=f"one of: auto, {', '.join(TARGETS)}")
    return resolved


def choose_library(target: str) -> Library:
    """Full TensorRT for the GPU of this machine where it is installed, else TensorRT-RTX.

    Raises
    ------
    ConversionError
        Neither can build for `target` on this machine.
    MissingDependencyError
        The one that could is not installed.
    """
    here = [compute_target(gpu) for gpu in inspect_machine().gpus]
    names = installed()
    if "tensorrt" in names and target in here:
        return load_library("tensorrt")
    if target == "sm90":
        raise ConversionError(
            "TensorRT-RTX does not build for Hopper, and full TensorRT builds only for the GPU it runs on.",
            seen=f"target {target}; GPUs here: {', '.join(here) or 'none'}",
            fix="on that machine: python -m pip install 'accel_lib[tensorrt]', then target=\"auto\"",
        )
    if "tensorrt_rtx" not in names:
        raise MissingDependencyError(
            "No TensorRT that can build for this target is installed.",
            seen=f"installed: {', '.join(names) or 'none'}; target {target}",
            fix="python -m pip install 'accel_lib[rtx]'",
        )
    return load_library("tensorrt_rtx")


def check_precision(manifest: Manifest, target: str, library: Library) -> None:
    """Refuse a graph or precision that `library` cannot build for `target`, before anything is built.

    Raises
    ------
    ConversionError
        With the conversion that gives one it can.
    """
    if manifest.packed:
        raise ConversionError(
            "A packed graph has sizes that depend on its data, which an optimization profile cannot bound.",
            seen="packed",
            fix="accel.to_onnx(model) without packed=True",
        )
    if manifest.precision == "int8":
        raise ConversionError(
            "Dynamic INT8 is a form for ONNX Runtime on a CPU; TensorRT has no such operators.",
            seen=f"precision {manifest.precision}",
            fix='accel.to_onnx(model, precision="fp16"), or precision="int8-qdq"',
        )
    if manifest.precision == "fp32" and target == "sm75" and library.name == "tensorrt_rtx":
        raise ConversionError(
            "TensorRT-RTX has no FP32 matrix product for Turing.",
            seen="precision fp32 for sm75",
            fix='accel.to_onnx(model, precision="fp16")',
        )
