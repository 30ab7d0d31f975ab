"""Passes of a paged decoder over prompts and over running rows, each started without waiting for the one before.

What a pass needs of the last one (tokens, lengths) stays on the device. On a GPU each pass is a CUDA graph of one of a
few sizes, captured once and replayed; rows that fill a size up belong to a slot of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accel_lib.engines.cuda_graphs import WARM_UPS, GraphCache, Size
from accel_lib.generate.sampler import Chosen, Mode, Sampler
from accel_lib.models.paged_decoder import PAGE_TOKENS, PagedDecoder

BLOCK_TOKENS = 16  # of a prompt, at a time: one product on tensor cores
_LEAST_CONTEXT = 512
_LEAST_PROMPT = 64
_GRAPHS = 256
_PROMPT, _DECODE, _CHOOSE = range(3)  # the kinds of a pass, first number of its size


class Piece(NamedTuple):
    """Tokens of one prompt, in a slot, from a position on."""

    slot: int
    ids: Sequence[int]
    position: int


class Answer:
    """Tokens that a pass chooses; `wait` returns them once they are there."""

    def __init__(self, chosen: Chosen) -> None:
        self._ready: torch.cuda.Event | None = None
        self._values = chosen
        if chosen.ids.is_cuda:
            self._values = Chosen(
                _to_host(chosen.ids), *(None if each is None else _to_host(each) for each in chosen[1:])
            )
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def wait(self) -> Chosen:
        """The tokens, in the host's memory."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values


