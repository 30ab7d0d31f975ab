"""Which way to be parallel is faster, in words: from the table of `accel_lib.load.split_model` alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from accel_lib.formatting import number, percent, times

INSTANCES, HALVES = "two instances", "two halves"
_NOTICED = 1.1


def race(frame: pd.DataFrame, stopped: str = "") -> str:
    """The winner on each workload, with its interval, or that there is no significant difference."""
    said = []
    for workload, part in frame.groupby("workload", sort=False):
        row = _row(part, HALVES)
        if row is None:
            said.append(f"{workload}: the halves were not measured")
        elif row["speedup_low"] > 1:
            ratio = times(row["speedup"], row["speedup_low"], row["speedup_high"])
            said.append(f"{workload}: the model in two halves has {ratio} the throughput of two instances")
        elif row["speedup_high"] < 1:
            ratio = times(1 / row["speedup"], 1 / row["speedup_high"], 1 / row["speedup_low"])
            said.append(f"{workload}: two instances have {ratio} the throughput of the model in two halves")
        else:
            said.append(f"{workload}: no significant difference between two instances and two halves")
    told = "; ".join(said)
    told = told[0].upper() + told[1:]
    return f"{told}. It ended early: {stopped}" if stopped else told


def winner(frame: pd.DataFrame, workload: str) -> str:
    """The faster of the two ways on a workload, or "no significant difference"."""
    row = _row(frame[frame["workload"] == workload], HALVES)
    if row is not None and row["speedup_low"] > 1:
        return HALVES
    return INSTANCES if row is not None and row["speedup_high"] < 1 else "no significant difference"


def reason(frame: pd.DataFrame) -> str:
    """Why, for each workload: what a text costs in each layout, and how busy the instances are."""
    said = []
    for workload, part in frame.groupby("workload", sort=False):
        halves, both = _row(part, HALVES), _row(part, INSTANCES)
        if halves is not None and both is not None:
            said.append(f"{workload}: {_mechanism(halves, both)}")
    told = "; ".join(said) or "there is nothing to compare"
    return f"{told[0].upper()}{told[1:]}."


def _mechanism(halves: pd.Series[Any], both: pd.Series[Any]) -> str:
    cost, busy = halves["text_ms"] / both["text_ms"], halves["busy"] / both["busy"]
    took = number(halves["text_ms"]), number(both["text_ms"])
    spent = f"a text takes {took[0]} ms in both halves together, {took[1]} ms in one of two instances"
    used = f"the halves are busy for {percent(halves['busy'])} of the time, the instances for {percent(both['busy'])}"
    if cost > _NOTICED and busy < 1 / _NOTICED:
        return f"{spent}, and {used}: handing over costs work, and one half waits for the other"
    if cost > _NOTICED:
        return f"{spent}: handing over costs work; {used}"
    if busy < 1 / _NOTICED:
        return f"{used}: one half waits for the other; {spent}"
    if cost < 1 / _NOTICED:
        return f"{spent}: each half keeps fewer weights at hand; {used}"
    return f"{spent}, and {used}: the cores do the same work either way"


def _row(part: pd.DataFrame, setting: str) -> Any:
    found = part[part["setting"] == setting]
    return None if found.empty else found.iloc[0]
