"""One setting after the other under the same load, in turns, and what it does: the experiments of the laboratory.

Settings are applied by model control while the server runs. Each round measures every setting at every load, and starts
with another setting, so that a machine that gets slower meanwhile does not decide.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.load import findings_experiment
from accel_lib.load.monitor import delay_loss
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.stats import compare_medians, median_interval, percentile, percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

_SLICE_LATENCIES, _MOST_SLICES = 2, 10  # latencies that a slice of a run holds, and slices
_FEW_PER_S = 1e-3  # in place of none in a slice of a run, as ratios need numbers above zero


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Experiment(Result):
    """What `vary` measured; `frame` has one row a setting and load.

    Parameters
    ----------
    frame
        ``setting``, ``load`` (requests under way, or requests a second), ``open`` (whether the load is a rate),
        ``runs``, ``instances``; ``sentences_per_s`` and ``p95_ms`` with ``_low`` and ``_high``, ``p50_ms``,
        ``goodput_per_s`` (within the target), ``refused`` (share of the requests); ``speedup`` and ``p95_ratio`` over
        the first setting at the same load, with ``_low`` and ``_high``; ``queue_ms`` a request, ``mean_batch_size``,
        ``execution_ms`` of one batch, ``text_ms`` of an instance's time for one text, ``busy`` and ``delay_loss`` as
        shares of the instances' time; ``generator_bound``.
    runs
        The single runs, by setting and load.
    target_ms
        Latency within which an answer counts for the goodput; infinite where none was given.
    stopped
        Why it ended before everything was measured; empty if it did not.
    """

    runs: Mapping[tuple[str, float], Sequence[LoadRun]]
    target_ms: float = float("inf")
    stopped: str = ""

    @property
    def headline(self) -> str:
        """What the settings change against the first one, or that they change nothing."""
        return findings_experiment.effect(self.frame, self.stopped)

    @property
    def explanation(self) -> str:
        """Why, in a sentence, from what Triton counted."""
        return findings_experiment.reason(self.frame)

    @property
    def rejections(self) -> pd.DataFrame:
        """Refused requests: ``setting``, ``load``, ``error``, ``priority``, and ``ms`` after which the answer came."""
        parts = [
            run.frame.loc[run.frame["error"] != "", ["error", "priority", "ms"]].assign(setting=setting, load=at)
            for (setting, at), runs in self.runs.items()
            for run in runs
        ]
        frame = pd.concat(parts, ignore_index=True)[["setting", "load", "error", "priority", "ms"]]
        frame.attrs.update(self.frame.attrs)
        return frame

    @property
    def by_priority(self) -> pd.DataFrame:
        """Answered requests by setting, load and priority: ``share``, ``p50_ms``, ``p95_ms`` with its interval."""
        rows = []
        for (setting, at), runs in self.runs.items():
            everything = pd.concat([run.frame for run in runs])
            for priority, part in everything.groupby("priority"):
                ms = part.loc[part["error"] == "", "ms"].to_numpy()
                if not len(ms):
                    continue
                row = {"setting": setting, "load": at, "priority": priority, "share": len(part) / len(everything)}
                low, high = percentile_interval(ms, 95)
                spent = {"p50_ms": percentile(ms, 50), "p95_ms": percentile(ms, 95)}
                rows.append(row | spent | {"p95_ms_low": low, "p95_ms_high": high})
        return to_frame(rows)


def vary(
    served: ServedModel,
    texts: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    concurrency: Sequence[int] = (16,),
    rates: Sequence[float] | None = None,
    seconds: float = 1,
    repeats: int = 2,
    warmup_s: float = 0.3,
    target_ms: float = float("inf"),
    **request: Any,
) -> Experiment:
    """Measure settings of a served model against the first of them, each at every load, in turns.

    The model's own configuration is put back at the end, and after an error.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        What to send.
    settings
        Settings by name, as ``served.configure`` takes them; what one leaves out is as the model had it before.
    concurrency
        Closed loops: requests under way.
    rates
        Open loops in their place: requests a second, Poisson.
    seconds, warmup_s
        How long to measure a setting at a load each time, and how long to send beforehand.
    repeats
        Rounds.
    target_ms
        Latency within which an answer counts for the goodput.
    request
        What else `accel_lib.load` takes, such as ``priority``, ``queue_timeout_us`` or ``rows``.

    Returns
    -------
    Experiment
        With what was measured so far, and `stopped`, when something ended it early.

    Raises
    ------
    AccelError
        No settings, or the first measurement failed.

    Examples
    --------
    >>> delays = {"no delay": {"max_queue_delay_us": 0}, "5 ms": {"max_queue_delay_us": 5_000}}
    >>> vary(embedding, texts, delays, concurrency=(1, 16))  # doctest: +SKIP
    """
    loads: list[float] = list(concurrency if rates is None else rates)
    if len(settings) < 1 or not loads or repeats < 1:
        fix = 'vary(served, texts, {"no delay": {"max_queue_delay_us": 0}, "5 ms": {"max_queue_delay_us": 5_000}})'
        raise AccelError("An experiment needs settings, a load and a repeat.", seen=list(settings), fix=fix)
    own, progress, names = served.config, Progress("Experiment"), list(settings)
    configs = {name: own.replace(**change) for name, change in settings.items()}
    runs: dict[tuple[str, float], list[LoadRun]] = {(name, at): [] for name in names for at in loads}
    stopped = ""
    try:
        for turn in range(repeats):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                apply(served, configs[name])
                for at in loads:
                    progress.tick(f"{name}, round {turn + 1} of {repeats}")
                    how: dict[str, Any] = {"concurrency": int(at)} if rates is None else {"rate": at, "seed": turn}
                    run = load_test(served, texts, seconds=seconds, warmup_s=warmup_s, **how, **request)
                    runs[name, at].append(run)
                    if run.stopped:
                        raise AccelError(run.stopped, fix="server.models() and server.log say more")
    except AccelError as error:
        if not any(runs.values()):
            raise
        stopped = f"{error.cause}{f' {error.seen}' if error.seen else ''}"
    finally:
        progress.clear()
        with contextlib.suppress(AccelError):  # a server that is gone has no configuration to put back
            apply(served, own)
    measured = {key: value for key, value in runs.items() if value}
    frame = _table(measured, configs, target_ms, is_open=rates is not None)
    return Experiment(frame=frame, runs=measured, target_ms=target_ms, stopped=stopped)


def apply(served: ServedModel, config: ModelConfig) -> None:
    """Load the model with a whole configuration, unless it runs with that one."""
    if served.config != config:
        served._server.load(served.name, config)


def _table(
    runs: Mapping[tuple[str, float], Sequence[LoadRun]],
    configs: Mapping[str, ModelConfig],
    target_ms: float,
    *,
    is_open: bool,
) -> pd.DataFrame:
    first = next(iter(configs))
    rows = []
    for (name, at), part in runs.items():
        base = runs.get((first, at), part)
        row: dict[str, Any] = {"setting": name, "load": at, "open": is_open, "runs": len(part)}
        row["instances"] = configs[name].instance_count
        row |= speed(part, target_ms) | _inside(part, configs[name])
        row |= ratios(part, base)
        rows.append(row | {"generator_bound": any(run.generator_bound for run in part)})
    return to_frame(rows)


def speed(runs: Sequence[LoadRun], target_ms: float = float("inf")) -> dict[str, float]:
    """Throughput and latencies of runs together, as columns; see `Experiment`."""
    ms, rates = _latencies(runs), _rates(runs)
    row = {"sentences_per_s": float(np.mean([run.throughput for run in runs]))}
    row["sentences_per_s_low"], row["sentences_per_s_high"] = median_interval(rates)
    row |= {"p50_ms": percentile(ms, 50), "p95_ms": percentile(ms, 95)}
    row["p95_ms_low"], row["p95_ms_high"] = percentile_interval(ms, 95)
    row["goodput_per_s"] = float(np.mean([run.goodput(target_ms) for run in runs]))
    asked = sum(len(run.frame) for run in runs)
    return row | {"refused": sum(sum(run.errors.values()) for run in runs) / asked}


def _inside(runs: Sequence[LoadRun], config: ModelConfig) -> dict[str, float]:
    """What Triton counted, the runs together; NaN where a reload or an unload set its counts back."""
    counted = [(run.statistics, run.seconds) for run in runs if run.statistics and run.statistics.executions]
    names = ("queue_ms", "mean_batch_size", "execution_ms", "text_ms", "busy", "delay_loss")
    if not counted:
        return dict.fromkeys(names, float("nan"))
    seconds, busy_s = sum(length for _, length in counted), sum(part.busy_s for part, _ in counted)
    requests, rows, executions = (
        sum(getattr(part, name) for part, _ in counted) for name in ("requests", "inferences", "executions")
    )
    waited_ns = sum(part.queue_ns for part, _ in counted)
    lost = sum(delay_loss(part, config, length) * length for part, length in counted) / seconds
    values = (
        *(waited_ns / requests / 1e6, rows / executions, busy_s * 1e3 / executions, busy_s * 1e3 / rows),
        *(min(busy_s / seconds / config.instance_count, 1.0), lost),
    )
    return dict(zip(names, values, strict=True))


def ratios(runs: Sequence[LoadRun], base: Sequence[LoadRun]) -> dict[str, float]:
    """Throughput and p95 over those of other runs, with intervals, as columns; see `Experiment`."""
    faster = compare_medians(*(np.maximum(_rates(part), _FEW_PER_S) for part in (runs, base)))
    slower, slower_low, slower_high = _p95_ratio(_latencies(runs), _latencies(base))
    ratio = float(np.mean([run.throughput for run in runs]) / np.mean([run.throughput for run in base]))
    row = {"speedup": ratio, "speedup_low": min(faster.low, ratio), "speedup_high": max(faster.high, ratio)}
    return row | {"p95_ratio": slower, "p95_ratio_low": slower_low, "p95_ratio_high": slower_high}


def _rates(runs: Sequence[LoadRun]) -> NDArray[np.float64]:
    """Sentences a second in slices of the runs, each long enough for several batches."""
    slices = []
    for run in runs:
        done = run.frame[run.frame["error"] == ""]
        count = int(np.clip(run.seconds * 1e3 / (_SLICE_LATENCIES * run.p50_ms), 1, _MOST_SLICES))
        ended = (done["start_s"] + done["ms"] / 1e3).to_numpy()
        rows = np.histogram(ended, bins=count, range=(0, run.seconds), weights=done["rows"])[0]
        slices.append(rows * count / run.seconds)
    return np.concatenate(slices)


def _p95_ratio(mine: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, float]:
    """Ratio of two 95th percentiles, between the far ends of their intervals: wide rather than wrong."""
    ends = [percentile_interval(values, 95) for values in (mine, other)]
    return percentile(mine, 95) / percentile(other, 95), ends[0][0] / ends[1][1], ends[0][1] / ends[1][0]


def _latencies(runs: Sequence[LoadRun]) -> NDArray[np.float64]:
    return np.concatenate([run.frame.loc[run.frame["error"] == "", "ms"].to_numpy(dtype=float) for run in runs])
