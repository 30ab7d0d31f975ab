"""What the rate limiter did, in words: from the table of `accel_lib.load.rate_limiter` alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from accel_lib.formatting import listed, number, percent, times

ALONE = "alone"
_AT_ONCE = 0.1  # of the time, from which on two models count as having worked at once


def sharing(frame: pd.DataFrame, stopped: str = "") -> str:
    """What each setting does to the quick model's p95 and the busy one's throughput, or that none does anything."""
    shared = frame[frame["setting"] != ALONE]
    base, others = shared.iloc[0], shared.iloc[1:]
    said = [words for _, row in others.iterrows() if (words := _changes(row, base))]
    nothing = [str(row["setting"]) for _, row in others.iterrows() if not _changes(row, base)]
    if nothing:
        said.append(f"no significant difference between {listed([str(base['setting']), *nothing])}")
    told = "; ".join(said) or f"{base['setting']}: the quick model's p95 is {number(base['p95_ms'])} ms"
    told = told[0].upper() + told[1:]
    return f"{told}. It ended early: {stopped}" if stopped else told


def reason(frame: pd.DataFrame) -> str:
    """Why, from how long both models worked, and from what the quick one takes alone."""
    shared = frame[frame["setting"] != ALONE]
    said = []
    for _, row in shared.iterrows():
        how = "at times at once" if row["busy"] > 1 + _AT_ONCE else "hardly ever at once"
        said.append(f"{row['setting']}: {percent(row['busy'])}, {how}")
    told = f"Share of the time that the two models worked, summed: {'; '.join(said)}."
    alone = frame[frame["setting"] == ALONE]
    if len(alone):
        told += f" Alone, the quick one's p95 is {number(alone['p95_ms'].iloc[0])} ms."
    return told


def _changes(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    facts = []
    if _sure(row, "p95_ratio"):
        facts.append(f"{times(row['p95_ratio'])} the quick model's p95 ({number(row['p95_ms'])} ms)")
    if _sure(row, "speedup"):
        facts.append(f"{times(row['speedup'])} the busy one's throughput")
    return f"{row['setting']}: {' and '.join(facts)} of {base['setting']}" if facts else ""


def _sure(row: pd.Series[Any], column: str) -> bool:
    return bool(row[f"{column}_low"] > 1 or row[f"{column}_high"] < 1)
