"""CUDA graphs over a few sizes, fed from pinned memory while the GPU is busy with what came before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from accel_lib.ragged import Ragged

if TYPE_CHECKING:
    import torch

Size = tuple[int, ...]
Captured = TypeVar("Captured")

_GRAPHS = 64
_LEAST_TOKENS = 64
_STEPS = 16  # sizes between a power of two and the next, so that a batch is filled up by at most a sixteenth
WARM_UPS = 3  # libraries pick kernels and allocate on first calls, which a graph must not hold


def bucket(tokens: int, texts: int) -> tuple[int, int]:
    """The size of graph that takes that many tokens and texts: few sizes, and little in vain.

    Texts are rounded up to a power of two, as an empty one costs next to nothing; tokens to one of sixteen sizes
    between powers of two, and to a multiple of 64 at least.

    Returns
    -------
    tuple of int
        Tokens and texts.
    """
    step = max(_LEAST_TOKENS, (1 << max(tokens - 1, 1).bit_length()) // (2 * _STEPS))
    return -(-tokens // step) * step, max(2, 1 << (texts - 1).bit_length())


class GraphCache(Generic[Captured]):
    """What was captured, by its size, in one memory pool; those used last are kept.

    Parameters
    ----------
    capture
        Takes a size and the pool that its graph is to allocate from.
    new_pool
        Makes a pool, as `torch.cuda.graph_pool_handle` does.
    most
        Sizes that are kept.

    Notes
    -----
    Graphs that are replayed in turn, with their answers copied out before the next replay, can share a pool. A pool
    gives nothing back before its last graph is gone, though, and a larger size cannot use the pieces that smaller ones
    left: captured in ascending order, each size would add its own memory. So one with more tokens than any before it
    starts a new pool, and smaller ones are captured again when they are next asked for.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, capture: Callable[[Size, Any], Captured], *, new_pool: Callable[[], Any], most: int) -> None:
        self._capture, self._new_pool, self._most = capture, new_pool, most
        self._held: OrderedDict[Size, Captured] = OrderedDict()
        self._largest = 0
        self._pool: Any = None

    def __call__(self, size: Size, *, tokens: int) -> Captured:
        """What was captured for a size, which computes on that many tokens."""
        if size in self._held:
            self._held.move_to_end(size)
            return self._held[size]
        if tokens > self._largest:
            self._held.clear()
            self._largest, self._pool = 0, self._new_pool()
        elif len(self._held) == self._most:
            self._held.popitem(last=False)
        self._held[size] = self._capture(size, self._pool)
        self._largest = max(self._largest, tokens)
        return self._held[size]


class Graphs:
    """Run a network over concatenated texts by graphs of few sizes: captured once a size, then replayed.

    Parameters
    ----------
    module
        Takes token ids ``[tokens]``, offsets ``[texts + 1]`` and, with `segments`, segment ids ``[tokens]``, as
        `accel_lib.models.varlen.FromOffsets` does; returns ``[texts, dimension]``.
    device
        ``"cuda:N"``.
    segments
        Whether the network tells the texts of a pair apart.

    Notes
    -----
    One stream copies a batch over from pinned memory, in one piece, computes it and copies its answers back, while the
    host prepares the next one.
    """

    def __init__(self, module: torch.nn.Module, device: str, *, segments: bool) -> None:
        import torch

        self._module, self._device, self._segments = module, device, segments
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph = GraphCache(self._capture, new_pool=torch.cuda.graph_pool_handle, most=_GRAPHS)

    def run(self, batches: Sequence[Ragged]) -> list[NDArray[np.float32]]:
        """``[rows, dimension]`` for each of several batches; returns when the last one is there."""
        import torch

        answers: list[torch.Tensor] = []
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream), torch.inference_mode():
            for rows in batches:
                size = bucket(len(rows.ids), len(rows))
                graph, inputs, result = self._graph(size, tokens=size[0])
                pinned = torch.empty(inputs.shape, dtype=torch.int64, pin_memory=True)
                fill(np.split(pinned.numpy(), self._ends(size)), rows)
                inputs.copy_(pinned, non_blocking=True)
                graph.replay()
                host = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
                host.copy_(result, non_blocking=True)
                answers.append(host)
            self._stream.synchronize()
        return [answer.numpy()[: len(rows)] for answer, rows in zip(answers, batches, strict=True)]

    def _ends(self, size: Size) -> list[int]:
        """Where the inputs of a graph end in its buffer, but for the last one."""
        tokens, texts = size
        return [tokens, tokens + texts + 1] if self._segments else [tokens]

    def _capture(self, size: Size, pool: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        """A graph for that many tokens and texts, the buffer it reads and the one it writes."""
        import torch

        tokens, texts = size
        inputs = torch.zeros((1 + self._segments) * tokens + texts + 1, dtype=torch.int64, device=self._device)
        parts = torch.tensor_split(inputs, self._ends(size))
        for _ in range(WARM_UPS):
            self._module(*parts)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            result = self._module(*parts).float()
        return graph, inputs, result


def fill(arrays: Sequence[NDArray[np.int64]], rows: Ragged) -> None:
    """Write token ids, offsets and, if there is a third array, segment ids of some rows; what is left over is empty."""
    ids, offsets, *kinds = arrays
    real = len(rows.ids)
    ids[:real], ids[real:] = rows.ids, 0
    offsets[0], offsets[len(rows) + 1 :] = 0, real
    np.cumsum(rows.lengths, out=offsets[1 : len(rows) + 1])
    for segments in kinds:
        segments[:] = 0
        if rows.segments is not None:
            segments[:real] = rows.segments


def supported(device: str) -> bool:
    """Whether a GPU has FlashAttention's kernels (compute capability 8.0 and up)."""
    import torch

    return device != "cpu" and torch.cuda.get_device_capability(device) >= (8, 0)
