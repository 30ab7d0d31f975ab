"""A continuous-batching engine as a simulation, step by step: rows and cache as resources, prompts cut into chunks.

Its order is that of `accel_lib.generate.scheduler`: first come, first served, a request enters when a row is free and
the cache has room for its prompt and its longest answer, in whole blocks. A step computes one token of every row that
generates, and fills up with prompts, the first come first, to `step_tokens`.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Literal

from accel_lib.generate.scheduler import Policy
from accel_lib.simulation.step_cost import Step, StepCost

_NO_LIMIT = 1 << 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine holds, and when it takes requests.

    Parameters
    ----------
    rows
        Requests at once.
    cache_tokens, block_tokens
        Tokens in its cache, handed out in blocks.
    step_tokens
        Most tokens of a step, prompts included; 0: prompts are not cut.
    policy
        ``"continuous"``: a request enters as soon as there is room. ``"static"``: when all before it have ended.
    """

    rows: int
    cache_tokens: int
    block_tokens: int = 1
    step_tokens: int = 0
    policy: Policy = "continuous"

    def needed(self, prompt_tokens: int, output_tokens: int) -> int:
        """Tokens of the cache that a request takes at most, whole blocks."""
        return math.ceil((prompt_tokens + output_tokens) / self.block_tokens) * self.block_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """Equal steps, one after the other, and what the engine held meanwhile."""

    start_s: float
    seconds: float
    step: Step
    running: int  # requests in a row, those whose prompt is still being read too
    reserved: int  # tokens of the cache that are promised
    waiting_for: Literal["", "rows", "cache"]  # what the first in line lacked


