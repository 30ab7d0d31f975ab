"""CUDA graphs over a few sizes, fed from pinned memory while the GPU is busy with what came before."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_GRAPHS = 64
_LEAST_TOKENS = 64
_STEPS = 16  # sizes between a power of two and the next, so that a batch is filled up by at most a sixteenth
_WARM_UPS = 3  # libraries pick kernels and allocate on first calls, which a graph must not hold


def bucket(tokens: int, texts: int) -> tuple[int, int]:
    """The size of graph that takes so many tokens and texts: few sizes, and little in vain.

    Texts are rounded up to a power of two, as an empty one costs next to nothing; tokens to one of sixteen sizes
    between powers of two, and to a multiple of 64 at least.

    Returns
    -------
    tuple of int
        Tokens and texts.
    """
    step = max(_LEAST_TOKENS, (1 << max(tokens - 1, 1).bit_length()) // (2 * _STEPS))
    return -(-tokens // step) * step, max(2, 1 << (texts - 1).bit_length())


class Graphs:
    """Run a network on ``[tokens]`` and ``[texts]`` of fixed sizes: captured once a size, then replayed.

    Parameters
    ----------
    module
        Takes what `accel_lib.models.varlen.flatten` gives, returns float32 ``[texts, dimension]``.
    device
        ``"cuda:N"``.

    Notes
    -----
    A batch is copied over in one piece from pinned memory by a stream of its own while the one before is computed;
    answers come back by a third stream. All graphs share one memory pool, which is safe as they are replayed one after
    the other and each answer is copied out before the next replay.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, module: torch.nn.Module, device: str) -> None:
        import torch

        self._module, self._device = module, device
        with torch.cuda.device(device):
            self._compute, self._to_gpu, self._to_host = (torch.cuda.Stream() for _ in range(3))  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        self._graph = functools.lru_cache(maxsize=_GRAPHS)(self._capture)

    def run(self, batches: Sequence[Sequence[NDArray[np.int64]]]) -> list[NDArray[np.float32]]:
        """Answers for several batches, each of one of `bucket`'s sizes; returns when the last one is there."""
        import torch

        answers: list[torch.Tensor] = []
        with torch.cuda.device(self._device), torch.inference_mode():
            for arrays in batches:
                graph, inputs, result = self._graph(tuple(map(len, arrays)))
                pinned = torch.empty(inputs.shape, dtype=torch.int64, pin_memory=True)
                np.concatenate(arrays, out=pinned.numpy())
                with torch.cuda.stream(self._to_gpu):
                    staged = pinned.to(self._device, non_blocking=True)
                self._compute.wait_stream(self._to_gpu)
                with torch.cuda.stream(self._compute):
                    staged.record_stream(self._compute)
                    inputs.copy_(staged, non_blocking=True)
                    graph.replay()
                    answer = result.clone()  # the next replay writes over it
                self._to_host.wait_stream(self._compute)
                with torch.cuda.stream(self._to_host):
                    answer.record_stream(self._to_host)
                    host = torch.empty(answer.shape, dtype=torch.float32, pin_memory=True)
                    host.copy_(answer, non_blocking=True)
                answers.append(host)
            self._to_host.synchronize()
        return [answer.numpy() for answer in answers]

    def _capture(self, sizes: tuple[int, ...]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        """A graph for inputs of these sizes, the buffer it reads and the one it writes."""
        import torch

        inputs = torch.zeros(sum(sizes), dtype=torch.int64, device=self._device)
        parts = torch.split(inputs, list(sizes))
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            for _ in range(_WARM_UPS):
                self._module(*parts)
        self._compute.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute):
            result = self._module(*parts).float()
        return graph, inputs, result


def supported(device: str) -> bool:
    """Whether a GPU has FlashAttention's kernels (compute capability 8.0 and up)."""
    import torch

    return device != "cpu" and torch.cuda.get_device_capability(device) >= (8, 0)
