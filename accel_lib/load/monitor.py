"""Watch a served model over time: Triton's statistics and its Prometheus metrics, read in a thread, as time series.

The statistics API alone knows batch sizes. Triton counts since a model was loaded, so a reload sets its numbers back:
differences notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import threading
import time
import urllib.request
from collections import Counter
from typing import Any, Self

import numpy as np
import pandas as pd

from accel_lib.errors import AccelError, RequestError, require
from accel_lib.formatting import number, percent
from accel_lib.measurement import Result, highest, to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.statistics import Statistics

_TIMEOUT_S = 2.0
_LABELS = ("model", "version", "reason", "gpu_uuid")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine


def parse_metrics(text: str) -> pd.DataFrame:
    r"""Prometheus text as a table: ``name``, ``kind``, ``model``, ``version``, ``reason``, ``gpu_uuid``, ``value``.

    >>> parse_metrics('up{model="embedding"} 1\n')[["name", "model", "value"]].values.tolist()
    [['up', 'embedding', 1.0]]
    """
    parser = require("prometheus_client.parser", extra="triton")
    rows: list[dict[str, Any]] = []
    written = set(re.findall(r"^[a-zA-Z_:][\w:]*", text, re.MULTILINE))
    try:
        for family in parser.text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {label: sample.labels.get(label, "") for label in _LABELS}
                # Triton's counters have no _total, which the parser adds
                name = sample.name if sample.name in written else sample.name.removesuffix("_total")
                rows.append({"name": name, "kind": family.type} | labels | {"value": float(sample.value)})
    except ValueError as error:
        fix = "pass the text that server.metrics_url gives"
        raise AccelError("These are no metrics.", seen=error, fix=fix) from error
    return pd.DataFrame(rows, columns=["name", "kind", *_LABELS, "value"])


def read_metrics(url: str) -> pd.DataFrame:
    """What a metrics endpoint says now, as `parse_metrics` has it."""
    try:
        with _OPENER.open(url, timeout=_TIMEOUT_S) as response:
            return parse_metrics(response.read().decode())
    except OSError as error:
        raise RequestError("No metrics can be read there.", seen=error, fix="see whether it still runs") from error


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Watched(Result):
    """What `watch` saw; `frame` has one row an interval between two readings.

    Parameters
    ----------
    frame
        ``time_s`` (its end, since the start), ``seconds``, ``requests_per_s``, ``texts_per_s``,
        ``mean_batch_size``, ``queue_ms`` a request, ``busy`` (share of the instances' time), and ``reset``: a reload
        set the counts back.
    metrics
        Every Prometheus sample, tidy: ``time_s`` and the columns of `parse_metrics`.
    batch_sizes
        Executions by batch size, over all intervals.
    config
        The model's configuration at the end.
    """

    metrics: pd.DataFrame
    batch_sizes: pd.Series[Any]
    config: ModelConfig

    @property
    def headline(self) -> str:
        """When requests waited longest, how full the batches were, and whether a reload was in it."""
        active = self.frame[self.frame["requests_per_s"] > 0]
        if active.empty:
            return "No requests came while it was watched"
        worst = highest(active, "queue_ms")
        mean = float(np.average(self.batch_sizes.index, weights=self.batch_sizes)) if len(self.batch_sizes) else 0.0
        said = f"Requests waited longest at {number(worst['time_s'])} s, {number(worst['queue_ms'])} ms each; "
        occupancy = percent(mean / max(self.config.max_batch_size, 1))
        said += f"{number(mean)} rows a batch on average, {occupancy} of the largest batch"
        resets = int(self.frame["reset"].sum())
        times = "once" if resets == 1 else f"{resets} times"
        return f"{said}. Loaded again {times}, which set the counts back" if resets else said


class Watch:
    """Reads in a thread of its own from entering the context to leaving it; made by `watch`."""

    def __init__(self, served: ServedModel, every_s: float) -> None:
        self._served, self._every_s = served, every_s
        self._readings: list[tuple[float, Statistics]] = []
        self._metrics: list[pd.DataFrame] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accel-watch", daemon=True)
        self._began_s = time.perf_counter()

    @property
    def result(self) -> Watched:
        """What was seen so far; a `RequestError` under two readings: the server was gone, or the time too short."""
        readings = list(self._readings)
        if len(readings) > 2 and readings[-1][0] - readings[-2][0] < self._every_s / 2:
            del readings[-2]  # a rate between the two would be of a moment
        if len(readings) < 2:
            fix = "keep the with-block open for longer, with every_s=0.1, on a server that runs"
            raise RequestError("Too little was seen for a time series.", seen=f"{len(readings)} readings", fix=fix)
        sizes: Counter[int] = Counter()
        rows, seen = [], False
        for (start_s, before), (end_s, after) in itertools.pairwise(readings):
            known = before.resets == after.resets
            # A reload can show in the counts a reading before it is known as one: it is one all the same
            former = dataclasses.replace(before, resets=after.resets) if seen else before
            reset = not after.follows(former)
            counted = after if reset else after - former
            seen = (seen or reset) and known
            sizes.update(counted.batch_sizes)
            rows.append(self._row(counted, end_s - start_s) | {"time_s": end_s, "reset": reset})
        frame = to_frame(rows)
        executions = pd.Series(dict(sorted(sizes.items())), dtype=np.int64, name="executions").rename_axis("batch_size")
        executions.attrs.update(frame.attrs)
        metrics = pd.concat(self._metrics, ignore_index=True) if self._metrics else pd.DataFrame()
        return Watched(frame=frame, metrics=metrics, batch_sizes=executions, config=self._served.config)

    def __enter__(self) -> Self:
        self._began_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            self._read()
            self._done.wait(self._every_s)
        self._read()

    def _read(self) -> None:
        with contextlib.suppress(RequestError):  # unloaded or gone for now: a gap in the series
            counted = self._served.statistics()
            now_s = time.perf_counter() - self._began_s
            self._readings.append((now_s, counted))
            self._metrics.append(read_metrics(self._served.server.metrics_url).assign(time_s=now_s))

    def _row(self, counted: Statistics, seconds: float) -> dict[str, Any]:
        config = self._served.config
        return {
            "seconds": seconds,
            "requests_per_s": counted.requests / seconds,
            "texts_per_s": counted.inferences / seconds,
            "mean_batch_size": counted.mean_batch_size,
            "queue_ms": counted.queue_ms,
            "busy": counted.busy(seconds, config.instance_count),
        }


def watch(served: ServedModel, *, every_s: float = 0.25) -> Watch:
    """Watch a served model from entering a with-block to leaving it; the ``result`` is a `Watched`.

    Parameters
    ----------
    every_s
        Time between two readings. Triton updates its own gauges every two seconds, its counters at once.

    Examples
    --------
    >>> with watch(embedding) as seen:  # doctest: +SKIP
    ...     run = accel.load_test(embedding, texts, rate=100)
    >>> seen.result  # doctest: +SKIP
    """
    return Watch(served, every_s)
