"""Results as tables that know their machine, and fair timing: what is compared runs in turns on the same machine."""

from __future__ import annotations

import abc
import dataclasses
import functools
import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.formatting import number, percent, times
from accel_lib.machine import inspect_machine
from accel_lib.stats import median_interval

_FEWEST_TURNS = 6  # under which the median has no 95% interval


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result(abc.ABC):
    """A measurement: its tidy table, which knows the machine (``frame.attrs["machine"]``), and what it says.

    `stopped` says why it ended before everything was measured; it is empty if it did not.
    """

    _bold: ClassVar[bool] = True  # whether a table shows the best of each column in bold

    frame: pd.DataFrame
    stopped: str = ""

    @property
    @abc.abstractmethod
    def headline(self) -> str:
        """What the table says, one sentence."""

    @property
    def machine(self) -> str:
        """The machine it was measured on, or whose measurements it was simulated from."""
        where = str(self.frame.attrs["machine"])
        return f"simulated from measurements on {where}" if self.frame.attrs.get("simulated") else where

    @property
    def _table(self) -> pd.DataFrame:
        """What a reader is shown."""
        return self.frame

    def _and_stopped(self, headline: str) -> str:
        """A headline, and why the measurement ended early, if it did."""
        return f"{headline}. It ended early: {self.stopped}" if self.stopped else headline

    def __repr__(self) -> str:
        return f"{self._readable().to_string(index=False)}\n{self.headline}\n{self.machine}"

    def _repr_html_(self) -> str:
        table = self._readable(as_html=True).to_html(index=False, escape=False, border=0)
        return f"{table}<p><b>{html.escape(self.headline)}</b><br><small>{html.escape(self.machine)}</small></p>"

    def _readable(self, *, as_html: bool = False) -> pd.DataFrame:
        """The columns that are shown, as words; as HTML the best of each is bold."""
        shown: dict[str, list[str]] = {}
        for name in map(str, self._table):
            if name in _WRITE:
                values = self._table[name].tolist()
                winner = max(values) if name in _HIGHER.split() else min(values) if name in _LOWER.split() else None
                winner = winner if as_html and self._bold and len(set(values)) > 1 else None
                cells = [html.escape(_WRITE[name](value)) if as_html else _WRITE[name](value) for value in values]
                bold = [f"<b>{c}</b>" if v == winner else c for v, c in zip(values, cells, strict=True)]
                shown[_heading(name)] = bold
        return pd.DataFrame(shown)


_TEXT = """
    name strategy instance_count threads max_batch_size preferred_batch_size engine batch_size role device batching
    request concurrency replicas_max changes workload setting kind bottleneck rows executions errors
    quality"""
_NUMBER = """
    measured_mb predicted_mb texts_per_s tokens_per_s padded_tokens_per_s ms_at_batch_1 offered_per_s p50_ms p95_ms
    p99_ms naive_p95_ms client_ms queue_ms compute_infer_ms mean_batch_size size_mb http_ms tokenize_ms total_ms
    rate_per_s kept_per_s ttft_p50_ms ttft_p95_ms itl_p50_ms itl_p95_ms p90_ms goodput predicted_goodput
    received_kb replicas_mean cost_per_million simulated_per_s simulated_p95_ms ms predicted_ms step_ms"""