class SimulatedEngine:
    """Runs requests through an engine that takes `cost` for its steps.

    Parameters
    ----------
    arrivals_s
        When requests come, in order.
    prompt_tokens, output_tokens
        Of each request; an answer has at least one token, which comes with the end of its prompt.
    known_tokens
        With which all prompts begin: after the first request, whole blocks of them are in the cache already.
    """

    def __init__(
        self,
        cost: StepCost,
        settings: EngineSettings,
        *,
        arrivals_s: Sequence[float],
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
        known_tokens: int = 0,
    ) -> None:
        self._cost, self._settings = cost, settings
        self._arrivals, self._prompts, self._outputs = arrivals_s, prompt_tokens, output_tokens
        count = len(arrivals_s)
        self.admitted_s, self.first_token_s, self.end_s = [0.0] * count, [0.0] * count, [0.0] * count
        self.stretches: list[Stretch] = []
        self._known_tokens = known_tokens
        self._now_s = 0.0
        self._next = 0  # the first in line
        self._reserved = 0
        self._reading: collections.deque[list[int]] = (
            collections.deque()
        )  # requests, and tokens of theirs that are done
        self._generating: list[tuple[int, int]] = []  # a heap: the step after which a request ends, and the request
        self._steps = 0
        self._cached = 0  # tokens that the generating rows read in the next step
        widest = max([settings.rows, settings.step_tokens])
        self._token_ms: list[float] = cost.tokens_ms(range(widest + 1)).tolist()

    def run(self) -> SimulatedEngine:
        """Until the last request has ended."""
        while True:
            lacking = self._admit()
            if self._reading:
                self._read(lacking)
            elif self._generating:
                self._generate(lacking)
            elif self._next < len(self._arrivals):
                self._now_s = max(self._now_s, self._arrivals[self._next])
            else:
                return self

    def _admit(self) -> Literal["", "rows", "cache"]:
        """Let in who has come and has room; what the first of those that stay outside lacks."""
        settings = self._settings
        if settings.policy == "static" and (self._reading or self._generating):
            return "rows" if self._next < len(self._arrivals) and self._arrivals[self._next] <= self._now_s else ""
        while self._next < len(self._arrivals) and self._arrivals[self._next] <= self._now_s:
            if len(self._reading) + len(self._generating) == settings.rows:
                return "rows"
            needed = settings.needed(self._prompts[self._next], self._outputs[self._next])
            if self._reserved + needed > settings.cache_tokens:
                return "cache"
            self._reserved += needed
            self._reading.append([self._next, self._known(self._next)])
            self.admitted_s[self._next] = self._now_s
            self._next += 1
        return ""

    def _known(self, request: int) -> int:
        """Tokens of a prompt that need not be read; at least its last one is."""
        block = self._settings.block_tokens
        return min(self._known_tokens, self._prompts[request] - 1) // block * block if request else 0

    def _read(self, lacking: Literal["", "rows", "cache"]) -> None:
        """One step with prompts in it."""
        rows, read, pairs = len(self._generating), 0, 0
        room = self._settings.step_tokens - rows if self._settings.step_tokens else _NO_LIMIT
        ended = []
        while self._reading and room > 0:
            request, done = self._reading[0]
            taken = min(room, self._prompts[request] - done)
            pairs += taken * done + taken * (taken + 1) // 2
            read += taken
            room -= taken
            self._reading[0][1] += taken
            if done + taken == self._prompts[request]:
                ended.append(self._reading.popleft()[0])
        step = Step(rows, read, len(ended), self._cached, pairs)
        running = rows + len(ended) + len(self._reading)
        self._pass(step, self._ms(step) / 1e3, running, lacking)
        for request in ended:
            self.first_token_s[request] = self._now_s
            heapq.heappush(self._generating, (self._steps + self._outputs[request] - 1, request))
            self._cached += self._prompts[request] + 1
        self._end()

    def _generate(self, lacking: Literal["", "rows", "cache"]) -> None:
        """Equal steps up to the next request that ends, or that comes and may find room."""
        rows, growth_ms = len(self._generating), self._cost.cached * len(self._generating)
        ms = self._ms(Step(rows, 0, 0, self._cached, 0))
        count = self._generating[0][0] - self._steps
        if not lacking and self._next < len(self._arrivals) and self._settings.policy == "continuous":
            count = min(count, _steps_until(1e3 * (self._arrivals[self._next] - self._now_s), ms, growth_ms))
        seconds = (count * ms + growth_ms * count * (count - 1) / 2) / 1e3
        self._pass(Step(rows, 0, 0, self._cached, 0, count), seconds, rows, lacking)
        self._end()

    def _ms(self, step: Step) -> float:
        cost, tokens = self._cost, step.tokens
        products = self._token_ms[tokens] if tokens < len(self._token_ms) else float(cost.tokens_ms(tokens))
        chosen = (step.rows + step.ended_prompts) * cost.chosen
        return products + chosen + step.cached * cost.cached + step.pairs * cost.pair

    def _pass(self, step: Step, seconds: float, running: int, lacking: Literal["", "rows", "cache"]) -> None:
        self.stretches.append(Stretch(self._now_s, seconds, step, running, self._reserved, lacking))
        self._now_s += seconds
        self._steps += step.count
        self._cached += step.count * step.rows

    def _end(self) -> None:
        """Requests whose last token has come leave, and give back what they held."""
        while self._generating and self._generating[0][0] <= self._steps:
            request = heapq.heappop(self._generating)[1]
            prompt, output = self._prompts[request], self._outputs[request]
            self._reserved -= self._settings.needed(prompt, output)
            self._cached -= prompt + output
            self.end_s[request] = self._now_s


def _steps_until(gap_ms: float, ms: float, growth_ms: float) -> int:
    """The fewest steps that take `gap_ms`, the first `ms` and each `growth_ms` more than the one before."""
    if growth_ms <= 0:
        return max(1, math.ceil(gap_ms / max(ms, 1e-9)))
    half, rest = growth_ms / 2, ms - growth_ms / 2
    return max(1, math.ceil((math.sqrt(rest * rest + 4 * half * gap_ms) - rest) / (2 * half)))
