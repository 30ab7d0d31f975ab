"""What replays of the autoscaler say, computed from their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent, times

SIGNALS = {"queue_ms": "queue time", "cpu": "CPU utilisation", "gpu": "GPU utilisation"}
MOST_LATE = 0.01  # share of late requests that still counts as meeting the target


def curve(frame: pd.DataFrame) -> str:
    """How much each signal grows from half load to the limit, and whether queue time says the most."""
    growths = {signal: growth(frame, signal) for signal in SIGNALS if not frame[signal].isna().any()}
    parts = [f"{SIGNALS[signal]} {times(value)}" for signal, value in growths.items() if signal != "queue_ms"]
    said = f"From half load to the limit queue time grows {times(growths['queue_ms'])}, {listed(parts)}"
    return said if growths["queue_ms"] == max(growths.values()) else f"{said}: here utilisation tells as much"


def half(frame: pd.DataFrame, signal: str) -> float:
    """A signal at half load, and no less than a thousandth of its unit."""
    return max(float(np.interp(0.5, frame["share"], frame[signal])), 1e-3)


def growth(frame: pd.DataFrame, signal: str) -> float:
    """A signal at the largest load over what it is at half load."""
    return float(frame[signal].iloc[-1]) / half(frame, signal)


def replay(summary: Mapping[str, Any], p95_ms: float) -> str:
    """What a policy costs, and what comes late."""
    price, late = number(summary["cost_per_million"]), percent(summary["late"])
    fleet = f"with {number(summary['replicas_mean'])} replicas on average"
    return f"{summary['name']}: {price} a million requests, {late} while the p95 was over {number(p95_ms)} ms, {fleet}"


def policies(frame: pd.DataFrame) -> str:
    """The cheapest policy that keeps the target, beside the dearest."""
    kept = frame[frame["late"] <= MOST_LATE]
    if kept.empty:
        best = frame.iloc[int(frame["late"].argmin())]
        return (
            f"No policy keeps the target: {best['name']} comes closest, with {percent(best['late'])} of requests late"
        )
    best = kept.iloc[int(kept["cost_per_million"].argmin())]
    dearest = frame.iloc[int(frame["cost_per_million"].argmax())]
    price = number(best["cost_per_million"])
    name = str(best["name"])
    start = f"{name[:1].upper()}{name[1:]} keeps the target for the least: {price} a million requests"
    if best["name"] == dearest["name"]:
        return f"{start}; whatever is cheaper comes late"
    share = 1 - best["cost_per_million"] / dearest["cost_per_million"]
    return f"{start}, {percent(share)} less than {dearest['name']}"


def day(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """How often policies change the replicas."""
    changes = {name: int(frame.loc[frame["name"] == name, "changes"].iloc[0]) for name in names}
    parts = [f"{name} {count:,} times" for name, count in changes.items()]
    return f"Through the day {listed(parts)} changes the number of replicas"


def burst(minutes: Mapping[str, float]) -> str:
    """How long after the burst each policy's latency was back within the target."""
    parts = [f"{name} in {number(value)} min" if value == value else f"{name} never" for name, value in minutes.items()]
    return f"Back within the target after the burst began: {'; '.join(parts)}"
