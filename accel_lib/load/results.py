"""A run of requests, measured or simulated: throughput, latency percentiles, goodput, errors."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.measurement import Result
from accel_lib.stats import median_interval, percentile, percentile_interval


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Run(Result):
    """Requests and what became of them; `frame` has one row a request.

    Parameters
    ----------
    frame
        ``start_s``: when it was due, since the measurement began. ``ms``: latency from then on. ``rows`` (texts),
        ``tokens``, ``priority``, ``error`` (empty if there was none).
    concurrency
        Closed loop: requests in flight at any time. 0 in an open loop.
    offered
        Open loop: texts/s that were due. NaN in a closed loop.
    seconds
        How long was measured.
    """

    concurrency: int
    offered: float
    seconds: float

    @property
    def throughput(self) -> float:
        """Texts/s that were answered."""
        return self.goodput(np.inf)

    def goodput(self, target_ms: float) -> float:
        """Texts/s that were answered within `target_ms`."""
        ended = self._answered["start_s"] + self._answered["ms"] / 1e3
        counts = (ended <= self.seconds) & (self._answered["ms"] <= target_ms)
        return float(self._answered.loc[counts, "rows"].sum() / self.seconds)

    def percentile(self, q: float) -> float:
        """Latency percentile of the responses, ms; NaN when there was none."""
        ms = self._answered["ms"].to_numpy()
        return percentile(ms, q) if len(ms) else float("nan")

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.percentile(50)

    @property
    def p95_ms(self) -> float:
        """95th percentile of the latency."""
        return self.percentile(95)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return self.percentile(99)

    @property
    def errors(self) -> dict[str, int]:
        """Requests that failed, by cause."""
        return dict(Counter(error for error in self.frame["error"] if error))

    @property
    def summary(self) -> pd.DataFrame:
        """The run in one row: throughput and percentiles with intervals, where the time went, mean batch, errors."""
        row: dict[str, Any] = {"concurrency": self.concurrency} if self.concurrency else {"offered_per_s": self.offered}
        row["texts_per_s"] = self.throughput
        row["texts_per_s_low"], row["texts_per_s_high"] = median_interval(self.rates())
        ms = self._answered["ms"].to_numpy()
        for q in (50, 90, 95, 99):
            row[f"p{q}_ms"] = self.percentile(q)
            row[f"p{q}_ms_low"], row[f"p{q}_ms_high"] = percentile_interval(ms, q) if len(ms) else (np.nan, np.nan)
        return pd.DataFrame([row | self._details() | {"errors": sum(self.errors.values())}])

    def rates(self, slices: int = 10, *, target_ms: float = np.inf) -> NDArray[np.float64]:
        """Texts/s that were answered within `target_ms`, in each of equal slices of the run."""
        done = self._answered[self._answered["ms"] <= target_ms]
        ended = (done["start_s"] + done["ms"] / 1e3).to_numpy()
        rows = np.histogram(ended, bins=slices, range=(0, self.seconds), weights=done["rows"])[0]
        return np.asarray(rows * slices / self.seconds)

    def _details(self) -> dict[str, Any]:
        """Further columns of the summary."""
        return {}

    @property
    def _answered(self) -> pd.DataFrame:
        answered: pd.DataFrame = self.frame.loc[self.frame["error"] == ""]
        return answered

    @property
    def _table(self) -> pd.DataFrame:
        return self.summary
