"""Engines run token ids through one file or one network: PyTorch, ONNX Runtime or TensorRT behind one protocol."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError

if TYPE_CHECKING:
    from accel_lib.models import Model


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
    candidate: Model | Artifact, *, device: str = "auto", threads: int | None = None, **options: Any
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
    options
        What one engine alone knows: see `TorchEngine`, `OnnxRuntimeEngine` and `TensorRTEngine`.

    Raises
    ------
    EngineError
        The device is not there, or the artifact cannot run on this machine.
    ArtifactError
        The file cannot be read.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise EngineError("There is no such device.", seen=repr(device), fix='device="auto", "cpu", "cuda" or "cuda:0"')
    if isinstance(candidate, Artifact) and candidate.manifest.format == "onnx":
        from accel_lib.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(candidate, device=device, threads=threads, **options)
    if isinstance(candidate, Artifact) and candidate.manifest.format == "tensorrt":
        from accel_lib.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(candidate, device=device, **options)
    from accel_lib.engines.torch import TorchEngine

    return TorchEngine(candidate, device=device, threads=threads, **options)
