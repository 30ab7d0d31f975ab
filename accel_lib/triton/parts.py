"""Triton's Python backend for part of a model, whose inputs need not be token ids; see `accel_lib.triton.backend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from accel_lib.engines.batching import CPU_BATCH_TOKENS, plan_batches
from accel_lib.engines.onnxruntime import Part
from accel_lib.errors import AccelError
from accel_lib.triton.backend import load_version, read_tensor, refusal, thread_count, write_tensor

_Tensors = dict[str, NDArray[Any]]


class TritonPythonModel:
    """A validated part of a model, or a whole one, behind Triton's Python backend interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's artifact; raises `ArtifactError` if it is damaged or not validated."""
        artifact, config, parameters = load_version(args)
        self._part = Part(artifact, threads=thread_count(config, parameters))
        self._names = [tensor["name"] for tensor in config["input"]]
        self._per_token = len(config["output"][0]["dims"]) > 1

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Respond to the requests of a batch, those of similar length together."""
        asked = [{name: read_tensor(request, name) for name in self._names} for request in requests]
        lengths = np.array([tensors["attention_mask"].shape[1] for tensors in asked], dtype=np.int64)
        answers: dict[int, Any] = {}
        for batch in plan_batches(lengths, max_batch_tokens=CPU_BATCH_TOKENS):
            try:
                outputs = self._run([asked[index] for index in batch])
            except AccelError as error:
                answers |= dict.fromkeys(batch.tolist(), refusal(error))
                continue
            for index, output in zip(batch.tolist(), outputs, strict=True):
                answers[index] = pb_utils.InferenceResponse([write_tensor(self._part.output, output)])
        return [answers[index] for index in range(len(requests))]

    def finalize(self) -> None:
        """Release what the session holds."""
        self._part.close()

    def _run(self, asked: Sequence[_Tensors]) -> list[NDArray[np.float32]]:
        """Outputs of requests that are padded to one length and run together."""
        widths = [tensors["attention_mask"].shape[1] for tensors in asked]
        padded = {name: np.concatenate([_pad(tensors[name], max(widths)) for tensors in asked]) for name in self._names}
        ends = np.cumsum([len(tensors["attention_mask"]) for tensors in asked])[:-1]
        outputs = np.split(self._part.run(padded), ends)
        return [part[:, :width] for part, width in zip(outputs, widths, strict=True)] if self._per_token else outputs


def _pad(array: NDArray[Any], width: int) -> NDArray[Any]:
    """``[rows, tokens, …]`` with zeros behind the tokens; what is masked may be anything."""
    missing = [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, missing)
