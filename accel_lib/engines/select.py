"""Which engine suits a machine, best first: from its GPU or its CPU's instructions, and what is installed."""

from __future__ import annotations

import dataclasses
from typing import Literal

from accel_lib.machine import BF16, VNNI, Machine, inspect_machine

# Compute capabilities that TensorRT-RTX builds for: https://docs.nvidia.com/deeplearning/tensorrt-rtx
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")
_OLDEST_FOR_TENSORRT = 7.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine with its precision; ``cuda_graphs`` where launches are worth capturing; and why it stands there."""

    engine: Literal["tensorrt", "tensorrt_rtx", "torch", "openvino", "onnxruntime"]
    precision: str
    why: str
    cuda_graphs: bool = False

    def __str__(self) -> str:
        names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "torch": "PyTorch", "openvino": "OpenVINO"}
        graphs = " with CUDA graphs" if self.cuda_graphs else ""
        return f"{names.get(self.engine, 'ONNX Runtime')} {self.precision.upper()}{graphs}"


def choices(machine: Machine | None = None) -> tuple[Choice, ...]:
    """Engines that can run here, best first; what is measured decides in the end (``accel_lib.choose``).

    FP16 on every GPU, never BF16: a T4 has none, and FP16 keeps three bits more of each number. On CPUs OpenVINO's INT8
    is the fastest of the quality class "small", and its BF16, where the CPU has it, of "near".

    Parameters
    ----------
    machine
        What `inspect_machine` saw; None looks now.

    Examples
    --------
    >>> print(*choices(), sep=", then ")  # doctest: +SKIP
    TensorRT-RTX FP16, then PyTorch FP16 with CUDA graphs, then ONNX Runtime INT8
    """
    machine = machine or inspect_machine()
    found = []
    if machine.gpus:
        capability, versions = machine.gpus[0].compute_capability, machine.versions
        full = any(name.startswith("tensorrt") and "rtx" not in name for name in versions)
        if full and "libnvinfer" in machine.libraries and float(capability) >= _OLDEST_FOR_TENSORRT:
            found.append(Choice(engine="tensorrt", precision="fp16", why="tuned on this very GPU"))
        if any("rtx" in name for name in versions) and capability in RTX_CAPABILITIES:
            found.append(Choice(engine="tensorrt_rtx", precision="fp16", why="fused kernels for this generation"))
        if "torch" in versions and not versions["torch"].endswith("+cpu"):
            found.append(Choice(engine="torch", precision="fp16", why="few launches, no build", cuda_graphs=True))
    return (*found, *_on_the_cpu(machine))


def _on_the_cpu(machine: Machine) -> tuple[Choice, ...]:
    found = []
    if {"openvino", "nncf"} <= machine.versions.keys() and set(machine.isa) & VNNI:
        found.append(Choice(engine="openvino", precision="int8", why="one scale a tensor, known beforehand"))
    if "openvino" in machine.versions and set(machine.isa) & BF16:
        found.append(Choice(engine="openvino", precision="bf16", why="half the numbers, nearly exact"))
    return (*found, Choice(engine="onnxruntime", precision="int8", why="runs on any CPU"))
