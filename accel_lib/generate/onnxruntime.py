"""ONNX Runtime behind the protocol: an exported decoder on a CPU or with CUDA, in static batches.

It proves what `accel_lib.convert.generation_onnx` wrote, and runs what no other engine here does, such as windows and
capped scores. Batches that nobody joins are what its cache allows: one tensor a layer, as long for each row. For
continuous batching convert to OpenVINO.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.onnxruntime import open_session
from accel_lib.errors import EngineError, require
from accel_lib.generate.static import StaticBatchEngine

_FILE_INPUTS = ("input_ids", "attention_mask", "position_ids")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork:
    """An exported decoder, called as transformers' network is; its cache stays where it is computed.

    Parameters
    ----------
    artifact
        Of task generation and format onnx.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    threads
        CPU threads for one operator; None leaves them to ONNX Runtime.
    graph
        A serialized graph to run instead of the artifact's own, operator by operator.
    """

    def __init__(
        self, artifact: Artifact, *, device: str = "auto", threads: int | None = None, graph: bytes | None = None
    ) -> None:
        manifest = artifact.manifest
        if (manifest.task, manifest.format) != ("generation", "onnx"):
            raise EngineError(
                "This engine runs language models that were converted to ONNX.",
                seen=f"{artifact.name}, {manifest.task}",
                fix="accel.to_onnx(accel.load_model('SmolLM2-135M-Instruct'))",
            )
        self._ort = require("onnxruntime", extra="convert")
        self._session, _ = open_session(
            artifact, device=device, threads=threads, allow_spinning=False, fusions=graph is None, graph=graph
        )
        self.device = "cuda" if "CUDA" in self._session.get_providers()[0] else "cpu"
        self._caches = self._session.get_inputs()[len(_FILE_INPUTS) :]
        self._outputs = [output.name for output in self._session.get_outputs()]

    def forward(
        self, *, input_ids: Any, attention_mask: Any, position_ids: Any, cache: Any = None, use_cache: bool = True
    ) -> SimpleNamespace:
        """One step: tensors int64 ``[batch, new]`` and ``[batch, past + new]``, and the cache of the last step.

        Raises
        ------
        EngineError
            ONNX Runtime refused it.
        """
        torch = require("torch", extra="models")
        binding = self._session.io_binding()
        for name, tensor in zip(_FILE_INPUTS, (input_ids, attention_mask, position_ids), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(tensor.cpu().numpy()))
        for port, held in zip(self._caches, cache or self._empty(len(input_ids)), strict=True):
            binding.bind_ortvalue_input(port.name, held)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == self._outputs[0] else self.device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
            raise EngineError(
                "ONNX Runtime refused a step.",
                seen=str(error).splitlines()[0],
                fix="fewer rows where memory ran out; else convert the model again: accel.to_onnx(model)",
            ) from error
        logits, *present = binding.get_outputs()
        found = torch.from_numpy(logits.numpy()).to(self.device)
        return SimpleNamespace(logits=found, past_key_values=present if use_cache else None)

    __call__ = forward

    def _empty(self, rows: int) -> list[Any]:
        shape = (rows, self._caches[0].shape[1], 0, self._caches[0].shape[3])
        return [
            self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=_TYPES[port.type])) for port in self._caches
        ]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens, float32 ``[tokens, vocabulary]``."""
        torch = require("torch", extra="models")
        tokens = torch.tensor([list(ids)])
        found = self.forward(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            position_ids=torch.arange(tokens.shape[1])[None],
            use_cache=False,
        )
        values: NDArray[np.float32] = found.logits[0].float().cpu().numpy()
        return values


class OnnxEngine(StaticBatchEngine):
    """Static batches of an exported decoder.

    Parameters
    ----------
    artifact
        What `accel_lib.convert.generation_onnx.generation_to_onnx` wrote.
    rows, cache_tokens
        As of `StaticBatchEngine`.
    device, threads
        As of `OnnxNetwork`.
    network
        One that is open already.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        rows: int = 8,
        cache_tokens: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        network: OnnxNetwork | None = None,
    ) -> None:
        network = network or OnnxNetwork(artifact, device=device, threads=threads)
        manifest = artifact.manifest
        parts: Any = SimpleNamespace(
            network=network,
            stop_ids=manifest.stop_ids,
            context_tokens=manifest.max_length,
            vocabulary=manifest.dimension,
        )
        super().__init__(parts, rows=rows, cache_tokens=cache_tokens)
        self.name, self.precision = artifact.name, manifest.precision
