"""Which settings of a sweep are worth another round, because they may still be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.stats import mean_interval

_FIELD = 4  # settings of one round at most: the leader and the fastest of those that may beat it
_ENOUGH = 3  # common rounds from which their ratios decide
_LOST = 2  # rounds where nothing meets the target
Runs = Mapping[int, Sequence[Mapping[str, Any]]]


def settle(runs: Runs, p95_ms: float, *, repeats: int, tolerance: float) -> list[int]:
    """Settings to measure once more; none when the leader is told apart from every rival, or cannot be in so many.

    Parameters
    ----------
    runs
        Rounds of each setting: ``round``, ``sentences_per_s`` and ``p95_ms`` with ``_low`` and ``_high``.
    p95_ms
        The latency target.
    repeats
        Rounds of one setting at most.
    tolerance
        Share of the leader's throughput within which a rival is as good.
    """
    if not runs:
        return []
    first = leader(runs, p95_ms)
    if first is None:
        closest = sorted(runs, key=lambda index: _mean(runs[index], "p95_ms"))[:2]
        return [index for index in closest if len(runs[index]) < min(repeats, _LOST)]
    if len(runs[first]) >= repeats:
        return []
    others = sorted((i for i in runs if i != first), key=lambda index: -_mean(runs[index], "sentences_per_s"))
    rivals = [i for i in others if len(runs[i]) < repeats and _open(runs[first], runs[i], p95_ms, tolerance)]
    if not rivals and len(runs[first]) == 1:  # the winner of a contest is a little lucky: once more
        rivals = others[:1]
        return [first, *rivals]
    return [first, *rivals[: _FIELD - 1]] if rivals else []


def leader(runs: Runs, p95_ms: float) -> int | None:
    """The setting with most throughput among those within the target."""
    meets = [index for index in runs if _mean(runs[index], "p95_ms") <= p95_ms]
    return max(meets, key=lambda index: _mean(runs[index], "sentences_per_s"), default=None)


def over(rounds: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Throughput over the leader's: ratio and interval, from the rounds they shared.

    For fewer than three the interval is all that both settings' own runs allow.
    """
    if rounds is best:
        return 1.0, 1.0, 1.0
    logs = _logs(rounds, best)
    if len(logs) < _ENOUGH:
        least = min(run["sentences_per_s_low"] for run in best)  # 0 of a run too short to say more
        low = min(run["sentences_per_s_low"] for run in rounds) / max(run["sentences_per_s_high"] for run in best)
        high = max(run["sentences_per_s_high"] for run in rounds) / least if least > 0 else np.inf
        return _mean(rounds, "sentences_per_s") / _mean(best, "sentences_per_s"), float(low), float(high)
    low, high = mean_interval(logs)
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def _open(
    best: Sequence[Mapping[str, Any]], rival: Sequence[Mapping[str, Any]], p95_ms: float, tolerance: float
) -> bool:
    """Whether a rival may still be as good as the leader, or better, and is not known to be just as good."""
    if min(run["p95_ms_low"] for run in rival) > p95_ms:
        return False
    _, low, high = over(rival, best)
    as_good = len(_logs(rival, best)) >= _ENOUGH and 1 - tolerance <= low <= high <= 1 + tolerance
    return high >= 1 and not as_good


def _logs(rounds: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Logarithms of the throughput's ratios, in the rounds that both have."""
    theirs = {run["round"]: run["sentences_per_s"] for run in best}
    return np.array([np.log(run["sentences_per_s"] / theirs[run["round"]]) for run in rounds if run["round"] in theirs])


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))
