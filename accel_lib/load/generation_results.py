"""A run of requests for tokens: time to the first one and between them, tokens per second, goodput."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.formatting import listed, number, percent
from accel_lib.load import storage
from accel_lib.measurement import Result
from accel_lib.stats import percentile, percentile_interval

_MEASURES = {"ttft_ms": "time to first token (TTFT)", "itl_ms": "between tokens (ITL)", "latency_ms": "whole latency"}
_PERCENTILES = (50, 90, 95, 99)
_BUSY = 0.85  # share of a core from which the generator, not what it measures, sets the pace
_LATE_MS = 5.0  # lateness of sending that a machine's own clock ticks explain


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationRun(Result):
    """Requests for tokens and how these came, measured or simulated. The terms are those of NVIDIA's aiperf.

    Parameters
    ----------
    frame
        One row a request, in the order in which they were due; seconds count from the start of the run.
        ``intended_s``, ``first_token_s``, ``end_s``; ``prompt_tokens``, ``output_tokens``; ``ttft_ms``, the time to the
        first token, and ``latency_ms``, both from when the request was due; ``itl_ms``, the mean time between tokens
        after the first one, NaN for a single token; ``error``, empty if there was none.
    clients
        Closed loop: requests in flight at any time. 0 in an open loop.
    offered
        Open loop: requests/s that were due. NaN in a closed loop.
    offered_s, seconds
        How long requests were due, and until the last one had ended.
    ttft_ms, itl_ms
        Targets of a request for the goodput; infinite where none was given.
    """

    clients: int
    offered: float
    offered_s: float
    seconds: float
    ttft_ms: float = math.inf
    itl_ms: float = math.inf

    @property
    def output_tokens_per_s(self) -> float:
        """Generated tokens per second, of requests that succeeded, over the whole run."""
        return float(self._answered["output_tokens"].sum() / self.seconds)

    @property
    def requests_per_s(self) -> float:
        """Requests per second that succeeded, over the whole run."""
        return len(self._answered) / self.seconds

    @property
    def goodput(self) -> float:
        """Requests per second that kept both targets, of those that were due, over the time in which they were."""
        return float(self.kept.sum() / self.offered_s)

    @property
    def kept(self) -> pd.Series[bool]:
        """Whether each request succeeded within both targets."""
        frame = self.frame
        in_time = (frame["ttft_ms"] <= self.ttft_ms) & ~(frame["itl_ms"] > self.itl_ms)
        return in_time & (frame["error"] == "")

    @property
    def targets(self) -> str:
        """The targets in words; empty without one."""
        given = (("TTFT", self.ttft_ms), ("ITL", self.itl_ms))
        return " and ".join(f"{words} ≤ {number(ms)} ms" for words, ms in given if math.isfinite(ms))

    @property
    def at_once(self) -> int:
        """How many requests at most were between their first and their last token."""
        got = self.frame.dropna(subset=["first_token_s"])
        times = np.concatenate([got["first_token_s"], got["end_s"]])
        steps = np.concatenate([np.ones(len(got)), -np.ones(len(got))])
        order = np.lexsort((steps, times))  # at the same moment one ends before another begins
        return int(np.cumsum(steps[order]).max(initial=0))

    def percentile(self, measure: str, q: float) -> float:
        """Percentile of ``"ttft_ms"``, ``"itl_ms"`` or ``"latency_ms"`` of what succeeded, ms; NaN if nothing did."""
        values = self._values(measure)
        return percentile(values, q) if len(values) else math.nan

    @property
    def errors(self) -> dict[str, int]:
        """Requests that failed, by cause."""
        return dict(Counter(error for error in self.frame["error"] if error))

    @property
    def summary(self) -> pd.DataFrame:
        """Percentiles of TTFT, ITL and latency, one row each, with the ends of their 95% intervals."""
        rows = []
        for measure, words in _MEASURES.items():
            row: dict[str, Any] = {"name": words}
            values = self._values(measure)
            for q in _PERCENTILES:
                row[f"p{q}_ms"] = self.percentile(measure, q)
                row[f"p{q}_ms_low"], row[f"p{q}_ms_high"] = (
                    percentile_interval(values, q) if len(values) else (math.nan, math.nan)
                )
            rows.append(row)
        return pd.DataFrame(rows, index=list(_MEASURES))

    @property
    def headline(self) -> str:
        """Throughput, first token and the ones after it, goodput, and what went wrong."""
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        load = f"with {clients}" if self.clients else f"of {number(self.offered)} offered"
        said = f"{number(self.output_tokens_per_s)} tokens/s, {number(self.requests_per_s)} requests/s {load}"
        for measure, words in (("ttft_ms", "TTFT"), ("itl_ms", "ITL")):
            said += f"; {words} p50 {number(self.percentile(measure, 50))}, p95 {self._p95(measure)} ms"
        if self.targets:
            share = float(self.kept.mean())
            said += f"; {number(self.goodput)} requests/s ({percent(share)}) keep {self.targets}"
        if self.errors:
            said += f". Failed: {listed([f'{count} × {cause}' for cause, count in self.errors.items()])}"
        return self._and_stopped(said)

    def _p95(self, measure: str) -> str:
        values = self._values(measure)
        low, high = percentile_interval(values, 95) if len(values) else (math.nan, math.nan)
        known = not math.isnan(low + high)
        return number(self.percentile(measure, 95)) + (f" ({number(low)}–{number(high)})" if known else "")

    def _values(self, measure: str) -> NDArray[np.float64]:
        return self._answered[measure].dropna().to_numpy(dtype=float)

    @property
    def _answered(self) -> pd.DataFrame:
        answered: pd.DataFrame = self.frame.loc[self.frame["error"] == ""]
        return answered

    @property
    def _table(self) -> pd.DataFrame:
        return self.summary


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerationLoadRun(GenerationRun):
    """What `generation_load_test` measured; `frame` also has ``sent_s``, when a request was really sent.

    Parameters
    ----------
    tokens
        One row for each piece that came: ``request`` (the row of `frame`), ``time_s``, ``tokens`` in it.
    generator_busy
        Share of one core that sending and receiving took.
    """

    tokens: pd.DataFrame
    generator_busy: float

    @property
    def capacity(self) -> float:
        """Closed loop: requests/s by the tokens that came until it sent its last request, at least in half of the run.

        After that there are ever fewer clients.
        """
        until_s = max(float(self.frame["sent_s"].max()), self.seconds / 2)
        in_time = float(self.tokens.loc[self.tokens["time_s"] <= until_s, "tokens"].sum())
        return in_time / until_s / float(self._answered["output_tokens"].mean())

    @property
    def naive_ttft_p95_ms(self) -> float:
        """The p95 of the TTFT from the moment of sending, which hides the time that requests were late."""
        values = ((self._answered["first_token_s"] - self._answered["sent_s"]) * 1e3).dropna().to_numpy()
        return percentile(values, 95) if len(values) else math.nan

    @property
    def lag_ms(self) -> float:
        """How late 95% of the requests were sent at most."""
        return percentile(((self.frame["sent_s"] - self.frame["intended_s"]) * 1e3).to_numpy(), 95)

    @property
    def generator_bound(self) -> bool:
        """Whether the generator was the bottleneck: it filled its core, or sent late."""
        return self.generator_busy > _BUSY or self.lag_ms > max(_LATE_MS, 0.1 * self.percentile("ttft_ms", 50))

    @property
    def headline(self) -> str:
        """As of any run, and whether the generator was the bottleneck."""
        bound = ". The generator was the bottleneck, so this says nothing about the limit of what it measured"
        return super().headline + (bound if self.generator_bound else "")

    @property
    def explanation(self) -> str:
        """The TTFT counted from sending beside the one from when requests were due, and where the time went."""
        naive, due = self.naive_ttft_p95_ms, self.percentile("ttft_ms", 95)
        share = float(self._answered["ttft_ms"].sum() / self._answered["latency_ms"].sum())
        return (
            f"From the moment of sending the p95 of the TTFT is {number(naive)} ms, from when requests were due "
            f"{number(due)} ms; {percent(share)} of the latency passes before the first token; the generator took "
            f"{percent(self.generator_busy)} of a core"
        )

    def save(self, path: str | Path) -> Path:
        """Write the run with its machine and versions, as ``.json`` or ``.parquet``; returns the path."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("frame", "tokens")]
        facts = {name: getattr(self, name) for name in names} | {"tokens": self.tokens.to_dict("list")}
        return storage.write(Path(path), self.frame, facts)

    @classmethod
    def open(cls, path: str | Path) -> GenerationLoadRun:
        """Read a run that `save` wrote."""
        frame, facts = storage.read(Path(path))
        return cls(frame=frame, tokens=pd.DataFrame(facts.pop("tokens")), **facts)
