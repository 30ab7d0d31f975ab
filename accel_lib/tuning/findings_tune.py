"""What a sweep of settings says, computed from its table: which one to take, and what each setting alone changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.formatting import number, times

# The settings of a sweep, each with the words that its value gets; simpler values are smaller.
SETTINGS: dict[str, Callable[[Any], str]] = {
    "version": lambda value: f"version {value:.0f}",
    "instance_count": lambda value: f"{value:.0f} instance{'s' if value > 1 else ''}",
    "threads": lambda value: f"{value:.0f} thread{'s' if value > 1 else ''} each",
    "max_queue_delay_us": lambda value: f"{value / 1e3:g} ms queue delay" if value else "no queue delay",
    "max_batch_tokens": lambda value: f"≤ {value:,.0f} tokens a batch",
    "max_batch_size": lambda value: f"batches of up to {value:.0f}" if value > 1 else "no batches",
    "preferred_batch_size": lambda value: f"preferably {value:.0f}" if value else "no preferred size",
}
_MOVED = 0.15  # share by which a mean batch must change to be called another one


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings that a table has columns for."""
    return [name for name in SETTINGS if name in frame]


def setting(row: pd.Series[Any]) -> str:
    """One setting in words: ``"1 instance, no queue delay, ≤ 512 tokens a batch"``."""
    engine = [str(row["engine"])] if isinstance(row.get("engine"), str) else []
    return ", ".join([*engine, *(SETTINGS[name](row[name]) for name in varied(row.to_frame().T))])


def with_front(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with ``on_front``: whether no other setting has both a lower p95 and more throughput."""
    p95, rate = frame["p95_ms"].to_numpy(dtype=float), frame["sentences_per_s"].to_numpy(dtype=float)
    beaten = [bool(((p95 <= p) & (rate >= r) & ((p95 < p) | (rate > r))).any()) for p, r in zip(p95, rate, strict=True)]
    found = frame.assign(on_front=~np.array(beaten, dtype=bool))
    found.attrs.update(frame.attrs)
    return found


def tuning(frame: pd.DataFrame, p95_ms: float, *, alone_ms: float = 0.0) -> str:
    """Which setting answers most within the latency target, or that none does."""
    best = best_setting(frame, p95_ms)
    if best["p95_ms"] > p95_ms:
        said = f"No setting meets a p95 of {p95_ms:g} ms: the closest, {setting(best)}, has {number(best['p95_ms'])} ms"
        if alone_ms > p95_ms:
            said += f"; none can, as a request that is alone takes {number(alone_ms)} ms already"
        return said
    said = f"{setting(best)}: {number(best['sentences_per_s'])} sentences/s at a p95 of {number(best['p95_ms'])} ms"
    alike = len(_alike(frame, p95_ms))
    if alike == len(frame) > 1:
        return f"No significant difference between the {alike} settings: took the simplest, {said}"
    return f"{said}; {alike} settings are indistinguishable, took the simplest" if alike > 1 else said


def best_setting(frame: pd.DataFrame, p95_ms: float) -> pd.Series[Any]:
    """The row with most throughput under the target, the simplest of equals; the lowest p95 where none meets it."""
    alike = _alike(frame, p95_ms)
    if alike.empty:
        closest: pd.Series[Any] = frame.sort_values("p95_ms").iloc[0]
        return closest
    simplest: pd.Series[Any] = alike.sort_values(varied(frame)).iloc[0]
    return simplest


def front(rows: pd.DataFrame) -> list[str]:
    """Each setting of a front with its p95 and throughput."""
    return [
        f"p95 {number(row['p95_ms'])} ms, {number(row['sentences_per_s'])} sentences/s: {setting(row)}"
        for _, row in rows.iterrows()
    ]


def reasons(frame: pd.DataFrame, p95_ms: float) -> list[str]:
    """What each setting alone changes: the best one beside those that differ from it in one value."""
    best = best_setting(frame, p95_ms)
    names = varied(frame)
    lines = []
    for name in names:
        others = [other for other in names if other != name]
        same = (frame[others] == best[others]).all(axis=1) & (frame[name] != best[name])
        lines += [_reason(name, best, row) for _, row in frame[same].iterrows()]
    return lines


def _reason(name: str, best: pd.Series[Any], row: pd.Series[Any]) -> str:
    words, engine = SETTINGS[name], ""
    if name == "version" and isinstance(row.get("engine"), str):
        engine = f" ({row['engine']} instead of {best['engine']})"
    start = f"{words(row[name])} instead of {words(best[name])}{engine}"
    faster, slower = _apart(row, best, "sentences_per_s"), _apart(row, best, "p95_ms")
    batches = _batches(best, row)
    if not faster and not slower:
        return f"{start}: no significant difference{batches}"
    rate = times(row["sentences_per_s"] / best["sentences_per_s"]) if faster else "no other"
    late = times(row["p95_ms"] / best["p95_ms"]) if slower else "no other"
    if not faster and slower > 0:
        return f"{start} only adds latency, {late} the p95{batches}"
    return f"{start}: {rate} throughput, {late} p95{batches}"


def _batches(best: pd.Series[Any], row: pd.Series[Any]) -> str:
    """How the batches of two settings differ, where Triton counted them."""
    before, after = (float(one.get("mean_batch_size", np.nan)) for one in (best, row))
    if not before > 0 or not after > 0:
        return ""
    if abs(after / before - 1) < _MOVED:
        return f", with batches of {number(before)} on average either way"
    return f", with batches of {number(after)} on average instead of {number(before)}"


def _apart(row: pd.Series[Any], other: pd.Series[Any], name: str) -> int:
    """1 where a row's interval is above another's, -1 below, 0 where they overlap."""
    if row[f"{name}_low"] > other[f"{name}_high"]:
        return 1
    return -1 if row[f"{name}_high"] < other[f"{name}_low"] else 0


def _alike(frame: pd.DataFrame, p95_ms: float) -> pd.DataFrame:
    """The settings within the target that are not told apart from the fastest of them.

    By the interval of their ratio to it, or, in a table without, by whether their own intervals overlap.
    """
    meets: pd.DataFrame = frame.loc[frame["p95_ms"] <= p95_ms]
    if meets.empty:
        return meets
    best = meets.iloc[int(meets["sentences_per_s"].to_numpy(dtype=float).argmax())]
    alike = meets["sentences_per_s_high"] >= best["sentences_per_s_low"]
    if "over_best_high" in meets:
        alike = meets["over_best_high"] >= 1
    found: pd.DataFrame = meets.loc[alike]
    return found
