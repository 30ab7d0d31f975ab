"""Whether a conversion has the memory and the disk that it will take, known before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from accel_lib.artifact import Format
from accel_lib.errors import ConversionError
from accel_lib.machine import free_memory_bytes

if TYPE_CHECKING:
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

# In sizes of the FP32 weights, which are in memory already, as measured on XLM-RoBERTa large (2.3 GB).
_MEMORY = {"fp32": 0.3, "bf16": 0.3, "fp16": 1.0, "int8": 1.5, "int8-qdq": 3.0}
_MEMORY_FOR_COPIES = 1.0  # packing, and PyTorch programs, copy the network
_DISK = {"fp32": 1.0, "bf16": 1.0, "fp16": 0.5, "int8": 1.7, "int8-qdq": 2.7}  # with INT8 the FP32 file is written too
_ENGINE_MEMORY = 4.0  # sizes of the ONNX file; TensorRT-RTX's builder took 3.0 on that model in FP16
_ENGINE_DISK = 2.2  # the engine, and a copy of the ONNX file
_SPARE_BYTES = 256 * 2**20


def check_room(model: Model | GenerationModel, folder: Path, form: Format, precision: str, *, packed: bool) -> None:
    """Refuse a conversion that would run out of memory or disk.

    Raises
    ------
    ConversionError
        With how much it takes, and how much there is.
    """
    weights = model.size_bytes
    copied = _MEMORY_FOR_COPIES if packed or form == "torch" else 0.0
    _refuse_without(
        disk=int(_DISK[precision] * weights), memory=int((_MEMORY[precision] + copied) * weights), folder=folder
    )


def check_engine_room(onnx_bytes: int, folder: Path) -> None:
    """Refuse a TensorRT build that would run out of memory or disk.

    Parameters
    ----------
    onnx_bytes
        Size of the graph with its weights.
    folder
        Where the engine goes, with a copy of the graph.

    Raises
    ------
    ConversionError
        With how much it takes, and how much there is.
    """
    _refuse_without(disk=int(_ENGINE_DISK * onnx_bytes), memory=int(_ENGINE_MEMORY * onnx_bytes), folder=folder)


def _refuse_without(*, disk: int, memory: int, folder: Path) -> None:
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    there = shutil.disk_usage(place).free
    if disk > there:
        raise ConversionError(
            "The disk has no room for this conversion.",
            seen=f"it takes {disk / 2**30:.2f} GiB, {there / 2**30:.2f} GiB are free in {place}",
            fix="free some space, or name another place: output=..., or ACCEL_HOME for the cache",
        )
    needed, free = memory + _SPARE_BYTES, free_memory_bytes()
    if needed > free:
        raise ConversionError(
            "This conversion takes more memory than is free.",
            seen=f"it takes {needed / 2**30:.1f} GiB beside what is loaded, {free / 2**30:.1f} GiB are free",
            fix="close what else takes memory, or convert on a machine with more; the artifact runs on this one",
        )
