"""What an experiment says: the effect of settings against the first one, and why, from its table alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from accel_lib.lab.words import listed, number, percent, times

_NOTICED = 1.1  # ratio from which on a mechanism counts as an explanation
_ALONE = 1.05  # mean batch up to which requests ran alone
_REFUSED = 0.01


def effect(frame: pd.DataFrame, stopped: str = "") -> str:
    """The largest gain in throughput and the largest change of p95 against the first setting, or that there is none.

    Parameters
    ----------
    frame
        One row a setting and load, as `accel_lib.lab.experiment.Experiment` describes it.
    stopped
        Why the experiment ended early.
    """
    base, others = str(frame["setting"].iloc[0]), _others(frame)
    said = [_throughput(others, base), _latency(others, base), _refusals(frame)]
    told = "; ".join(part for part in said if part)
    if others.empty:
        first = frame.iloc[0]
        told = (
            told or f"{base}: {number(first['sentences_per_s'])} sentences/s at a p95 of {number(first['p95_ms'])} ms"
        )
    elif not told:
        names = listed(list(dict.fromkeys(frame["setting"])))
        told = f"No significant difference between {names}{_everywhere(frame)}"
    if frame["generator_bound"].any():
        told += ". The generator was the bottleneck in part of it"
    return f"{told}. It ended early: {stopped}" if stopped else told


def reason(frame: pd.DataFrame) -> str:
    """Why the setting with the largest effect has it, from batch sizes, times of executions and waiting."""
    others = _others(frame).dropna(subset=["mean_batch_size"])
    if others.empty:
        return "Triton counted nothing to explain it by"
    row = others.iloc[int(others.apply(_size_of_effect, axis=1).to_numpy().argmax())]
    base = frame[(frame["setting"] == frame["setting"].iloc[0]) & (frame["load"] == row["load"])].iloc[0]
    return f"{_at(row)[0].upper()}{_at(row)[1:]}, {_mechanism(row, base)}"


def _mechanism(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    batch, text = row["mean_batch_size"] / base["mean_batch_size"], row["text_ms"] / base["text_ms"]
    sizes = f"from {number(base['mean_batch_size'])} to {number(row['mean_batch_size'])} rows"
    each = f"{number(base['text_ms'])} to {number(row['text_ms'])} ms"
    if row["refused"] > max(base["refused"], _REFUSED):
        waits = f"those that are answered wait {number(row['queue_ms'])} in place of {number(base['queue_ms'])} ms"
        return f"{percent(row['refused'])} of the requests are refused, and {waits}"
    if batch > _NOTICED and text < 1 / _NOTICED:
        return f"batches grow {sizes}, and a text costs less, from {each}: the weights are read once a batch"
    if batch > _NOTICED and text > _NOTICED:
        return f"batches grow {sizes}, but a text costs more in them, {each}: padding, or arithmetic that does not fit"
    if batch > _NOTICED:
        return f"batches grow {sizes}, but a text costs the same {number(row['text_ms'])} ms: arithmetic is the limit"
    if batch < 1 / _NOTICED and text > _NOTICED:
        return f"batches shrink {sizes}, and a text costs more in them, from {each}"
    if batch < 1 / _NOTICED:
        return f"batches shrink {sizes}, and a text costs {'less' if text < 1 / _NOTICED else 'the same'}, from {each}"
    if text > _NOTICED:
        return f"batches stay alike, and a text takes an instance {each}: the instances share what is the limit"
    if text < 1 / _NOTICED:
        return f"batches stay alike, and an instance's time for a text falls from {each}"
    return _waiting(row, base)


def _waiting(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    """Why a setting matters, or not, that changes neither the batches nor the time of a text."""
    more = row["queue_ms"] - base["queue_ms"]
    if more > (_NOTICED - 1) * base["p50_ms"]:
        if row["mean_batch_size"] <= _ALONE:
            return f"the setting only adds {number(more)} ms of waiting: the queue never holds two requests"
        return f"requests wait {number(more)} ms longer, and the batches are as they were"
    if -more > (_NOTICED - 1) * base["p50_ms"]:
        return f"requests wait {number(-more)} ms less, and the batches are as they were"
    alike = f"batches of {number(row['mean_batch_size'])} rows and {number(row['text_ms'])} ms a text"
    return f"nothing changes inside: {alike} with either setting"


def _throughput(others: pd.DataFrame, base: str) -> str:
    gains, losses = others[others["speedup_low"] > 1], others[others["speedup_high"] < 1]
    if len(gains):
        best = gains.iloc[int(gains["speedup"].to_numpy().argmax())]
        return f"{best['setting']}: {times(best['speedup'])} the throughput of {base} {_at(best)}"
    if len(losses):
        worst = losses.iloc[int(losses["speedup"].to_numpy().argmin())]
        return f"{worst['setting']}: only {times(worst['speedup'])} the throughput of {base} {_at(worst)}"
    return ""


def _latency(others: pd.DataFrame, base: str) -> str:
    worse, better = others[others["p95_ratio_low"] > 1], others[others["p95_ratio_high"] < 1]
    parts = []
    if len(better):
        row = better.iloc[int(better["p95_ratio"].to_numpy().argmin())]
        parts.append(f"{row['setting']} has {times(row['p95_ratio'])} the p95 of {base} {_at(row)}")
    if len(worse):
        row = worse.iloc[int(worse["p95_ratio"].to_numpy().argmax())]
        parts.append(
            f"{row['setting']} {times(row['p95_ratio'])} its p95 {_at(row)}"
            if parts
            else f"{row['setting']} has {times(row['p95_ratio'])} the p95 of {base} {_at(row)}"
        )
    return ", ".join(parts)


def _refusals(frame: pd.DataFrame) -> str:
    worst = frame.iloc[int(frame["refused"].to_numpy().argmax())]
    if worst["refused"] <= _REFUSED:
        return ""
    return f"{worst['setting']} refuses {percent(worst['refused'])} of the requests {_at(worst)}"


def _others(frame: pd.DataFrame) -> pd.DataFrame:
    others: pd.DataFrame = frame.loc[frame["setting"] != frame["setting"].iloc[0]]
    return others


def _size_of_effect(row: pd.Series[Any]) -> float:
    """How far throughput or p95 is from unchanged, on the side that is certain."""
    sides = ("speedup", "p95_ratio")
    certain = [max(row[f"{side}_low"], 1 / row[f"{side}_high"]) for side in sides]
    return max((value for value in certain if value == value), default=0.0)


def _at(row: pd.Series[Any]) -> str:
    if row["open"]:
        return f"at {number(row['load'])} requests/s"
    return "with 1 request under way" if row["load"] == 1 else f"with {row['load']:.0f} requests under way"


def _everywhere(frame: pd.DataFrame) -> str:
    rows = frame.drop_duplicates("load")
    return f" {_at(rows.iloc[0])}" if len(rows) == 1 else " at any load"
