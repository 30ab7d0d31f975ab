"""Engines behind one protocol run token ids through a file or a network: PyTorch, ONNX Runtime, OpenVINO, TensorRT."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError

if TYPE_CHECKING:
    from accel_lib.models import Model


Runtime = Literal["onnxruntime", "openvino"]
_RUNTIMES = {("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")}


class Engine(Protocol):
    """Something that turns one padded batch of token ids into one row of numbers a text."""

    name: str
    device: str
    precision: str
    dimension: int
    pad_id: int
    max_length: int

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """int64 ``[batch, sequence]`` each to float32 ``[batch, dimension]``; without segment ids they are zeros."""

    def close(self) -> None:
        """Give memory and threads back."""


def open_engine(
    candidate: Model | Artifact,
    *,
    device: str = "auto",
    threads: int | None = None,
    runtime: Runtime | None = None,
    **options: Any,
) -> Engine:
    """Open a model or an artifact for running.

    Parameters
    ----------
    candidate
        A `Model` runs in PyTorch; an `Artifact` runs in what its format names.
    device
        ``"auto"`` takes the GPU where the engine really has one; ``"cpu"``, ``"cuda"`` and ``"cuda:N"`` are asked for
        and never replaced.
    threads
        CPU threads for one batch; None leaves the choice to the engine.
    runtime
        ``"openvino"`` runs an ONNX artifact in OpenVINO. None takes the engine of the artifact's format, which for ONNX
        is ONNX Runtime; Triton does the same, so what OpenVINO is to serve is an artifact of its own
        (`accel_lib.to_openvino`).
    options
        What one engine alone knows: see `TorchEngine`, `OnnxRuntimeEngine`, `OpenVINOEngine` and `TensorRTEngine`.

    Raises
    ------
    EngineError
        The device is not there, or the artifact cannot run on this machine.
    ArtifactError
        The file cannot be read.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise EngineError("There is no such device.", seen=repr(device), fix='device="auto", "cpu", "cuda" or "cuda:0"')
    form = candidate.manifest.format if isinstance(candidate, Artifact) else "torch"
    if runtime and (form, runtime) not in _RUNTIMES:
        raise EngineError(
            "This runtime does not run that format.",
            seen=f"runtime={runtime!r} for {candidate.name}",
            fix="leave runtime out; OpenVINO takes ONNX: accel.to_onnx(model), or its own: accel.to_openvino(model)",
        )
    if isinstance(candidate, Artifact) and "openvino" in (form, runtime):
        from accel_lib.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(candidate, device=device, threads=threads, **options)
    if isinstance(candidate, Artifact) and form == "onnx":
        from accel_lib.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(candidate, device=device, threads=threads, **options)
    if isinstance(candidate, Artifact) and form == "tensorrt":
        from accel_lib.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(candidate, device=device, **options)
    from accel_lib.engines.torch import TorchEngine

    return TorchEngine(candidate, device=device, threads=threads, **options)
