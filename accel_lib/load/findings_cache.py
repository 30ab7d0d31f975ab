"""What a response cache did, in words: from the tables of `accel_lib.load.response_cache` alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from accel_lib.formatting import number, percent, times

_FEW = 0.01


def gain(frame: pd.DataFrame, stopped: str = "") -> str:
    """Throughput with the cache where texts repeat most and where least, for each workload."""
    said = []
    for workload, part in _cached(frame).groupby("workload", sort=False):
        most = part.iloc[int(part["repeated"].to_numpy().argmax())]
        least = part.iloc[int(part["repeated"].to_numpy().argmin())]
        words = f"{workload}: {_verdict(most)} where {percent(most['repeated'])} of the texts repeat"
        if least["repeated"] < most["repeated"]:
            where = "none does" if least["repeated"] < _FEW else f"{percent(least['repeated'])} do"
            words += f", {_verdict(least)} where {where}"
        said.append(words)
    told = "; ".join(said) or "Nothing was measured with the cache on"
    told = told[0].upper() + told[1:]
    return f"{told}. It ended early: {stopped}" if stopped else told


def reason(frame: pd.DataFrame) -> str:
    """Why, where the cache matters most: its share of the answers, and the batches of what is left."""
    cached = _cached(frame).dropna(subset=["hits"])
    if cached.empty:
        return "Triton counted nothing to explain it by."
    row = cached.iloc[int(cached["hits"].to_numpy().argmax())]
    at = f"{row['workload']}, where {percent(row['repeated'])} of the texts repeat"
    if row["hits"] < _FEW:
        return f"At best ({at}) the cache answers {percent(row['hits'])}: what comes again is gone by then."
    told = f"At best ({at}) {percent(row['hits'])} of the requests are hits, which never reach the batcher"
    same = (frame["workload"] == row["workload"]) & (frame["kinds"] == row["kinds"]) & (frame["setting"] == "no cache")
    without = frame.loc[same, "mean_batch_size"]
    if len(without) and row["mean_batch_size"] == row["mean_batch_size"]:
        sizes = f"{number(row['mean_batch_size'])} rows, without the cache {number(without.iloc[0])}"
        shared = "still share batches of" if row["mean_batch_size"] > 1.1 else "run in batches of"
        told += f"; the misses {shared} {sizes}"
    return f"{told}."


def lookups(frame: pd.DataFrame) -> str:
    """How long a hit takes in place of a miss, for each workload."""
    said = []
    for workload, part in frame.groupby("workload", sort=False):
        miss, hit = (part[part["name"] == name].iloc[0] for name in ("miss", "hit"))
        spent = f"{number(hit['ms'])} ms, a miss {number(miss['ms'])} ms"
        sure = hit["speedup_low"] > 1 or hit["speedup_high"] < 1
        said.append(f"{workload}: {'a hit takes ' if sure else 'no significant difference: a hit takes '}{spent}")
    told = "; ".join(said)
    return told[0].upper() + told[1:]


def _cached(frame: pd.DataFrame) -> pd.DataFrame:
    cached: pd.DataFrame = frame[frame["setting"] == "cache"]
    return cached


def _verdict(row: pd.Series[Any]) -> str:
    if row["speedup_low"] > 1 or row["speedup_high"] < 1:
        return f"{times(row['speedup'], row['speedup_low'], row['speedup_high'])} the throughput"
    return "no significant difference"
