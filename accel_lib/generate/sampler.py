"""Chooses tokens of many requests at once, on the device of their logits, by operations that fit into a CUDA graph.

Each request brings its own settings, in tables on the device with a row a slot. Chance is a number from seed and place
alone, so a seed gives the same text beside any others.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel_lib.generate import Sampling
from accel_lib.models.paged_decoder import Operations
from accel_lib.models.paged_operations import LEAST_TEMPERATURE, STEP, mixed

TOP_LOGPROBS = 20
NOT_FINITE = -1  # instead of a token: the logits are no numbers

_NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty")
_SIMPLE = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "logprobs": None,
}
_UNFILTERED = {"top_p": 1.0, "top_k": 0}


class Chosen(NamedTuple):
    """Tokens int64 ``[rows]``; in mode full their log probabilities and the likeliest ``[rows, alternatives]``."""

    ids: Tensor
    logprobs: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class Mode(enum.IntEnum):
    """What the requests of a batch need; each mode chooses as a simpler one would where that is enough."""

    GREEDY = 0
    SAMPLED = 1
    FULL = 2

    @classmethod
    def of(cls, sampling: Sampling) -> Mode:
        """The simplest for one request; the largest of a batch serves it."""
        simple = _SIMPLE | (_UNFILTERED if sampling.temperature > 0 else {})
        if any(getattr(sampling, name) != value for name, value in simple.items()):
            return cls.FULL
        return cls.SAMPLED if sampling.temperature > 0 else cls.GREEDY


class Sampler:
    """Settings and counts of the requests in each slot.

    Parameters
    ----------
    slots
        Of requests; one more is for rows that fill a batch up.
    vocabulary
        Numbers in a row of logits.
    operations
        Which add the noise.
    """

    def __init__(self, slots: int, vocabulary: int, device: str, operations: Operations) -> None:
        self._size, self._device, self._operations = (slots + 1, vocabulary), device, operations
        self._numbers = torch.ones((slots + 1, len(_NUMBERS)), device=device)
        self._seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._least = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._made = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._counts: Tensor | None = None
        self._prompts: Tensor | None = None
        self._stops: Tensor | None = None

    def start(self, slots: Tensor, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling],
              stops: Sequence[frozenset[int]]) -> None:  # fmt: skip
        """Put new requests into slots, an int64 tensor on the device."""
        numbers = [[float(getattr(each, name)) for name in _NUMBERS] for each in samplings]
        seeds = [random.getrandbits(63) if each.seed is None else each.seed for each in samplings]
        whole = self._moved(torch.tensor([seeds, [each.min_tokens for each in samplings]]))
        self._numbers.index_copy_(0, slots, self._moved(torch.tensor(numbers)))
        self._seeds.index_copy_(0, slots, whole[0])
        self._least.index_copy_(0, slots, whole[1])
        self._made.index_fill_(0, slots, 0)
        for row, (prompt, sampling, stop) in enumerate(zip(prompts, samplings, stops, strict=True)):
            if Mode.of(sampling) is Mode.FULL:
                self._start_full(slots[row : row + 1], prompt, stop)

    def _start_full(self, slot: Tensor, prompt: Sequence[int], stops: frozenset[int]) -> None:
        counts, prompts, held = self._tables()
        counts.index_fill_(0, slot, 0)
        for table, ids in ((prompts, sorted({*prompt})), (held, sorted(stops))):
            marks = torch.zeros(self._size[1], dtype=torch.bool)
            marks[ids] = True
            table.index_copy_(0, slot, self._moved(marks)[None])

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens made, of the prompt, and of an end, for each slot; there once a request needs them."""
        if self._counts is None or self._prompts is None or self._stops is None:
            self._counts = torch.zeros(self._size, dtype=torch.int32, device=self._device)
            self._prompts = torch.zeros(self._size, dtype=torch.bool, device=self._device)
            self._stops = torch.zeros(self._size, dtype=torch.bool, device=self._device)
        return self._counts, self._prompts, self._stops

    def _moved(self, values: Tensor) -> Tensor:
        return values.pin_memory().to(self._device, non_blocking=True) if self._device != "cpu" else values

    def choose(self, logits: Tensor, slots: Tensor, mode: Mode) -> Chosen:
        """The next token of each row, ``[rows, vocabulary]``, and one more in the counts of its slot.

        The noise is Gumbel's, which makes the largest sum a sample, and hardly another one where logits differ by a
        rounding: https://arxiv.org/abs/1411.0030
        """
        best, ids = logits.max(dim=-1)
        finite = best.isfinite()
        chosen = Chosen(ids)
        if mode is not Mode.GREEDY:
            changed = self._filtered(self._penalized(logits.float(), slots), slots) if mode is Mode.FULL else logits
            keys = mixed(self._seeds[slots] + (self._made[slots] + 1) * STEP)
            ids = self._operations.add_noise(changed, self._numbers[slots, 0], keys).argmax(dim=-1)
            chosen = Chosen(ids)
        if mode is Mode.FULL:
            chosen = _with_logprobs(logits, ids)
            counts = self._tables()[0].view(-1)
            counts.scatter_add_(0, slots * self._size[1] + ids, torch.ones_like(ids, dtype=torch.int32))
        self._made.index_copy_(0, slots, self._made[slots] + 1)
        return chosen._replace(ids=torch.where(finite, ids, NOT_FINITE))

    def _penalized(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Repetition over prompt and answer, presence and frequency over the answer; no end before its time."""
        counts, prompts, stops = (table[slots] for table in self._tables())
        repetition, presence, frequency = self._numbers[slots, 3:, None].unbind(1)
        made = counts > 0
        scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
        changed = torch.where(made | prompts, scaled, logits) - presence * made - frequency * counts
        early = (self._made[slots] < self._least[slots])[:, None]
        return changed.masked_fill(early & stops, -torch.inf)

    def _filtered(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Only what `top_k` and `top_p` leave; the likeliest always."""
        temperature, top_p, top_k = self._numbers[slots, :3, None].unbind(1)
        shares = (logits / temperature.clamp(min=LEAST_TEMPERATURE)).softmax(dim=-1)
        ranked, order = shares.sort(dim=-1, descending=True)
        rank = torch.arange(ranked.shape[-1], device=logits.device)
        kept = ((ranked.cumsum(-1) - ranked < top_p) | (top_p == 1)) & ((rank < top_k) | (top_k == 0))
        kept[:, 0] = True
        return logits.masked_fill(~torch.zeros_like(kept).scatter(1, order, kept), -torch.inf)


def _with_logprobs(logits: Tensor, ids: Tensor) -> Chosen:
    """As the network gives them, before penalties and temperature."""
    shares = logits.float().log_softmax(dim=-1)
    top, top_ids = shares.topk(min(TOP_LOGPROBS, logits.shape[-1]))
    return Chosen(ids, shares.gather(1, ids[:, None])[:, 0], top_ids, top)
