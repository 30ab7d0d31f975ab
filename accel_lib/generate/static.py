"""Static batching by transformers' forward pass: what continuous batching is compared with.

A batch is padded on the left and runs until its last request has ended; what came meanwhile waits. With one row it is
generation one by one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel_lib.errors import RequestError, require
from accel_lib.generate import Event, Finish, Limits, Sampling, Stats
from accel_lib.generate.requests import check_request

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

_UNSUPPORTED = frozenset(
    {"min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs", "json_schema"}
)


@dataclasses.dataclass
class _Row:
    key: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int]
    generator: Any = None
    made: int = 0
    finish: Finish | None = None


class StaticBatchEngine:
    """Batches that nobody joins and nobody leaves.

    Parameters
    ----------
    model
        A causal language model; its network is used as it is.
    rows
        Requests in a batch; 1 for one by one.
    cache_tokens
        Prompts and answers of a batch together; None takes the whole context for each.
    """

    precision = "fp32"

    def __init__(self, model: GenerationModel, *, rows: int = 8, cache_tokens: int | None = None) -> None:
        self._torch = require("torch", extra="models")
        self._network: Any = model.network
        newer = "cache" in inspect.signature(self._network.forward).parameters  # transformers renames it by family
        self._cache_name = "cache" if newer else "past_key_values"
        self.name = "one by one" if rows == 1 else f"static batches of {rows}"
        self.device = str(self._network.device)
        self.stop_ids = model.stop_ids
        self.limits = Limits(
            rows=rows,
            cache_tokens=cache_tokens or rows * model.context_tokens,
            context_tokens=model.context_tokens,
            vocabulary=model.vocabulary,
            unsupported=_UNSUPPORTED,
        )
        self._waiting: list[_Row] = []
        self._batch: list[_Row] = []
        self._cancelled: list[Event] = []
        self._past: Any = None
        self._stats = Stats(
            running=0, waiting=0, cache_use=0.0, steps=0, prompt_tokens=0, cached_tokens=0, generated_tokens=0
        )

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request, for the next batch; raises `RequestError` for one that it does not hold or honour."""
        check_request(self.limits, prompt_ids, sampling)
        if any(row.key == key for row in self._live()):
            raise RequestError("A request of that key is live.", seen=key, fix="give each request a key of its own")
        stops = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.stop_ids))
        generator = self._torch.Generator(device=self.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        self._waiting.append(_Row(key, tuple(prompt_ids), sampling, stops, generator))

    def _live(self) -> list[_Row]:
        return [row for row in (*self._batch, *self._waiting) if row.finish is None]

    def cancel(self, key: str) -> None:
        """End a request; its row stays in the batch until that has ended."""
        for row in self._live():
            if row.key == key:
                row.finish = "cancelled"
                self._cancelled.append(Event(key=key, finish="cancelled"))
        self._waiting = [row for row in self._waiting if row.finish is None]

    def step(self) -> list[Event]:
        """A token for each row of the batch; a new batch where the last has ended."""
        events, self._cancelled = self._cancelled, []
        if all(row.finish for row in self._batch):
            self._batch = self._next_batch()
            if not self._batch:
                return events
            self._begin()
        with self._torch.inference_mode():
            output = self._network(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                use_cache=True,
                **{self._cache_name: self._past},
            )
        self._past = output.past_key_values
        chosen = [self._chosen(row, output.logits[place, -1]) for place, row in enumerate(self._batch)]
        events += [event for row, token in zip(self._batch, chosen, strict=True) if (event := _event(row, token))]
        self._advance(chosen)
        made = sum(len(event.token_ids) for event in events)
        self._stats = dataclasses.replace(
            self._stats, steps=self._stats.steps + 1, generated_tokens=self._stats.generated_tokens + made
        )
        return events

    def _next_batch(self) -> list[_Row]:
        """Who comes next, in order, as long as the longest prompt and the longest answer together fit the context."""
        taken: list[_Row] = []
        for row in self._waiting[: self.limits.rows]:
            both = [*taken, row]
            longest = max(len(each.prompt_ids) for each in both) + max(each.sampling.max_tokens for each in both)
            if taken and longest > self.limits.context_tokens:
                break
            taken.append(row)
        del self._waiting[: len(taken)]
        return taken

    def _begin(self) -> None:
        longest = max(len(row.prompt_ids) for row in self._batch)
        padding = [longest - len(row.prompt_ids) for row in self._batch]
        rows = [[0] * pad + list(row.prompt_ids) for pad, row in zip(padding, self._batch, strict=True)]
        masks = [[0] * pad + [1] * (longest - pad) for pad in padding]
        self._ids = self._torch.tensor(rows, device=self.device)
        self._mask = self._torch.tensor(masks, device=self.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._past = None
        prompts = sum(len(row.prompt_ids) for row in self._batch)
        self._stats = dataclasses.replace(self._stats, prompt_tokens=self._stats.prompt_tokens + prompts)

    def _advance(self, chosen: list[int]) -> None:
        self._ids = self._torch.tensor(chosen, device=self.device)[:, None]
        self._mask = self._torch.cat([self._mask, self._torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    def _chosen(self, row: _Row, logits: Any) -> int:
        sampling = row.sampling
        if row.finish or sampling.temperature == 0:
            return int(logits.argmax())
        ranked, order = (logits.float() / sampling.temperature).sort(descending=True)
        shares = ranked.softmax(-1)
        keep = shares.cumsum(-1) - shares < sampling.top_p
        if sampling.top_k:
            keep[sampling.top_k :] = False
        keep[0] = True
        place = self._torch.multinomial(shares * keep, 1, generator=row.generator)
        return int(order[place])

    def stats(self) -> Stats:
        """Counts since the start; the cache is what the batch's tokens take."""
        held = sum(len(row.prompt_ids) + row.made for row in self._batch if row.finish is None)
        running = sum(row.finish is None for row in self._batch)
        return dataclasses.replace(
            self._stats, running=running, waiting=len(self._waiting), cache_use=held / self.limits.cache_tokens
        )

    def close(self) -> None:
        """Forget the batch and what waits."""
        self._batch, self._waiting, self._past = [], [], None


def _event(row: _Row, token: int) -> Event | None:
    """The token of a row; None for one that has ended, and runs on for its batch."""
    if row.finish:
        return None
    row.made += 1
    if token in row.stop_ids:
        row.finish = "stop"
    elif row.made == row.sampling.max_tokens:
        row.finish = "length"
    return Event(key=row.key, token_ids=(token,), finish=row.finish)
