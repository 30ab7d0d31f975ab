"""What an experiment says: the effect of settings against the first one, and why, from its table alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from accel_lib.formatting import listed, number, percent, times

_NOTICED = 1.1  # ratio from which on a mechanism counts as an explanation
_ALONE = 1.05  # mean batch up to which requests ran alone
_REFUSED = 0.01


def effect(frame: pd.DataFrame, stopped: str = "") -> str:
    """The largest gain in throughput and the largest change of p95 against the first setting, or that there is none.

    Parameters
    ----------
    frame
        One row a setting and load, as `accel_lib.load.vary.Experiment` describes it.
    stopped
        Why the experiment ended early.
    """
    base, others = str(frame["setting"].iloc[0]), _others(frame)
    said = [_changes(others, base), _refusals(frame)]
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
    if row["refused"] > max(base["refused"], _REFUSED):
        refused = f"{percent(row['refused'])} of the requests are refused"
        if row["busy"] < base["busy"] / _NOTICED**2:
            return f"{refused}, while the instances are busy for {percent(row['busy'])} of the time: the batcher sleeps"
        waits = f"those that are answered wait {number(row['queue_ms'])} in place of {number(base['queue_ms'])} ms"
        return f"{refused}, and {waits}"
    if row["instances"] != base["instances"]:
        return _side_by_side(row, base)
    if 1 / _NOTICED <= batch <= _NOTICED:
        return _waiting(row, base)
    return _batches(row, base, grown=batch > 1, text=text)


def _batches(row: pd.Series[Any], base: pd.Series[Any], *, grown: bool, text: float) -> str:
    """Why batches of another size matter, or not: what a text costs in them, and how long requests wait for them."""
    verb = "grow" if grown else "shrink"
    said = f"batches {verb} from {number(base['mean_batch_size'])} to {number(row['mean_batch_size'])} rows"
    each = f"from {number(base['text_ms'])} to {number(row['text_ms'])} ms"
    if text < 1 / _NOTICED:
        why = ": what a batch costs by itself is shared by more" if grown else ""
        said += f", and an instance's time for a text falls {each}{why}"
    elif text > _NOTICED:
        why = ": each is padded to the longest" if grown else ": what a batch costs by itself is shared by fewer"
        said += f", and an instance's time for a text grows {each}{why}"
    else:
        said += f", but a text costs the same {number(row['text_ms'])} ms: arithmetic is the limit"
    waits = row["queue_ms"] - base["queue_ms"]
    if abs(waits) > max((_NOTICED - 1) * base["p50_ms"], abs(row["execution_ms"] - base["execution_ms"])):
        said += f"; requests wait {number(abs(waits))} ms {'longer' if waits > 0 else 'less'}"
    return said


def _side_by_side(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    """Why more or fewer instances matter, or not."""
    each = f"a text keeps one busy for {number(row['text_ms'])} in place of {number(base['text_ms'])} ms"
    batches = f"batches have {number(row['mean_batch_size'])} in place of {number(base['mean_batch_size'])} rows"
    ratio = (row["text_ms"] / base["text_ms"]) / (row["instances"] / base["instances"])
    if ratio > _NOTICED:
        return f"{each}, and {batches}: together they do less, as they share cores and split the batches"
    if ratio < 1 / _NOTICED:
        return f"{each}, and {batches}: together they do more, as one had left something idle"
    return f"{each}, and {batches}: together they do the same, as they share what is the limit"


def _waiting(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    """Why a setting matters, or not, that leaves the batches as they are."""
    waits, works = row["queue_ms"] - base["queue_ms"], row["execution_ms"] - base["execution_ms"]
    least = (_NOTICED - 1) * base["p50_ms"]
    if waits > max(least, works):
        if row["mean_batch_size"] <= _ALONE:
            return f"the setting only adds {number(waits)} ms of waiting: the queue never holds two requests"
        return f"requests wait {number(waits)} ms longer, and the batches are as they were"
    if waits < min(-least, works):
        return f"requests wait {number(-waits)} ms less, and the batches are as they were"
    if abs(works) > least:
        much = f"from {number(base['execution_ms'])} to {number(row['execution_ms'])} ms"
        return f"batches are as large as before, and one goes {much}"
    alike = f"batches of {number(row['mean_batch_size'])} rows and {number(row['text_ms'])} ms a text"
    return f"nothing changes inside: {alike} with either setting"


def _changes(others: pd.DataFrame, base: str) -> str:
    """The rows with the largest certain gain and loss, in throughput and p95."""
    more, less = _extreme(others, "speedup"), _extreme(others, "speedup", least=True)
    slower, quicker = _extreme(others, "p95_ratio"), _extreme(others, "p95_ratio", least=True)
    told: dict[Any, tuple[Any, list[str]]] = {}
    faster = (more if more is not None else less, "speedup", "throughput")
    for row, column, words in (faster, (quicker, "p95_ratio", "p95"), (slower, "p95_ratio", "p95")):
        if row is not None:
            told.setdefault(row.name, (row, []))[1].append(f"{times(row[column])} the {words}")
    parts = [f"{row['setting']}: {' and '.join(facts)} of {base} {_at(row)}" for row, facts in told.values()]
    return "; ".join(parts)


def _extreme(others: pd.DataFrame, column: str, *, least: bool = False) -> Any:
    """The row that is certainly above 1, or below, by most; None where none is."""
    sure = others[others[f"{column}_high"] < 1] if least else others[others[f"{column}_low"] > 1]
    if sure.empty:
        return None
    values = sure[column].to_numpy()
    return sure.iloc[int(values.argmin() if least else values.argmax())]


def _refusals(frame: pd.DataFrame) -> str:
    worst = frame.iloc[int(frame["refused"].to_numpy().argmax())]
    if worst["refused"] <= _REFUSED:
        return ""
    return f"{worst['setting']}: {percent(worst['refused'])} of the requests refused {_at(worst)}"


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
