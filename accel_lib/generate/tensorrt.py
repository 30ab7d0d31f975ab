"""TensorRT behind the protocol: a language model's engine on the GPU it was built for, in static batches.

A prompt passes alone and in pieces, a decode step with all rows, as `accel_lib.convert.generation_onnx` lays the
engine's profiles out. For continuous batching on a GPU generate with PyTorch: `accel_lib.generate.torch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.tensorrt import LoadedEngine, profile_for
from accel_lib.errors import require
from accel_lib.generate.static import StaticBatchEngine

_DECODE, _PROMPT = range(2)  # places of the profiles


class TensorRTNetwork:
    """A language model's engine, called as transformers' network is; its cache stays on the GPU.

    Parameters
    ----------
    artifact
        Of task generation and format tensorrt.
    device
        ``"auto"``, ``"cuda"`` or ``"cuda:N"``.

    Its errors are those of `accel_lib.engines.tensorrt.TensorRTEngine`.
    """

    def __init__(self, artifact: Artifact, *, device: str = "auto") -> None:
        torch = require("torch", extra="models")
        self.profiles = artifact.manifest.profiles
        self._loaded = LoadedEngine(artifact, device, {})
        self.device = self._loaded.device
        self._inputs, self._outputs = (self._loaded.tensors(mode) for mode in ("INPUT", "OUTPUT"))
        self._types = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64}
        self._nothing = torch.empty(1, device=self.device)  # TensorRT wants an address for an empty tensor too

    def forward(
        self, *, input_ids: Any, attention_mask: Any, position_ids: Any, cache: Any = None, use_cache: bool = True
    ) -> SimpleNamespace:
        """Prompts or one decode step: tensors int64 ``[batch, new]``, and the cache of the last call.

        Returns logits of the last tokens, ``[batch, 1, vocabulary]``, and the cache.
        """
        torch = require("torch", extra="models")
        given = (input_ids, attention_mask, position_ids)
        if cache is not None:
            logits, present = self.step(*given, cache)
        else:
            rows = [self._prompt(*row) for row in zip(*(each.split(1) for each in given), strict=True)]
            logits = torch.cat([found[:, -1:] for found, _ in rows])
            present = [torch.cat(parts) for parts in zip(*(held for _, held in rows), strict=True)]
        return SimpleNamespace(logits=logits, past_key_values=present if use_cache else None)

    __call__ = forward

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens, float32 ``[tokens, vocabulary]``."""
        torch = require("torch", extra="models")
        tokens = torch.tensor([list(ids)], device=self.device)
        found, _ = self._prompt(tokens, torch.ones_like(tokens), torch.arange(len(ids), device=self.device)[None])
        values: NDArray[np.float32] = found[0].float().cpu().numpy()
        return values

    def _prompt(self, ids: Any, mask: Any, positions: Any) -> tuple[Any, list[Any]]:
        """The logits of a prompt's tokens, and its cache; it is read in pieces that the profile holds."""
        torch = require("torch", extra="models")
        most, tokens, cache = self.profiles[_PROMPT].max[1], ids.shape[1], self.empty()
        found = []
        for start in range(0, tokens, most):
            end = min(start + most, tokens)
            logits, cache = self.step(ids[:, start:end], mask[:, :end], positions[:, start:end], cache)
            found.append(logits)
        return torch.cat(found, dim=1), cache

    def empty(self) -> list[Any]:
        """The cache of one row before its first token."""
        torch = require("torch", extra="models")
        _, _, _, *caches = self._inputs.values()
        return [
            torch.empty((1, heads, 0, size), dtype=self._types[kind], device=self.device)
            for (_, heads, _, size), kind in caches
        ]

    def step(self, ids: Any, mask: Any, positions: Any, cache: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Logits ``[batch, new, vocabulary]`` and the cache with the new tokens, once the GPU is done."""
        torch = require("torch", extra="models")
        stream = self._loaded.stream
        shape = (*ids.shape, mask.shape[1] - ids.shape[1])
        context = self._loaded.contexts[profile_for(self.profiles, shape)]
        fed = [tensor.contiguous() for tensor in (ids, mask, positions, *cache)]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        for name, tensor in zip(self._inputs, fed, strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
        made = [
            torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._types[kind], device=self.device)
            for name, (_, kind) in self._outputs.items()
        ]
        tensors = zip([*self._inputs, *self._outputs], [*fed, *made], strict=True)
        addresses = {name: (tensor if tensor.numel() else self._nothing).data_ptr() for name, tensor in tensors}
        with torch.cuda.device(self.device):
            self._loaded.enqueue(context, addresses, shape)
        stream.synchronize()
        logits, *present = made
        return logits, present

    def close(self) -> None:
        """Free the GPU."""
        self._loaded.close()


class TensorRTEngine(StaticBatchEngine):
    """Static batches of a language model's TensorRT engine.

    Parameters
    ----------
    artifact
        What `accel_lib.to_tensorrt` built from a language model in ONNX.
    rows
        Requests in a batch; as many as its decode profile holds at most.
    device
        As of `TensorRTNetwork`, whose errors these are.
    network
        One that is open already.
    """

    def __init__(
        self, artifact: Artifact, *, rows: int = 8, device: str = "auto", network: TensorRTNetwork | None = None
    ) -> None:
        self._own = None if network else TensorRTNetwork(artifact, device=device)
        manifest = artifact.manifest
        most, _, cached = manifest.profiles[_DECODE].max
        parts: Any = SimpleNamespace(
            network=network or self._own,
            stop_ids=manifest.stop_ids,
            context_tokens=cached + 1,
            vocabulary=manifest.dimension,
        )
        super().__init__(parts, rows=min(rows, most))
        self.name, self.precision = artifact.name, manifest.precision

    def close(self) -> None:
        """Forget the batch and what waits, and free the GPU of what was opened here."""
        super().close()
        if self._own is not None:
            self._own.close()
