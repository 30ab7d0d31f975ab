"""Latency against the offered rate: from when requests were due, on the client's clock, and in a closed loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import Result, highest, to_frame
from accel_lib.progress import Progress
from accel_lib.triton.client import ServedModel

SHARES = (0.3, 0.6, 0.8, 0.9, 1.0, 1.1)
_KNEE = 2.0  # times the least p95
_SPANS = {
    "late_ms": "waiting in the client",
    "client_ms": "client and transport",
    "queue_ms": "Triton's queue",
    "compute_ms": "the model",
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RateCurve(Result):
    """What `rate_curve` measured; `frame` has one row a rate.

    Parameters
    ----------
    frame
        ``share`` of the capacity, then the columns of a load run's summary: ``offered_per_s``, ``texts_per_s``,
        ``p95_ms`` with its interval, ``naive_p95_ms`` (from when a request was really sent), ``queue_ms``,
        ``compute_infer_ms``, ``client_ms`` and so on, ``late_ms`` (mean time that requests were sent late), and
        ``generator_bound``.
    closed
        The closed loop with as many clients as there are connections, whose throughput is the capacity.
    """

    closed: LoadRun

    @property
    def capacity(self) -> float:
        """Texts/s in the closed loop."""
        return self.closed.throughput

    @property
    def headline(self) -> str:
        """The p95 at the highest rate by the three ways of counting, and at a lower one where it was higher."""
        last, worst = self.frame.iloc[-1], highest(self.frame, "p95_ms")
        due, naive, closed = (number(ms) for ms in (last["p95_ms"], last["naive_p95_ms"], self.closed.p95_ms))
        said = f"p95 at {percent(last['share'])} of capacity: {due} ms from when requests were due, {naive} ms on the "
        bound = "; the generator was the bottleneck in part of it" if self.frame["generator_bound"].any() else ""
        above = f"; {number(worst['p95_ms'])} ms at {percent(worst['share'])}" if worst["share"] < last["share"] else ""
        return f"{said}client's own clock; {closed} ms in a closed loop{above}{bound}"

    @property
    def knee(self) -> str:
        """The highest rate before latency rises: the last one whose p95 is within twice the least."""
        low = self.frame[self.frame["p95_ms"] <= _KNEE * self.frame["p95_ms"].min()]
        last = low.iloc[-1]
        if len(low) == 1 and len(self.frame) > 1 and low.index[0] == 0:
            low_per_s, above = (number(rate) for rate in self.frame["offered_per_s"].iloc[:2])
            return f"The knee is between {low_per_s} and {above} requests/s: there the p95 more than doubles"
        if len(low) == len(self.frame):
            return f"No knee up to {percent(last['share'])} of capacity: a p95 of {number(last['p95_ms'])} ms"
        rate = f"{number(last['offered_per_s'])} requests/s, {percent(last['share'])} of capacity"
        return f"The knee is at {rate}: up to there the p95 stays within {number(last['p95_ms'])} ms"

    @property
    def explanation(self) -> str:
        """Which part of a request's time grows most from the lowest rate to the one at which it takes longest."""
        means = self.spans.sum(axis=1).to_numpy()
        at, shares = int(means.argmax()), self.frame["share"].tolist()
        if not at:
            return f"A request's mean time is highest at the lowest rate: {number(means[0])} ms"
        grown = self.spans.iloc[at] - self.spans.iloc[0]
        ends = [f"{number(means[place])} ms at {percent(shares[place])}" for place in (0, at)]
        most = f"{grown.idxmax()} grows most, by {number(grown.max())} ms"
        return f"A request's mean time goes from {ends[0]} of capacity to {ends[1]}; {most}"

    @property
    def spans(self) -> pd.DataFrame:
        """Mean milliseconds a request by span, one row a rate, in the order in which a request passes them."""
        inside = self.frame[["compute_input_ms", "compute_infer_ms", "compute_output_ms"]].sum(axis=1)
        return self.frame.assign(compute_ms=inside)[list(_SPANS)].rename(columns=_SPANS)


def rate_curve(
    served: ServedModel,
    texts: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    connections: int = 8,
    seconds: float = 2.5,
    closed: LoadRun | None = None,
) -> RateCurve:
    """Measure a closed loop, then open loops at shares of the rate that it reached.

    Parameters
    ----------
    shares
        Rates as shares of the closed loop's throughput, rising.
    connections
        Requests that the client can have in flight, in the closed loop and in the open ones.
    closed
        The closed loop, where it was measured before.
    """
    if not shares or min(shares) <= 0:
        raise AccelError("A curve needs rates.", seen=tuple(shares), fix="shares=(0.5, 0.8, 1.0, 1.1), above zero")
    progress = Progress("Curve")
    closed = closed or load_test(served, texts, concurrency=connections, seconds=seconds, warmup_s=0.5)
    rows = []
    for share in shares:
        progress.tick(f"{share:.0%} of {closed.throughput:,.0f} requests/s")
        rate = share * closed.throughput
        run = load_test(served, texts, rate=rate, connections=connections, seconds=seconds, warmup_s=0.2)
        row: dict[str, Any] = {"share": share} | {str(name): value for name, value in run.summary.iloc[0].items()}
        row["late_ms"] = float((run.frame["ms"] - run.frame["naive_ms"]).mean())
        rows.append(row | {"generator_bound": run.generator_bound})
    progress.clear()
    return RateCurve(frame=to_frame(rows), closed=closed)
