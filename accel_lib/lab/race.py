"""A race: contenders take turns with the same texts, each batched as suits it best, within a budget of seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.lab.contenders import ONE_BY_ONE, Contender, Strategy
from accel_lib.lab.measure import spread, take_turns

_TURNS = 11
_TRIAL_TEXTS, _FEWEST_TEXTS = 24, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one contender was: its best strategy, and sentences a second, one number a turn."""

    strategy: Strategy
    rates: NDArray[np.float64]


def race(field: Sequence[Contender], texts: Sequence[str], *, seconds: float) -> list[Pace]:
    """Try every strategy on a few texts of all lengths, then race with as many texts as the seconds allow."""
    started = time.perf_counter()
    lengths = field[0].lengths(texts)
    few = spread(lengths, _TRIAL_TEXTS)
    trials = [_trial(one, [texts[i] for i in few]) for one in field]
    left = max(seconds - (time.perf_counter() - started), 0.0)
    affordable = int(left / _TURNS / sum(taken for _, taken in trials) * len(few))
    timed = [texts[i] for i in spread(lengths, max(affordable, _FEWEST_TEXTS))]
    runs = {str(index): _run(one, timed, trials[index][0]) for index, one in enumerate(field)}
    spent = take_turns(runs, repeats=_TURNS)
    return [Pace(strategy=how, rates=len(timed) / spent[str(index)]) for index, (how, _) in enumerate(trials)]


def alone_ms(field: Sequence[Contender], texts: Sequence[str]) -> list[float]:
    """Milliseconds that a text of median length takes alone, by contender."""
    median = texts[int(np.argsort(field[0].lengths(texts))[len(texts) // 2])]
    runs = {str(index): _run(one, [median], ONE_BY_ONE) for index, one in enumerate(field)}
    take_turns(runs, repeats=1)
    return [float(np.median(spent)) * 1e3 for spent in take_turns(runs, repeats=_TURNS).values()]


def _trial(one: Contender, texts: Sequence[str]) -> tuple[Strategy, float]:
    """The fastest strategy, and the seconds it took."""
    one.encode(texts[:4], one.strategies[-1])
    runs = {str(index): _run(one, texts, how) for index, how in enumerate(one.strategies)}
    spent = [float(taken[0]) for taken in take_turns(runs, repeats=1).values()]
    best = int(np.argmin(spent))
    return one.strategies[best], spent[best]


def _run(one: Contender, texts: Sequence[str], strategy: Strategy) -> Callable[[], object]:
    return lambda: one.encode(texts, strategy)
