"""What a queue under pressure does: goodput, when rejections come, and who waits, computed from the tables."""

from __future__ import annotations

import math

import pandas as pd

from accel_lib.formatting import number, times
from accel_lib.triton.refusals import request_error

_TIMED_OUT = request_error("", "Request timeout expired").cause
_NO_ANSWER = request_error("", "DEADLINE_EXCEEDED").cause
_CLEAR = 1.15  # ratio from which on one goodput, or one p95, is better than another


def goodput(frame: pd.DataFrame, target_ms: float) -> str:
    """Which setting answers most in time at the highest load, or why none does.

    Parameters
    ----------
    frame
        One row a setting and load: ``setting``, ``load``, ``goodput_per_s``, ``p50_ms``.
    target_ms
        Latency within which an answer counts.
    """
    top = frame[frame["load"] == frame["load"].max()].reset_index(drop=True)
    base, best = top.iloc[0], top.iloc[int(top["goodput_per_s"].to_numpy().argmax())]
    at = f"At {number(base['load'])} requests/s"
    if frame["goodput_per_s"].max() <= 0:
        least = number(float(frame["p50_ms"].min()))
        return f"Nothing is answered within {target_ms:g} ms: even at the lowest load half take {least} ms or more"
    if best["goodput_per_s"] <= _CLEAR * base["goodput_per_s"]:
        said = f"{at} no setting answers more within {target_ms:g} ms than {base['setting']}"
        worst = top.iloc[int(top["goodput_per_s"].to_numpy().argmin())]
        if base["goodput_per_s"] > _CLEAR * worst["goodput_per_s"]:
            said += f"; {worst['setting']} only {_rate(worst['goodput_per_s'])} against {_rate(base['goodput_per_s'])}"
        return said
    many = f"{_rate(best['goodput_per_s'])} within {target_ms:g} ms"
    return f"{at} {best['setting']} answers {many}, {base['setting']} {_rate(base['goodput_per_s'])}"


def rejections(frame: pd.DataFrame, configured_ms: float) -> str:
    """How much later than configured rejections came, and how many requests never heard of it.

    Parameters
    ----------
    frame
        One row a failed request: ``ms``, ``error``.
    configured_ms
        The configured timeout.
    """
    ms, silent = timed_out(frame)["ms"], int((frame["error"] == _NO_ANSWER).sum())
    never = f"; {silent:,} requests had no answer at all when their client gave up" if silent else ""
    if ms.empty:
        return f"Nothing was rejected by a timeout of {configured_ms:g} ms{never}"
    half, most = float(ms.median()), float(ms.max())
    said = f"A timeout of {configured_ms:g} ms rejects half of its cases by {number(half)} ms, all by {number(most)} ms"
    late = half / configured_ms
    return f"{said}: {times(late) + ' as late as it says' if late > _CLEAR else 'about when it says'}{never}"


def timed_out(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of requests that the queue's timeout rejected."""
    rows: pd.DataFrame = frame.loc[frame["error"] == _TIMED_OUT]
    return rows


def priorities(frame: pd.DataFrame) -> str:
    """What levels do for the urgent requests, and what the others pay, against the first setting.

    Parameters
    ----------
    frame
        One row a setting and priority: ``setting``, ``priority``, ``p95_ms``.
    """
    base, last = (frame[frame["setting"] == name] for name in (frame["setting"].iloc[0], frame["setting"].iloc[-1]))
    urgent, patient = last["priority"].min(), last["priority"].max()
    before, after = (_p95(part, urgent) for part in (base, last))
    others_before, others_after = (_p95(part, patient) for part in (base, last))
    if math.isnan(before) or before <= _CLEAR * after:
        said = f"Levels do not help the urgent requests: a p95 of {number(after)} ms, {number(before)} ms without"
    else:
        said = f"Levels bring the p95 of the urgent requests from {number(before)} to {number(after)} ms"
    if others_after > _CLEAR * others_before:
        return f"{said}; the others pay, {number(others_before)} to {number(others_after)} ms"
    return f"{said}; the others stay at {number(others_after)} ms"


def _p95(frame: pd.DataFrame, priority: int) -> float:
    row = frame[frame["priority"] == priority]
    return float(row["p95_ms"].iloc[0]) if len(row) else math.nan


def _rate(value: float) -> str:
    return f"{number(value)} a second"