_WHOLE = "max_queue_delay_us max_batch_tokens step_tokens tokens requests bytes_each load"
_PERCENT = "right first top10_overlap same_label padding busy share others kept failed"
# Columns that are shown, and how a value is written; the others are for computing with.
_WRITE: dict[str, Callable[[Any], str]] = (
    dict.fromkeys(_TEXT.split(), str)
    | dict.fromkeys(_NUMBER.split(), number)
    | dict.fromkeys(_WHOLE.split(), lambda value: "–" if value != value else f"{value:,.0f}")
    | dict.fromkeys(_PERCENT.split(), percent)
    | {"late": functools.partial(percent, digits=1)}
    | dict.fromkeys(["speedup", "over_best"], times)
    | dict.fromkeys(["cosine_mean", "cosine_min"], "{:.4f}".format)
    | dict.fromkeys(["ndcg_at_10", "reciprocal_rank"], "{:.3f}".format)
    | dict.fromkeys(["throughput_error", "p95_error"], "{:+.1%}".format)
)
_HIGHER = "goodput right first ndcg_at_10 reciprocal_rank texts_per_s tokens_per_s speedup"
_LOWER = "ms_at_batch_1 p50_ms p95_ms p99_ms size_mb total_ms bytes_each late cost_per_million"
_UNITS = {"_ms": ", ms", "_us": ", µs", "_mb": ", MB", "_kb": ", KB", "_per_s": "/s", "_count": "s"}
_HEADINGS = {
    "name": "", "role": "", "kind": "", "tokens": "tokens per text", "right": "correct",
    "ms_at_batch_1": "one text, ms", "batching": "best batching", "compute_infer_ms": "model, ms",
    "client_ms": "client and transport, ms",
    "top10_overlap": "10 nearest kept", "ndcg_at_10": "nDCG@10", "first": "right one first",
    "http_ms": "HTTP, key, JSON, ms", "received_kb": "response, KB",
    "bytes_each": "bytes per text", "changes": "changes per day", "late": "late requests", "share": "of capacity",
    "ttft_p50_ms": "TTFT p50, ms", "ttft_p95_ms": "TTFT p95, ms",
    "itl_p50_ms": "ITL p50, ms", "itl_p95_ms": "ITL p95, ms",
    "rate_per_s": "offered, requests/s", "kept_per_s": "in time, requests/s", "kept": "of them",
    "offered_per_s": "offered, texts/s", "simulated_per_s": "simulated, texts/s",
    "others": "CPU taken by others", "ms": "execution, ms", "predicted_ms": "fitted, ms",
}  # fmt: skip


def _heading(column: str) -> str:
    """A column's heading with its unit: its own, or its name in words."""
    suffix = next((suffix for suffix in _UNITS if column.endswith(suffix)), "")
    return _HEADINGS.get(column, column.removesuffix(suffix).replace("_", " ") + _UNITS.get(suffix, ""))


def take_turns(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float = float("inf")
) -> dict[str, NDArray[np.float64]]:
    """Seconds of every run, one value a turn; each turn starts with another run.

    Parameters
    ----------
    runs
        What to time, by name; each should have run once before.
    repeats, seconds
        Turns; no new one starts after `seconds`, but at least six are made, if `repeats` allows.
    """
    names = list(runs)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn >= _FEWEST_TURNS and time.perf_counter() - started > seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - begin)
    return {name: np.array(values) for name, values in taken.items()}


def columns(name: str, values: ArrayLike) -> dict[str, float]:
    """Median and interval of samples as three columns: ``name``, ``name_low``, ``name_high``."""
    samples = np.asarray(values, dtype=float)
    low, high = median_interval(samples)
    return {name: float(np.median(samples)), f"{name}_low": low, f"{name}_high": high}


def speedup(taken_s: NDArray[np.float64], base_s: NDArray[np.float64]) -> dict[str, float]:
    """``speedup``: how many times as fast, by the medians of the turns; its interval is that of the turns' ratios."""
    ratio = float(np.median(base_s) / np.median(taken_s))
    low, high = median_interval(base_s / taken_s)
    return {"speedup": ratio, "speedup_low": min(low, ratio), "speedup_high": max(high, ratio)}


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table that knows the machine it was measured on."""
    frame = pd.DataFrame(list(rows))
    frame.attrs["machine"] = machine_line()
    return frame


def highest(frame: pd.DataFrame, column: str) -> dict[Any, Any]:
    """The row with the highest value in a column."""
    return frame.iloc[int(frame[column].to_numpy(dtype=float).argmax())].to_dict()


def lowest(frame: pd.DataFrame, column: str) -> dict[Any, Any]:
    """The row with the lowest value in a column."""
    return frame.iloc[int(frame[column].to_numpy(dtype=float).argmin())].to_dict()


@functools.cache
def machine_line() -> str:
    """The machine in one line."""
    return str(inspect_machine())


def spread(lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of `count` texts that represent all: evenly spaced over the lengths, in their own order."""
    by_length = np.argsort(lengths, kind="stable")
    count = min(count, len(lengths))
    places = np.linspace(0, len(lengths) - 1, count) if count > 1 else [len(lengths) // 2]
    chosen = np.unique(np.round(places).astype(np.int64))
    return np.sort(by_length[chosen])
