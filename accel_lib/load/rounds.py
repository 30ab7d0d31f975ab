"""Measure several ways of serving under the same loads, in rounds, and compare each with the first one.

Each round starts with another way, so that a machine that gets slower meanwhile does not decide.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import UNCHANGED, capital, differs, ratio, times
from accel_lib.load.runner import LoadRun
from accel_lib.measurement import Result
from accel_lib.progress import Progress
from accel_lib.stats import compare_medians, median_interval, percentile, percentile_interval
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.statistics import Statistics

T = TypeVar("T")
K = TypeVar("K")

MEASURES = {"speedup": "throughput", "p95_ratio": "p95"}  # columns of `ratios`, and what they compare
_SLICE_LATENCIES = 2  # latencies that a slice of a run holds
_MOST_SLICES = 10
_GOODPUT_SLICES = 6  # however long an answer takes: the fewest that give an interval
_GAVE_UP = request_error("", "Deadline Exceeded").cause
_FEW_PER_S = 1e-3  # instead of none in a slice of a run, as ratios need numbers above zero


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Ways(Result):
    """Ways of serving compared; `frame` has one row a workload and setting, the first setting being the baseline.

    Parameters
    ----------
    frame
        ``workload``, ``setting``, the columns of `speed` and `ratios`, and what the measurement adds.
    explanation
        Why, in a sentence, from what Triton counted.
    measures
        What ``speedup`` and ``p95_ratio`` are ratios of, as words.
    """

    explanation: str
    measures: Mapping[str, str] = dataclasses.field(default_factory=lambda: MEASURES)

    @property
    def headline(self) -> str:
        """What each setting changes against the first one, by workload; intervals are in the table."""
        said, base = [], self.frame["setting"].iloc[0]
        for workload, part in self.frame.groupby("workload", sort=False):
            effects = []
            for row in part[part["setting"] != base].to_dict("records"):
                changed = [(column, words) for column, words in self.measures.items() if differs(row, column)]
                facts = [f"{times(row[column])} the {words}" for column, words in changed]
                effects.append(f"{row['setting']} {' and '.join(facts) or UNCHANGED}")
            one = self.frame["workload"].nunique() == 1
            said.append(f"{', '.join(effects)}{'' if one else f' ({workload})'}")
        return self._and_stopped(f"Against {base}: " + "; ".join(said))

    def winner(self, workload: str) -> str:
        """The faster of the first two settings on a workload, or "no significant difference"."""
        first, second = self.frame[self.frame["workload"] == workload].to_dict("records")[:2]
        if not differs(second, "speedup"):
            return UNCHANGED
        return str((second if second["speedup"] > 1 else first)["setting"])


def compare(
    ways: Mapping[str, Callable[[], object]],
    loads: Mapping[K, Callable[[str, int], tuple[LoadRun, Mapping[str, float]]]],
    *,
    repeats: int,
    slices: int = 0,
) -> tuple[list[dict[str, Any]], str]:
    """Rows for `Ways`, load by load, and why it ended early: `in_rounds`, each way over the first.

    A measurement gives a run and further columns, of which the mean over the rounds is kept.
    """
    measured, stopped = in_rounds(ways, loads, repeats=repeats)
    rows: list[dict[str, Any]] = []
    for load, way in itertools.product(loads, ways):
        found = measured.get((way, load))
        if found:
            base = [run for run, _ in measured.get((next(iter(ways)), load), found)]
            runs = [run for run, _ in found]
            row: dict[str, Any] = {"workload": load, "setting": way}
            for name in found[0][1]:
                values = [facts[name] for _, facts in found]
                row[name] = values[0] if len(set(values)) == 1 else float(np.mean(values))
            rows.append(row | speed(runs) | ratios(runs, base, slices=slices))
    return rows, stopped


def in_rounds(
    ways: Mapping[str, Callable[[], object]], loads: Mapping[K, Callable[[str, int], T]], *, repeats: int
) -> tuple[dict[tuple[str, K], list[T]], str]:
    """Measure every way at every load, `repeats` times.

    Parameters
    ----------
    ways
        What sets each up, by name, such as loading a model with another configuration.
    loads
        What measures at each load, from the way's name and the number of the round.

    Returns
    -------
    dict, str
        Measurements by way and load, as many as there were, and why it ended early; empty if it did not.
    """
    if not ways or not loads or repeats < 1:
        fix = "name at least one setting, one load and one round"
        raise AccelError("There is nothing to measure.", seen=f"{list(ways)}, {list(loads)}", fix=fix)
    measured: dict[tuple[str, K], list[T]] = {(way, load): [] for way in ways for load in loads}
    names, progress, stopped = list(ways), Progress("Experiment"), ""
    try:
        for turn in range(repeats):
            first = turn % len(names)
            for way in names[first:] + names[:first]:
                ways[way]()
                for load, measure in loads.items():
                    progress.tick(f"{way}, {load}, round {turn + 1} of {repeats}")
                    found = measure(way, turn)
                    measured[way, load].append(found)
                    if isinstance(found, LoadRun):
                        whole(found)
    except AccelError as error:
        if not any(measured.values()):
            raise
        stopped = f"{error.cause}{f' {error.seen}' if error.seen else ''}"
    finally:
        progress.clear()
    return {key: runs for key, runs in measured.items() if runs}, stopped


def whole(run: LoadRun) -> LoadRun:
    """A run that did not end early; an `AccelError` with the reason if it did."""
    if run.stopped:
        raise AccelError(run.stopped, fix="server.models() and server.log say more")
    return run


def speed(runs: Sequence[LoadRun], target_ms: float = float("inf")) -> dict[str, float]:
    """Throughput and latencies of runs together, as columns.

    ``texts_per_s``, ``p95_ms`` and ``goodput_per_s`` (within `target_ms`) with ``_low`` and ``_high``, ``p50_ms``;
    ``gave_up``, the share of the requests whose client stopped waiting, and ``refused``, that of the others that
    failed.
    """
    ms = _latencies(runs)
    row = {"texts_per_s": float(np.mean([run.throughput for run in runs]))}
    row["texts_per_s_low"], row["texts_per_s_high"] = median_interval(_rates(runs))
    row |= {"p50_ms": percentile(ms, 50), "p95_ms": percentile(ms, 95)}
    row["p95_ms_low"], row["p95_ms_high"] = percentile_interval(ms, 95)
    row["goodput_per_s"] = float(np.mean([run.goodput(target_ms) for run in runs]))
    row["goodput_per_s_low"], row["goodput_per_s_high"] = median_interval(
        _rates(runs, _GOODPUT_SLICES, target_ms=target_ms)
    )
    asked = sum(len(run.frame) for run in runs)
    failed = Counter(error for run in runs for error in run.frame["error"] if error)
    gave_up = failed.pop(_GAVE_UP, 0)
    return row | {"refused": failed.total() / asked, "gave_up": gave_up / asked}


def ratios(runs: Sequence[LoadRun], base: Sequence[LoadRun], *, slices: int = 0) -> dict[str, float]:
    """``speedup`` and ``p95_ratio`` over other runs, with ``_low`` and ``_high``, as columns.

    The throughput's interval comes from slices of the runs, each long enough for several batches; `slices` sets their
    number. That of the p95 lies between the far ends of both: wide rather than wrong.
    """
    faster = compare_medians(*(np.maximum(_rates(part, slices), _FEW_PER_S) for part in (runs, base)))
    speedup = float(np.mean([run.throughput for run in runs]) / np.mean([run.throughput for run in base]))
    row = {"speedup": speedup, "speedup_low": min(faster.low, speedup), "speedup_high": max(faster.high, speedup)}
    mine, other = _latencies(runs), _latencies(base)
    (low, high), (other_low, other_high) = (percentile_interval(ms, 95) for ms in (mine, other))
    row["p95_ratio"] = percentile(mine, 95) / percentile(other, 95)
    return row | {"p95_ratio_low": low / other_high, "p95_ratio_high": high / other_low}


def compare_throughput(run: LoadRun, base: LoadRun) -> str:
    """How a run's throughput compares with another's, in a sentence, or that there is no significant difference."""
    row = ratios([run], [base])
    if not differs(row, "speedup"):
        return f"{capital(UNCHANGED)} in throughput between {run.load} and {base.load}"
    return f"{capital(run.load)}: {ratio(row, 'speedup')} the throughput of {base.load}"


def totals(runs: Sequence[LoadRun]) -> tuple[Statistics | None, float]:
    """What Triton counted, the runs together, and their seconds; None where reloads set all its counts back."""
    counted = [
        (run.statistics, run.counted_s or run.seconds) for run in runs if run.statistics and run.statistics.requests
    ]
    if not counted:
        return None, 0.0
    return functools.reduce(operator.add, (part for part, _ in counted)), sum(seconds for _, seconds in counted)


def _rates(runs: Sequence[LoadRun], slices: int = 0, *, target_ms: float = float("inf")) -> NDArray[np.float64]:
    """Texts/s in slices of the runs."""
    counts = (slices or int(np.clip(r.seconds * 1e3 / (_SLICE_LATENCIES * r.p50_ms), 1, _MOST_SLICES)) for r in runs)
    return np.concatenate([run.rates(count, target_ms=target_ms) for run, count in zip(runs, counts, strict=True)])


def _latencies(runs: Sequence[LoadRun]) -> NDArray[np.float64]:
    return np.concatenate([run.frame.loc[run.frame["error"] == "", "ms"].to_numpy(dtype=float) for run in runs])
