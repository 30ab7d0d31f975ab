"""Latency against the offered rate: from when requests were due, on the client's clock, and in a closed loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from accel_lib.bench import findings_curve
from accel_lib.errors import AccelError
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.triton.client import ServedModel

SHARES = (0.3, 0.6, 0.8, 0.9, 1.0, 1.1)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RateCurve(Result):
    """What `rate_curve` measured; `frame` has one row a rate.

    Parameters
    ----------
    frame
        ``share`` of the capacity, then the columns of a load run's summary: ``offered_per_s``, ``sentences_per_s``,
        ``p95_ms`` with its interval, ``naive_p95_ms`` (from when a request was really sent), ``queue_ms``,
        ``compute_infer_ms``, ``client_ms`` and so on, ``late_ms`` (mean time that requests were sent late), and
        ``generator_bound``.
    closed
        The closed loop with as many clients as there are connections, whose throughput is the capacity.
    """

    closed: LoadRun

    @property
    def capacity(self) -> float:
        """Sentences a second that a closed loop gets."""
        return self.closed.throughput

    @property
    def headline(self) -> str:
        """What the three ways of counting say at the highest rate, and up to where they agree."""
        return findings_curve.curve(self.frame, self.closed.p95_ms)


def rate_curve(
    served: ServedModel,
    texts: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    connections: int = 8,
    seconds: float = 2.5,
    seed: int = 0,
) -> RateCurve:
    """Measure a closed loop, then open loops at shares of the rate that it reached.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        Sent in turn, one a request.
    shares
        Rates as shares of the closed loop's throughput, rising.
    connections
        Requests that the client can have under way, in the closed loop and in the open ones.
    seconds
        How long to measure each.
    seed
        Of the Poisson arrivals.

    Raises
    ------
    AccelError
        Shares that are not above zero.
    """
    if not shares or min(shares) <= 0:
        raise AccelError("A curve needs rates.", seen=tuple(shares), fix="shares=(0.5, 0.8, 1.0, 1.1), above zero")
    progress = Progress("Curve")
    closed = load_test(served, texts, concurrency=connections, seconds=seconds, warmup_s=0.5)
    rows = []
    for share in shares:
        progress.tick(f"{share:.0%} of {closed.throughput:,.0f} requests/s")
        rate = share * closed.throughput
        run = load_test(served, texts, rate=rate, connections=connections, seconds=seconds, warmup_s=0.2, seed=seed)
        rows.append({"share": share} | _row(run))
    progress.clear()
    return RateCurve(frame=to_frame(rows), closed=closed)


def _row(run: LoadRun) -> dict[str, Any]:
    row: dict[str, Any] = {str(name): value for name, value in run.summary.iloc[0].items()}
    late: pd.Series[float] = run.frame["ms"] - run.frame["naive_ms"]
    return row | {"late_ms": float(late.mean()), "generator_bound": run.generator_bound}
