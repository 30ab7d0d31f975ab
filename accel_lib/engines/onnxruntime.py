"""ONNX Runtime behind the engine protocol, on the provider that was asked for and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.batching import check_batch
from accel_lib.errors import ArtifactError, EngineError, require


class OnnxRuntimeEngine:
    """Run an ONNX artifact on CPU or CUDA.

    Parameters
    ----------
    artifact
        An artifact of format ``onnx``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    threads
        Threads for one operator (``intra_op_num_threads``).
    """

    def __init__(self, artifact: Artifact, *, device: str = "auto", threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="convert")
        provider = _provider(device, ort.get_available_providers())
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(artifact.path, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
            raise ArtifactError(
                f"ONNX Runtime cannot load {artifact.path.name} of {artifact.folder.name}.",
                seen=str(error).splitlines()[0],
                fix="convert the model again: accel.to_onnx(model)",
            ) from error
        got = self._session.get_providers()[0]
        wanted = provider[0] if isinstance(provider, tuple) else provider
        if got != wanted:
            raise EngineError(f"ONNX Runtime gave {got}, not {wanted}.", seen=got, fix='device="cpu"')
        manifest = artifact.manifest
        self.name = artifact.name
        self.device = "cpu" if wanted == "CPUExecutionProvider" else device.replace("auto", "cuda")
        self.precision = manifest.precision
        self.dimension = manifest.dimension
        self.max_length = manifest.max_length

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """int64 ``[batch, sequence]`` twice to float32 ``[batch, dimension]``."""
        check_batch(input_ids, attention_mask, self.max_length)
        (output,) = self._session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
        result: NDArray[np.float32] = output
        return result

    def close(self) -> None:
        """Drop the session and its arenas."""
        del self._session


def _provider(device: str, available: list[str]) -> Any:
    has_cuda = "CUDAExecutionProvider" in available
    if device == "cpu" or (device == "auto" and not has_cuda):
        return "CPUExecutionProvider"
    if not has_cuda:
        raise EngineError(
            "This ONNX Runtime has no CUDA.",
            seen=", ".join(available),
            fix="python -m pip install onnxruntime-gpu (and remove onnxruntime), or device='cpu'",
        )
    index = int(device.partition(":")[2] or 0)
    return ("CUDAExecutionProvider", {"device_id": index})
