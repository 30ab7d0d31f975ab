"""Time candidates in turns on the same texts, each with the batching that suits it best, within a budget of seconds."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.bench.candidates import ONE_BY_ONE, Candidate, Strategy
from accel_lib.engines import Engine
from accel_lib.measurement import spread, take_turns

_TURNS = 11
_TRIALS = 2  # turns in which strategies are tried
_TRIAL_TEXTS = 24
_FEWEST_TEXTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast a candidate is: a text of median length alone, and texts/s of each turn with its fastest strategy."""

    single_text_ms: float
    strategy: Strategy
    rates: NDArray[np.float64]


def time_candidates(field: Sequence[Candidate], texts: Sequence[str], *, seconds: float) -> list[Timing]:
    """Time one text alone, try every strategy on a few, then take turns with as many as the seconds allow."""
    until = time.perf_counter() + seconds
    alone = _times(field, sample(field[0], texts, 1), [ONE_BY_ONE] * len(field), turns=_TRIALS + 7)[:, 1:]
    alone_s = np.median(alone, axis=1)
    each_s = _TRIALS * sum(spent * len(one.strategies) for one, spent in zip(field, alone_s, strict=True))
    few = sample(field[0], texts, affordable(seconds / 3, each_s, most=_TRIAL_TEXTS))
    trials = [_times([one] * len(one.strategies), few, one.strategies, turns=_TRIALS).min(axis=1) for one in field]
    best = [one.strategies[int(np.argmin(spent))] for one, spent in zip(field, trials, strict=True)]
    turn_s = sum(spent.min() for spent in trials) / len(few)
    timed = sample(field[0], texts, affordable(until - time.perf_counter(), _TURNS * turn_s, most=len(texts)))
    rates = len(timed) / _times(field, timed, best, turns=_TURNS)
    return [
        Timing(single_text_ms=1e3 * float(spent), strategy=strategy, rates=rate)
        for spent, strategy, rate in zip(alone_s, best, rates, strict=True)
    ]


def sample(one: Candidate, texts: Sequence[str], count: int) -> list[str]:
    """`count` texts that represent all lengths; one is of median length."""
    return [texts[index] for index in spread(one.lengths(texts), count)]


def affordable(seconds: float, each_s: float, *, most: int, fewest: int = _FEWEST_TEXTS) -> int:
    """How many texts fit into a time."""
    return int(min(max(seconds / each_s, fewest), most))


def full_batch(engine: Engine, batch_size: int, tokens: int) -> Callable[[], object]:
    """A call that runs a batch without padding: as many random texts of one length."""
    ids = np.random.default_rng(0).integers(1, 100, (batch_size, tokens), dtype=np.int64)
    return lambda: engine.run(ids, np.ones_like(ids))


def _times(
    field: Sequence[Candidate], texts: Sequence[str], strategies: Sequence[Strategy], *, turns: int
) -> NDArray[np.float64]:
    """Seconds by candidate and turn, each with its strategy."""
    runs = {
        str(index): functools.partial(one.encode, texts, strategy)
        for index, (one, strategy) in enumerate(zip(field, strategies, strict=True))
    }
    return np.stack(list(take_turns(runs, repeats=turns).values()))
