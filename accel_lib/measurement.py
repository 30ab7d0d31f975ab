"""Fair timing: who is compared takes turns, and ratios are taken within a turn, where the machine was the same."""

from __future__ import annotations

import abc
import dataclasses
import functools
import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.formatting import number, percent, times
from accel_lib.machine import inspect_machine
from accel_lib.stats import median_interval

_FEWEST_TURNS = 6  # under which the median has no 95% interval


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result(abc.ABC):
    """A measurement: its tidy table, which knows the machine (``frame.attrs["machine"]``), and what it says."""

    frame: pd.DataFrame

    @property
    @abc.abstractmethod
    def headline(self) -> str:
        """What the table says, one sentence."""

    @property
    def machine(self) -> str:
        """The machine it was measured on."""
        return str(self.frame.attrs["machine"])

    @property
    def _table(self) -> pd.DataFrame:
        """What a reader is shown."""
        return self.frame

    def __repr__(self) -> str:
        return f"{self._readable().to_string(index=False)}\n{self.headline}\n{self.machine}"

    def _repr_html_(self) -> str:
        table = self._readable(as_html=True).to_html(index=False, escape=False, border=0)
        return f"{table}<p><b>{html.escape(self.headline)}</b><br><small>{html.escape(self.machine)}</small></p>"

    def _readable(self, *, as_html: bool = False) -> pd.DataFrame:
        """The columns that have a heading, as words; as HTML the best of each is bold."""
        shown: dict[str, list[str]] = {}
        for name in self._table:
            if name in _HEADINGS:
                heading, write, best = _HEADINGS[str(name)]
                values = self._table[name].tolist()
                winner = best(values) if best and as_html and len(set(values)) > 1 else None
                cells = [html.escape(write(value)) if as_html else write(value) for value in values]
                shown[heading] = [f"<b>{c}</b>" if v == winner else c for v, c in zip(values, cells, strict=True)]
        return pd.DataFrame(shown)


# Column -> heading with its unit, how a value is written, and which value is best.
_HEADINGS: dict[str, tuple[str, Callable[[Any], str], Callable[[Any], Any] | None]] = {
    "name": ("", str, None),
    "strategy": ("strategy", str, None),
    "instance_count": ("instances", str, None),
    "threads": ("threads each", str, None),
    "max_queue_delay_us": ("queue delay, µs", "{:,}".format, None),
    "max_batch_tokens": ("tokens a batch", "{:,}".format, None),
    "max_batch_size": ("largest batch", str, None),
    "preferred_batch_size": ("preferred batch", str, None),
    "engine": ("engine", str, None),
    "batch_size": ("batch size", str, None),
    "measured_mb": ("measured, MB", number, None),
    "predicted_mb": ("predicted, MB", number, None),
    "role": ("", str, None),
    "tokens": ("tokens a text", lambda value: "–" if value != value else format(value, ".0f"), None),
    "device": ("device", str, None),
    "batching": ("best batching", str, None),
    "requests": ("requests", "{:,}".format, None),
    "right": ("right answers", percent, max),
    "sentences_per_s": ("sentences/s", number, max),
    "tokens_per_s": ("tokens/s", number, max),
    "padded_tokens_per_s": ("with padding, tokens/s", number, None),
    "speedup": ("speed-up", times, max),
    "ms_at_batch_1": ("one text, ms", number, min),
    "concurrency": ("concurrency", str, None),
    "offered_per_s": ("offered, sentences/s", number, None),
    "p50_ms": ("p50, ms", number, min),
    "p95_ms": ("p95, ms", number, min),
    "p99_ms": ("p99, ms", number, min),
    "naive_p95_ms": ("naive p95, ms", number, None),
    "client_ms": ("client and transport, ms", number, None),
    "queue_ms": ("queue, ms", number, None),
    "compute_infer_ms": ("model, ms", number, None),
    "mean_batch_size": ("mean batch", number, None),
    "over_best": ("over the fastest", times, None),
    "size_mb": ("size, MB", number, min),
    "cosine_mean": ("cosine, mean", "{:.4f}".format, None),
    "cosine_min": ("cosine, least", "{:.4f}".format, None),
    "top10_overlap": ("10 nearest kept", percent, None),
    "same_label": ("same label", percent, None),
    "padding": ("padding", percent, None),
    "request": ("request", str, None),
    "http_ms": ("HTTP, key, JSON, ms", number, None),
    "tokenize_ms": ("tokenize, ms", number, None),
    "total_ms": ("in all, ms", number, min),
    "received_kb": ("answer, KB", number, None),
    "bytes_each": ("bytes a text", "{:,.0f}".format, min),
    "replicas_mean": ("replicas, mean", number, None),
    "replicas_max": ("at most", str, None),
    "changes": ("changes a day", str, None),
    "late": ("late requests", percent, min),
    "cost_per_million": ("cost a million", number, min),
    "load": ("load", "{:,.0f}".format, None),
    "busy": ("busy", percent, None),
    "workload": ("workload", str, None),
    "setting": ("setting", str, None),
    "kind": ("", str, None),
    "share": ("of capacity", percent, None),
    "simulated_per_s": ("simulated, sentences/s", number, None),
    "throughput_error": ("error", "{:+.1%}".format, None),
    "simulated_p95_ms": ("simulated p95, ms", number, None),
    "bottleneck": ("the limit is", str, None),
    "others": ("cores taken by others", percent, None),
    "p95_error": ("p95 error", "{:+.1%}".format, None),
    "rows": ("rows", str, None),
    "ms": ("execution, ms", number, None),
    "predicted_ms": ("fitted, ms", number, None),
    "executions": ("executions", str, None),
    "errors": ("errors", str, None),
}


def take_turns(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float = float("inf")
) -> dict[str, NDArray[np.float64]]:
    """Time every run once a turn, each turn starting with another one.

    Parameters
    ----------
    runs
        What to time, by name; each should have run once before.
    repeats, seconds
        Turns; no new one starts after `seconds`, but there are at least six, if so many are asked for.

    Returns
    -------
    dict
        Seconds of each run, one a turn, in the order of the turns.
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


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table that knows the machine it was measured on."""
    frame = pd.DataFrame(list(rows))
    frame.attrs["machine"] = machine_line()
    return frame


@functools.cache
def machine_line() -> str:
    """The machine in one line."""
    return str(inspect_machine())


def spread(lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of `count` texts that stand for all: evenly spaced over the lengths, in their own order."""
    by_length = np.argsort(lengths, kind="stable")
    count = min(count, len(lengths))
    places = np.linspace(0, len(lengths) - 1, count) if count > 1 else [len(lengths) // 2]
    chosen = np.unique(np.round(places).astype(np.int64))
    return np.sort(by_length[chosen])
