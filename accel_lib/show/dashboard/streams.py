"""A model that generates, from looks at its metrics: what it does, and what the simulator makes of more rows."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from accel_lib.show.dashboard.api import Samples
from accel_lib.show.dashboard.live import quantile

if TYPE_CHECKING:
    from accel_lib.simulation.generation_prediction import GenerationPrediction
    from accel_lib.simulation.step_cost import Step

_LOOKS = 60
_REQUESTS = 200
_LONGEST = 4  # times the mean answer
_SPREAD = 1.5  # times as many tokens in the largest step as in the smallest, under which the costs cannot be told apart
_CONTEXT = 1 << 20  # the gateway does not say how much the model holds; the cache bounds it
_BETWEEN = "vllm:inter_token_latency_seconds"
_FIRST = "vllm:time_to_first_token_seconds"
_WHOLE = "vllm:e2e_request_latency_seconds"


class Streams:
    """The last minute of one model.

    Parameters
    ----------
    model
        Its name.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._looks: deque[tuple[float, Samples]] = deque(maxlen=_LOOKS)

    def look(self, at_s: float, samples: Samples) -> None:
        """Take one look, `at_s` seconds on any clock; counters that went back start again."""
        own = {
            name: [(labels, value) for labels, value in each if labels.get("model_name") == self.model]
            for name, each in samples.items()
            if name.startswith("vllm:")
        }
        if self._looks and _total(own, f"{_FIRST}_count") < _total(self._looks[-1][1], f"{_FIRST}_count"):
            self._looks.clear()
        self._looks.append((at_s, own))

    @property
    def seen(self) -> bool:
        """Whether it has generated since the first look."""
        return len(self._looks) > 1 and self._change(f"{_WHOLE}_count") > 0

    @property
    def requests_per_s(self) -> float:
        """Requests that ended."""
        return self._change(f"{_WHOLE}_count") / self._seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated."""
        return self._change("vllm:generation_tokens_total") / self._seconds

    @property
    def prompt_tokens(self) -> int:
        """Of a request, on average."""
        return max(1, round(self._change("vllm:prompt_tokens_total") / max(self._change(f"{_FIRST}_count"), 1)))

    @property
    def output_tokens(self) -> int:
        """Of a request, on average."""
        return max(1, round(self._change("vllm:generation_tokens_total") / max(self._change(f"{_WHOLE}_count"), 1)))

    def p95_ms(self, *, first: bool) -> float:
        """95th percentile of the time to the first token, or between tokens; NaN without any."""
        return 1e3 * quantile(0.95, self._looks[0][1], self._looks[-1][1], _FIRST if first else _BETWEEN)

    def predict(self, *, rows: int, cache_tokens: int, times: float = 1.0) -> GenerationPrediction | None:
        """What so many rows would make of `times` the present load; None until steps of several sizes were seen."""
        from accel_lib.measurement import to_frame
        from accel_lib.simulation.generation import EngineSettings
        from accel_lib.simulation.generation_prediction import GenerationSimulator
        from accel_lib.simulation.step_cost import fit_step_cost

        known = [step for before, after in itertools.pairwise(self._looks) if (step := _step(before, after))]
        sizes = [step.tokens for step, _ in known] or [0]
        if not self.seen or max(sizes) < _SPREAD * min(sizes):
            return None
        simulator = GenerationSimulator(
            frame=to_frame([]),
            cost=fit_step_cost(*zip(*known, strict=True)),
            settings=EngineSettings(rows=rows, cache_tokens=cache_tokens, step_tokens=max(128, rows)),
            context_tokens=_CONTEXT,
        )
        mean = self.output_tokens
        return simulator.predict(
            rate=times * self.requests_per_s,
            requests=_REQUESTS,
            prompt_tokens=self.prompt_tokens,
            output_tokens=f"exponential:{mean}:{_LONGEST * mean}",
        )

    @property
    def _seconds(self) -> float:
        return max(self._looks[-1][0] - self._looks[0][0], 1e-6)

    def _change(self, name: str) -> float:
        return _total(self._looks[-1][1], name) - _total(self._looks[0][1], name)


def _step(before: tuple[float, Samples], after: tuple[float, Samples]) -> tuple[Step, float] | None:
    """The mean step between two looks, and its milliseconds: each row waits that long for its next token."""
    from accel_lib.simulation.step_cost import Step

    names = (f"{_BETWEEN}_sum", f"{_BETWEEN}_count", "vllm:prompt_tokens_total")
    waited_s, tokens, read = (_total(after[1], name) - _total(before[1], name) for name in names)
    seconds = after[0] - before[0]
    if tokens <= 0 or waited_s <= 0:
        return None
    step_s = waited_s / tokens
    return Step(max(1, round(waited_s / seconds)), round(read * step_s / seconds), 0, 0, 0), 1e3 * step_s


def _total(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples.get(name, []))
