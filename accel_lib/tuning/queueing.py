"""What a batcher can do, from how long its batches take, t(n) = a + b·n: capacity, latency, and how many to admit.

A batch costs `a` whatever is in it (reading the weights, the calls) and `b` for each request in it. Both come from
Triton's own statistics, which tell by batch size how long executions kept an instance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from accel_lib.tuning.results import described

GUESS = 0.5  # share of a lone request's time taken for `a`, until a batch was seen
_FULL = 0.95  # share of the capacity from which a queue has no end
_MOST = 4_096  # requests admitted, at most
_INSIDE = (0.5, 0.75)  # of the target, spent after admission, if batches are
_EFFICIENT = 0.95  # times as fast as with all the target


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTime:
    """Seconds of a batch, ``fixed_s + each_s × n``; `guessed` while the sizes that were seen show no trend."""

    fixed_s: float
    each_s: float
    guessed: bool = False

    def seconds(self, size: float) -> float:
        """How long a batch of `size` keeps an instance."""
        return self.fixed_s + self.each_s * size

    def __str__(self) -> str:
        guess = " (a guess: other batch sizes were not seen)" if self.guessed else ""
        return f"t(n) = {self.fixed_s * 1e3:.1f} + {self.each_s * 1e3:.1f}·n ms{guess}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """How a model is served, as far as a controller changes it."""

    instance_count: int
    max_batch_size: int
    max_queue_delay_us: int

    def __str__(self) -> str:
        return described(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a configuration should do at some load: most requests/s, and p95 in ms (infinite if that is too many)."""

    serving: ServingConfig
    capacity_per_s: float
    p95_ms: float


def fit_batch_time(
    sizes: Mapping[int, float], spent_s: Mapping[int, float], *, share: float = GUESS
) -> BatchTime | None:
    """Fit executions and their seconds, both by batch size; None where there was none.

    Where batches of one size alone were seen, `share` of a lone request's time is taken for what a batch costs once.

    >>> fit_batch_time({1: 10, 4: 5}, {1: 0.03, 4: 0.03})
    BatchTime(fixed_s=0.002, each_s=0.001, guessed=False)
    """
    seen = sorted(size for size, count in sizes.items() if count > 0 and spent_s.get(size, 0) > 0)
    if not seen:
        return None
    n = np.array(seen, dtype=float)
    count = np.array([sizes[size] for size in seen], dtype=float)
    each = np.array([spent_s[size] for size in seen]) / count
    mean_n, mean_s = (float((values * count).sum() / count.sum()) for values in (n, each))
    slope, start = np.polyfit(n, each, 1, w=np.sqrt(count)) if len(seen) > 1 else (0.0, 0.0)
    if slope <= 0:  # one size alone, or noise: with batches that cost nothing each, every request would be admitted
        lone = mean_s / (share + (1 - share) * mean_n)
        return BatchTime(fixed_s=share * lone, each_s=(1 - share) * lone, guessed=True)
    if start < 0:  # no batch pays: the nearest line that may be
        return BatchTime(fixed_s=0.0, each_s=mean_s / mean_n)
    return BatchTime(fixed_s=round(float(start), 9), each_s=round(float(slope), 9))


def predict(time: BatchTime, serving: ServingConfig, rate: float, *, parallel: float | None = None) -> Prediction:
    """What a configuration should do at `rate` requests/s.

    The batch settles where as many requests arrive as are served while one runs: ``n = rate × t(n) / instances``. A
    request waits for the batch that runs, then for its own: twice t(n), with n two standard deviations up. `parallel`
    is as how many undisturbed instances they work together; None takes all of them.
    """
    width = parallel or serving.instance_count
    capacity = width * serving.max_batch_size / time.seconds(serving.max_batch_size)
    if rate >= _FULL * capacity:
        return Prediction(serving=serving, capacity_per_s=capacity, p95_ms=math.inf)
    settled = rate * time.fixed_s / max(width - rate * time.each_s, 1e-9)
    usual = min(max(settled, 1.0), float(serving.max_batch_size))
    crowded = min(usual + 2 * math.sqrt(usual), float(serving.max_batch_size))
    batches = 2.0 if crowded < serving.max_batch_size else 2.0 / (1 - rate / capacity)
    p95_s = serving.max_queue_delay_us / 1e6 + batches * time.seconds(crowded)
    return Prediction(serving=serving, capacity_per_s=capacity, p95_ms=p95_s * 1e3)


def admissible(time: BatchTime, serving: ServingConfig, target_ms: float) -> int:
    """How many requests may be in flight so that the last one is answered within a time; at least one an instance."""
    low, high = serving.instance_count, _MOST
    while low < high:
        middle = (low + high + 1) // 2
        in_time = _last_s(time, serving, middle) <= target_ms / 1e3
        low, high = (middle, high) if in_time else (low, middle - 1)
    return low


def admission(time: BatchTime, serving: ServingConfig, target_ms: float) -> tuple[int, int]:
    """How many requests may be in flight, and how many ms others may wait for admission and still be in time.

    As few are admitted as keep batches efficient: the others are rejected by the clock, not by a forecast.

    >>> batched = ServingConfig(instance_count=1, max_batch_size=64, max_queue_delay_us=0)
    >>> admission(BatchTime(fixed_s=0.001, each_s=0.001), batched, 60)
    (28, 30)
    """
    most = admissible(time, serving, target_ms)
    for share in (*_INSIDE, 1.0):
        limit = admissible(time, serving, share * target_ms)
        last_s = _last_s(time, serving, limit)
        if limit / last_s >= _EFFICIENT * most / _last_s(time, serving, most):
            break
    return limit, max(0, round(target_ms - last_s * 1e3))


def _last_s(time: BatchTime, serving: ServingConfig, count: int) -> float:
    """When the last of `count` is done: the rest of a running batch, then ``ceil(count / (instances × batch))``."""
    together = serving.instance_count * serving.max_batch_size
    computed_s = time.fixed_s * (math.ceil(count / together) + 1) + time.each_s * count / serving.instance_count
    return serving.max_queue_delay_us / 1e6 + computed_s