def _to_host(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


class Passes:
    """A decoder with the state of its rows.

    Parameters
    ----------
    decoder
        On its device.
    slots
        Requests at once.
    step_tokens
        Most tokens of prompts in a pass, a multiple of 16.
    context_tokens
        Most tokens of a request.
    """

    def __init__(self, decoder: PagedDecoder, *, slots: int, step_tokens: int, context_tokens: int) -> None:
        self.device = str(decoder.embedding.device)
        self.step_tokens = step_tokens
        self._decoder, self._slots, self._context = decoder, slots, context_tokens
        vocabulary, width = decoder.head.weight.shape[0], decoder.embedding.shape[1]
        rows, tokens = _rows_size(slots), _prompt_size(step_tokens)
        self._tables = self._zeros(slots + 1, -(-context_tokens // PAGE_TOKENS), dtype=torch.int32)
        self._last, self._lengths = self._zeros(2, slots + 1)
        self._tokens = self._zeros(3 * tokens)
        self._picked = self._zeros(2 * rows)
        self._there: list[int] = []  # what `_picked` holds, as the host knows it
        self._positions = self._zeros(max(rows, tokens))
        self._total = self._zeros(max(rows, tokens), width, dtype=torch.float32)
        self._sampler = Sampler(slots, vocabulary, self.device, decoder.operations)
        self._stream: torch.cuda.Stream | None = None
        self._graph: GraphCache[tuple[torch.cuda.CUDAGraph, Chosen | None]] | None = None
        if self.device != "cpu":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._graph = GraphCache(self._captured, new_pool=torch.cuda.graph_pool_handle, most=_GRAPHS)
            torch.cuda.synchronize(self.device)  # what was made above, by another stream

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything below is called inside this."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
                yield

    def warm_up(self) -> None:
        """Capture what most requests need, larger sizes first: smaller ones use their memory again."""
        if self._graph is None:
            return
        tokens = _prompt_size(self.step_tokens)
        while tokens >= _LEAST_PROMPT:
            self._graph((_PROMPT, tokens, self._plan(tokens, BLOCK_TOKENS, 1)), tokens=1)
            tokens //= 2
        for rows in sorted({_rows_size(each) for each in range(1, self._slots + 1)}, reverse=True):
            self._graph((_DECODE, rows, self._plan(rows, 1, 1)), tokens=1)
            for mode in (Mode.GREEDY, Mode.SAMPLED):
                self._graph((_CHOOSE, rows, mode), tokens=1)

    def start(self, slots: Sequence[int], tables: Sequence[Sequence[int]], *settings: Any) -> None:
        """Put new requests into slots, with their pages; `settings` are those of `Sampler.start`."""
        where = self._moved(np.array(slots, dtype=np.int64))
        rows = np.zeros((len(slots), self._tables.shape[1]), dtype=np.int32)
        for row, pages in zip(rows, tables, strict=True):
            row[: len(pages)] = pages
        self._tables.index_copy_(0, where, self._moved(rows))
        self._sampler.start(where, *settings)

    def prompt(self, pieces: Sequence[Piece]) -> list[int]:
        """Compute parts of prompts, each in whole blocks; returns where each one's last token stands."""
        padded = [in_blocks(len(piece.ids)) for piece in pieces]
        tokens = _prompt_size(sum(padded)) if self._graph else sum(padded)
        arrays = np.zeros((3, tokens), dtype=np.int64)
        arrays[1] = self._slots
        ends, start = [], 0
        for piece, taken in zip(pieces, padded, strict=True):
            end = start + len(piece.ids)
            arrays[0, start:end], arrays[1, start:end] = piece.ids, piece.slot
            arrays[2, start:end] = np.arange(piece.position, piece.position + len(piece.ids))
            ends.append(end - 1)
            start += taken
        context = max(piece.position + len(piece.ids) for piece in pieces)
        size = _PROMPT, tokens, self._plan(tokens, BLOCK_TOKENS, context)
        self._run(size, lambda: self._tokens[: 3 * tokens].copy_(self._moved(arrays.reshape(-1))))
        return ends

    def decode(self, slots: Sequence[int], context: int, mode: Mode) -> Answer:
        """One token more for each of these slots, the longest of which has `context` tokens with it."""
        rows, places = self._rows(slots), range(len(slots))
        self._run((_DECODE, rows, self._plan(rows, 1, context)), lambda: self._pick(slots, places))
        return self.choose(slots, places, mode)

    def choose(self, slots: Sequence[int], ends: Sequence[int], mode: Mode) -> Answer:
        """The next tokens of slots whose last token stands at these places of the pass before."""
        size = _CHOOSE, self._rows(slots), mode
        return Answer(self._run(size, lambda: self._pick(slots, ends)) or Chosen(self._last[:0]))

    def _rows(self, slots: Sequence[int]) -> int:
        return _rows_size(len(slots)) if self._graph else len(slots)

    def _plan(self, tokens: int, block: int, context: int) -> int:
        """Contexts are rounded up to few sizes too, where each is a graph."""
        bound = _LEAST_CONTEXT if self._graph else context
        while bound < context:
            bound *= 4
        shape, plan = self._decoder.shape, self._decoder.operations.plan
        return plan(shape, blocks=tokens // block, block=block, context=min(bound, self._context))

    def _pick(self, slots: Sequence[int], ends: Sequence[int]) -> None:
        rest = self._rows(slots) - len(slots)
        wanted = [*slots, *[self._slots] * rest, *ends, *[0] * rest]
        if wanted != self._there:
            self._picked[: len(wanted)].copy_(self._moved(np.array(wanted, dtype=np.int64)), non_blocking=True)
            self._there = wanted

    def _moved(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._graph else tensor

    def _run(self, size: Size, fill: Callable[[], object]) -> Chosen | None:
        """A pass over what `fill` puts into its inputs: replayed from a graph where there are graphs."""
        if self._graph is None:
            fill()
            return self._compute(size)
        graph, chosen = self._graph(size, tokens=1)  # which may capture it, and so overwrite the inputs
        fill()
        graph.replay()
        return chosen

    def _compute(self, size: Size) -> Chosen | None:
        kind, rows, detail = size
        if kind == _CHOOSE:
            slots, ends = self._picked[: 2 * rows].view(2, rows)
            chosen = self._sampler.choose(self._decoder.logits(self._total[ends]), slots, Mode(detail))
            self._last.index_copy_(0, slots, chosen.ids.clamp(min=0))
            self._lengths.index_copy_(0, slots, (self._positions[ends] + 1) * (slots < self._slots))
            return chosen
        if kind == _PROMPT:
            ids, slots, positions = self._tokens[: 3 * rows].view(3, rows)
        else:
            slots = self._picked[:rows]
            ids, positions = self._last[slots], self._lengths[slots]
        self._positions[:rows].copy_(positions)
        block = BLOCK_TOKENS if kind == _PROMPT else 1
        total = self._total[:rows]
        self._decoder.forward(ids, slots, positions, self._tables, total=total, block=block, plan=detail)
        return None

    def _captured(self, size: Size, pool: Any) -> tuple[torch.cuda.CUDAGraph, Chosen | None]:
        """A graph, recorded on rows that belong to nobody."""
        nobody = self._slots
        if size[0] == _PROMPT:
            self._tokens[: 3 * size[1]].view(3, -1).copy_(self._tokens.new_tensor([[0], [nobody], [0]]))
        else:
            self._picked[: 2 * size[1]].view(2, -1).copy_(self._picked.new_tensor([[nobody], [0]]))
        self._there = []
        for _ in range(WARM_UPS):
            self._compute(size)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            chosen = self._compute(size)
        return graph, chosen


def in_blocks(tokens: int) -> int:
    """Tokens of a prompt with those that fill its last block up."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def _rows_size(rows: int) -> int:
    """The size of graph for that many rows: a power of two, or the middle of two of them."""
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if power > 2 and rows <= power * 3 // 4 else power


def _prompt_size(tokens: int) -> int:
    return max(_LEAST_PROMPT, 1 << (tokens - 1).bit_length())
