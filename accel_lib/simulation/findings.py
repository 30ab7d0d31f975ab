"""What the simulator's tables say, computed from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent, times
from accel_lib.simulation.request_queue import QUEUE_FULL
from accel_lib.triton.config import ModelConfig

_FULL_QUEUE = ". With a full queue Triton 24.10 may do far worse: it was seen to pause half a second between batches"
_SATURATED = 0.97  # share of the offered load, under which a run falls behind
_BUSY = 0.9  # share of the time from which instances are the limit
_FLAT = 1.15  # times as much: still about the same
_DISTURBED = 0.05  # share of the cores taken by others, from which on it is said
_FULL = 0.8  # of the largest batch: there is no room for more
_MUCH = 0.4  # share of the latency that names its cause


def service_time(frame: pd.DataFrame) -> str:
    """What the smallest and the largest execution cost, and how well the fitted time meets the measured points."""
    off = percent(float(np.median(np.abs(frame["predicted_ms"] / frame["ms"] - 1))))
    parts = []
    for count, points in frame.groupby("instance_count"):
        mean = points.groupby("rows")["ms"].mean()
        few, many = int(mean.index.min()), int(mean.index.max())
        parts.append(f"{number(mean[few])} ms for {_texts(few)}, {number(mean[many])} ms for {_texts(many)}")
        parts[-1] += f" with {_instances(int(str(count)))}"
    return f"An execution takes {listed(parts)}; the fitted time is off by {off} in the median of {len(frame)} points"


def bottleneck(summary: pd.DataFrame, busy: float, config: ModelConfig) -> str:
    """What sets the latency of a run, and what would help."""
    run = summary.iloc[0]
    parts = {"queue": run["queue_ms"], "model": run["compute_infer_ms"], "client": run["client_ms"]}
    total = max(sum(parts.values()), 1e-9)
    behind = "offered_per_s" in run and run["sentences_per_s"] < _SATURATED * run["offered_per_s"]
    if behind or busy > _BUSY:
        said = f"the {_instances(config.instance_count)}, busy {percent(min(busy, 1.0))} of the time"
        most = config.max_batch_size if config.dynamic_batching else 1
        if behind or run["mean_batch_size"] > _FULL * most:
            return f"{said}: more load only waits longer"
        return f"{said}, in batches of {number(run['mean_batch_size'])}: more load makes larger ones"
    if parts["queue"] > _MUCH * total and config.max_queue_delay_us and run["queue_ms"] * 1e3 < _delay_us(config):
        return f"the queue delay: requests wait for company, while instances are idle {percent(1 - busy)} of the time"
    if parts["queue"] > _MUCH * total:
        return (
            f"the queue: requests come in bunches and wait, though instances are idle {percent(1 - busy)} of the time"
        )
    if parts["client"] > _MUCH * total:
        return "client and transport: the server is done long before"
    return "the model's own time: nobody waits long for an instance"


def simulation(summary: pd.DataFrame, errors: Mapping[str, int], cause: str) -> str:
    """What a simulated load comes to."""
    run = summary.iloc[0]
    asked = (
        f"of {number(run['offered_per_s'])} offered"
        if "offered_per_s" in run
        else f"with {run['concurrency']:.0f} under way"
    )
    said = f"Simulated: {number(run['sentences_per_s'])} sentences/s {asked}, 95% within {number(run['p95_ms'])} ms"
    lost = f"; refused: {sum(errors.values()):,}" if errors else ""
    return f"{said}{lost}. The limit is {cause}{_FULL_QUEUE if QUEUE_FULL in errors else ''}"


def _delay_us(config: ModelConfig) -> float:
    return 1.5 * config.max_queue_delay_us


def _instances(count: int) -> str:
    return f"{count} instance{'s' if count != 1 else ''}"


def _texts(count: int) -> str:
    return f"{count} text{'s' if count != 1 else ''}"


def fidelity(frame: pd.DataFrame, throughput_spread: float, p95_spread: float) -> str:
    """How far the simulator is off, beside how far the real thing differs from itself."""
    throughput, p95 = (percent(float(frame[name].abs().median())) for name in ("throughput_error", "p95_error"))
    start = f"The simulator is off by {throughput} in throughput and {p95} in p95, medians of {len(frame)} settings"
    said = f"{start}; repeats of one real setting lie {percent(throughput_spread)} and {percent(p95_spread)} apart"
    others = float(frame["others"].median())
    return f"{said}, and other processes took {percent(others)} of the cores" if others > _DISTURBED else said


def verdict(throughput: float, p95: float, most_throughput: float, most_p95: float) -> str:
    """Both median errors with their limits."""
    said = "within the limits" if throughput <= most_throughput and p95 <= most_p95 else "over the limits"
    return (
        f"median error {throughput:.1%} in throughput (limit {most_throughput:.0%}), "
        f"{p95:.1%} in p95 (limit {most_p95:.0%}): {said}"
    )


def curve(frame: pd.DataFrame) -> str:
    """How much the p95 grows towards capacity, and how far measured points are from the curve."""
    simulated = frame[frame["kind"] == "simulated"].set_index("share")["p95_ms"]
    shares = simulated.index.to_numpy(dtype=float)
    low, high = (float(shares[np.abs(shares - at).argmin()]) for at in (0.8, 0.95))
    ratio = float(simulated[high] / simulated[low])
    ends = f"{number(simulated[high])} ms against {number(simulated[low])} ms"
    grown = f"is {times(ratio)} that at {percent(low)}" if ratio > _FLAT else f"is about the same as at {percent(low)}"
    said = f"At {percent(high)} of capacity p95 {grown}: {ends}"
    measured = frame[frame["kind"] == "measured"]
    if measured.empty:
        return said
    off = (simulated[measured["share"]].to_numpy() / measured["p95_ms"].to_numpy()) - 1
    return f"{said}. Measured, the prediction is off by {percent(float(np.median(np.abs(off))))} in the median"


def settings(frame: pd.DataFrame) -> str:
    """Which setting answers soonest at a load, and what the slowest costs."""
    ordered = frame.sort_values("p95_ms")
    best, worst = ordered.iloc[0], ordered.iloc[-1]
    if worst["p95_ms"] <= _FLAT * best["p95_ms"]:
        return f"At this load the {len(frame)} settings are alike: p95 about {number(best['p95_ms'])} ms"
    more, less = number(worst["mean_batch_size"]), number(best["mean_batch_size"])
    fill = f"for batches of {more} instead of {less}" if more != less else f"and batches stay at {less}"
    ends = f"{number(worst['p95_ms'])} ms against {number(best['p95_ms'])} ms"
    ratio = times(worst["p95_ms"] / best["p95_ms"])
    return f"{worst['setting']}: p95 is {ratio} that of {best['setting']}, {ends}, {fill}"
