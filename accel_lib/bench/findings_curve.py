"""What a latency curve says, where its time goes, and what a batch gains by the tokens in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent, times

_AGREE = 1.5  # ratio up to which two ways of counting say the same
_KNEE = 2.0  # times the least p95
_WEIGHT_BYTES = 4
_WORTH = 1.2  # gain from which on batching is worth a word
SPANS = {
    "late_ms": "waiting in the client",
    "client_ms": "client and transport",
    "queue_ms": "Triton's queue",
    "compute_ms": "the model",
}


def curve(frame: pd.DataFrame, closed_p95_ms: float) -> str:
    """What the p95 is at the highest rate by three ways of counting, and up to which rate the first two agree.

    Parameters
    ----------
    frame
        One row a rate, rising: ``share``, ``p95_ms``, ``naive_p95_ms``, ``generator_bound``.
    closed_p95_ms
        The p95 of the closed loop that gave the capacity.
    """
    last = frame.iloc[-1]
    at = f"At {percent(last['share'])} of capacity"
    due, naive, closed = (number(value) for value in (last["p95_ms"], last["naive_p95_ms"], closed_p95_ms))
    if last["p95_ms"] > _AGREE * last["naive_p95_ms"]:
        said = f"{at} the p95 is {due} ms from when requests were due; the client's own clock says {naive} ms"
    else:
        said = f"{at} the p95 is {due} ms from when requests were due, and alike, {naive} ms, on the client's own clock"
    said += f", a closed loop {closed} ms"
    bound = frame.loc[frame["generator_bound"], "share"]
    if len(bound):
        said += f". From {percent(float(bound.min()))} on the generator was the bottleneck"
    return said


def knee(frame: pd.DataFrame) -> str:
    """The highest rate before latency rises: the last one whose p95 is within twice the least."""
    calm = frame[frame["p95_ms"] <= _KNEE * frame["p95_ms"].min()]
    last = calm.iloc[-1]
    if len(calm) == len(frame):
        return f"No knee up to {percent(last['share'])} of capacity: the p95 stays within {number(last['p95_ms'])} ms"
    rate = f"{number(last['offered_per_s'])} requests/s, {percent(last['share'])} of capacity"
    return f"The knee is at {rate}: up to there the p95 stays within {number(last['p95_ms'])} ms"


def split(frame: pd.DataFrame) -> str:
    """Which part of the latency grows most from the lowest to the highest rate."""
    parts = spans(frame)
    first, last = parts.iloc[0], parts.iloc[-1]
    growth = (last - first).sort_values()
    most = str(growth.index[-1])
    total = f"from {number(first.sum())} to {number(last.sum())} ms a request"
    if last.sum() <= _AGREE * first.sum():
        return f"The rate changes little, {total}; most of it is {last.idxmax()}"
    share = max(growth.iloc[-1], 0) / max(growth.clip(lower=0).sum(), 1e-9)
    model = f"the model itself goes from {number(first[SPANS['compute_ms']])} to {number(last[SPANS['compute_ms']])} ms"
    return f"Load takes a request {total}: {percent(share)} of the growth is {most}; {model}"


def spans(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean milliseconds a request by span, one row a rate, in the order in which a request passes them."""
    inside = frame[["compute_input_ms", "compute_infer_ms", "compute_output_ms"]].sum(axis=1)
    parts = frame.assign(compute_ms=inside)[list(SPANS)]
    return parts.rename(columns=SPANS)


def crossover(frame: pd.DataFrame) -> str:
    """How many tokens a batch takes for nearly nothing, and what batching gains by the length of the texts.

    Parameters
    ----------
    frame
        One row a size, as `accel_lib.bench.roofline.Crossover` describes it.
    """
    gained = {int(str(length)): gain for length, gain in gains(frame).items()}
    words = [" for texts", *[""] * (len(gained) - 1)]
    parts = [f"{times(gain)}{of} of {length} tokens" for of, (length, gain) in zip(words, gained.items(), strict=True)]
    if max(gained.values()) < _WORTH:
        return f"Batching gains nothing at any length here: {listed(parts)}"
    if min(gained.values()) >= _WORTH and max(gained.values()) < _AGREE * min(gained.values()):
        return f"Batching gains about as much at every length: {listed(parts)}"
    return f"Batching gains {listed(parts)}"


def limits(row: pd.Series[Any]) -> str:
    """From how many tokens on arithmetic is the larger part, and what speeds of reading and computing that means.

    Parameters
    ----------
    row
        ``batch_ms``, ``token_us``, ``weights`` and ``device``.
    """
    fixed, each, weights = row["batch_ms"], row["token_us"], row["weights"]
    if each <= 0:
        return f"Every batch here takes {number(fixed)} ms, whatever is in it: more tokens cost nothing to be measured"
    speed = f"multiplying {number(weights / 1e6)} million weights at {number(2 * weights / each / 1e3)} GFLOP/s"
    if fixed <= 0:
        return f"A token takes {number(each)} µs in a batch of any size, as {speed}: no part is left to share"
    read = f"as reading them once at {number(_WEIGHT_BYTES * weights / fixed / 1e6)} GB/s"
    if row["device"] != "cpu":  # whose memory gives them far sooner
        read = "mostly to launch its kernels one by one"
    said = f"A token takes {number(each)} µs, as {speed}, and a batch {number(fixed)} ms beside, {read}"
    return f"{said}: from {number(1e3 * fixed / each)} tokens on the tokens take longer"


def gains(frame: pd.DataFrame) -> pd.Series[float]:
    """Time of a text alone over its time in the best batch, by tokens of the text."""
    each = frame.assign(text_ms=frame["ms"] / frame["batch_size"]).set_index("tokens")
    alone = each.loc[each["batch_size"] == each["batch_size"].min(), "text_ms"]
    best = each.groupby(level=0)["text_ms"].min()
    ratios: pd.Series[float] = (alone / best).replace([np.inf], np.nan).sort_index()
    return ratios
