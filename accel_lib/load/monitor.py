"""Watch a served model while something else happens: Triton's metrics, its statistics and the GPU, as time series.

Three sources are read together: the Prometheus text of one or more services, the statistics API (which alone knows
batch sizes), and NVML. Triton counts since a model was loaded, so a reload sets its numbers back: differences notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd

from accel_lib.errors import AccelError, RequestError, ServerError, require
from accel_lib.load import findings_watch
from accel_lib.measurement import Result, to_frame
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.statistics import Statistics

_TIMEOUT_S = 2.0
_LABELS = ("model", "version", "reason", "gpu_uuid")
_PENDING, _FAILURES = "nv_inference_pending_request_count", "nv_inference_request_failure"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine


def parse_metrics(text: str) -> pd.DataFrame:
    r"""Prometheus text as a table: ``name``, ``kind``, ``model``, ``version``, ``reason``, ``gpu_uuid``, ``value``.

    Raises
    ------
    AccelError
        It is no Prometheus text.

    Examples
    --------
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
        raise AccelError(
            "These are no metrics.", seen=error, fix="pass the text that server.metrics_url answers"
        ) from error
    return pd.DataFrame(rows, columns=["name", "kind", *_LABELS, "value"])


def read_metrics(url: str) -> pd.DataFrame:
    """What a metrics endpoint says now, as `parse_metrics` has it.

    Raises
    ------
    RequestError
        Nothing answers there.
    """
    try:
        with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
            return parse_metrics(answer.read().decode())
    except OSError as error:
        raise RequestError("No metrics can be read there.", seen=error, fix="see whether it still runs") from error


def change(before: Statistics, after: Statistics) -> tuple[Statistics, bool]:
    """What happened between two readings, and whether a reload set the numbers back: then it counts from the reload."""
    try:
        return after - before, False
    except ServerError:
        return after, True


def delay_loss(counted: Statistics, config: ModelConfig, seconds: float, *, instances: int | None = None) -> float:
    """Share of the instances' time that the queue delay can have cost, at most.

    The delay only costs while an instance is free and somebody waits. That is no more than the time the instances were
    free, no more than the delay times the executions, and no more than what requests waited.

    Parameters
    ----------
    counted
        Triton's counts over the time.
    config
        The model's configuration meanwhile.
    seconds
        How long it was.
    instances
        Instances that ran; None takes the configuration's number.
    """
    capacity_s = seconds * (instances or config.instance_count)
    free_s = max(capacity_s - counted.busy_s, 0.0)
    return min(free_s, counted.executions * config.max_queue_delay_us / 1e6, counted.queue_ns / 1e9) / capacity_s


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Watched(Result):
    """What `watch` saw; `frame` has one row an interval between two readings.

    Parameters
    ----------
    frame
        ``time_s`` (its end, since the start), ``seconds``, ``requests_per_s``, ``sentences_per_s``,
        ``mean_batch_size``, ``fill`` (share of ``max_batch_size``), ``queue_ms`` and ``model_ms`` a request, ``busy``
        (share of the instances' time), ``delay_loss`` (see `delay_loss`), ``refused_per_s``, ``pending`` (requests in
        the queue), ``reset`` (a reload set the counts back), and ``gpu_utilization``, ``gpu_memory_bytes`` on a GPU.
    metrics
        Every Prometheus sample, tidy: ``time_s``, ``url`` and the columns of `parse_metrics`.
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
        """When the queue was longest, how full the batches were, what the delay cost, and reloads."""
        return findings_watch.watching(self.frame, self.config.max_batch_size)


class Watch:
    """Reads in a thread of its own from entering the context to leaving it; made by `watch`."""

    def __init__(self, served: ServedModel, urls: Sequence[str], every_s: float) -> None:
        self._served, self._urls, self._every_s = served, urls, every_s
        self._readings: list[tuple[float, Statistics]] = []
        self._metrics: list[pd.DataFrame] = []
        self._gpu: list[dict[str, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accel-watch", daemon=True)
        self._began_s = time.perf_counter()

    @property
    def result(self) -> Watched:
        """What was seen so far.

        Raises
        ------
        RequestError
            Fewer than two readings: the server was gone, or the time too short.
        """
        readings = self._spaced()
        if len(readings) < 2:
            fix = "keep the with-block open for longer, with every_s=0.1, on a server that runs"
            raise RequestError("Too little was seen for a time series.", seen=f"{len(readings)} readings", fix=fix)
        sizes: Counter[int] = Counter()
        rows, seen = [], False
        for (start_s, before), (end_s, after) in itertools.pairwise(readings):
            known = before.resets == after.resets
            # A reload can show in the counts a reading before it is known as one: it is one all the same
            counted, reset = change(dataclasses.replace(before, resets=after.resets) if seen else before, after)
            seen = (seen or reset) and known
            sizes.update(counted.batch_sizes)
            rows.append(self._row(counted, end_s - start_s) | {"time_s": end_s, "reset": reset})
        frame = self._with_gauges(to_frame(rows))
        executions = pd.Series(dict(sorted(sizes.items())), dtype=np.int64, name="executions").rename_axis("batch_size")
        executions.attrs.update(frame.attrs)
        metrics = pd.concat(self._metrics, ignore_index=True) if self._metrics else pd.DataFrame()
        return Watched(frame=frame, metrics=metrics, batch_sizes=executions, config=self._served.config)

    def __enter__(self) -> Self:
        self._began_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _spaced(self) -> list[tuple[float, Statistics]]:
        """The readings, without the last but one where a rate between the two would be of a moment."""
        readings = list(self._readings)
        if len(readings) > 2 and readings[-1][0] - readings[-2][0] < self._every_s / 2:
            del readings[-2]
        return readings

    def _run(self) -> None:
        with _gpu() as read_gpu:
            while True:
                self._read(read_gpu)
                if self._done.wait(self._every_s):
                    break
            self._read(read_gpu)

    def _read(self, read_gpu: Any) -> None:
        with contextlib.suppress(RequestError):  # unloaded or gone for now: a gap in the series
            counted = self._served.statistics()
            now_s = time.perf_counter() - self._began_s
            self._readings.append((now_s, counted))
            self._gpu.append({"time_s": now_s} | read_gpu())
            for url in (self._served._server.metrics_url, *self._urls):
                self._metrics.append(read_metrics(url).assign(time_s=now_s, url=url))

    def _row(self, counted: Statistics, seconds: float) -> dict[str, Any]:
        config = self._served.config
        requests = max(counted.requests, 1)
        return {
            "seconds": seconds,
            "requests_per_s": counted.requests / seconds,
            "sentences_per_s": counted.inferences / seconds,
            "mean_batch_size": counted.mean_batch_size,
            "fill": counted.mean_batch_size / max(config.max_batch_size, 1),
            "queue_ms": counted.queue_ns / requests / 1e6,
            "model_ms": counted.compute_infer_ns / requests / 1e6,
            "busy": min(counted.busy_s / seconds / config.instance_count, 1.0),
            "delay_loss": delay_loss(counted, config, seconds),
        }

    def _with_gauges(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Add what Prometheus alone knows, the queue's length and refusals, and the GPU."""
        refused = self._counter_by_time(_FAILURES, reason="REJECTED").diff().clip(lower=0)
        pending = self._counter_by_time(_PENDING)
        frame["pending"] = frame["time_s"].map(pending)
        frame["refused_per_s"] = frame["time_s"].map(refused) / frame["seconds"]
        gpu = pd.DataFrame(self._gpu).set_index("time_s")
        for name in gpu.columns:
            frame[name] = frame["time_s"].map(gpu[name])
        return frame

    def _counter_by_time(self, name: str, **labels: str) -> pd.Series[float]:
        """One metric of this model, summed over its versions, by time."""
        metrics = pd.concat(self._metrics, ignore_index=True) if self._metrics else parse_metrics("").assign(time_s=[])
        mine = (metrics["name"] == name) & (metrics["model"] == self._served.name)
        for label, value in labels.items():
            mine &= metrics[label] == value
        series: pd.Series[float] = metrics[mine].groupby("time_s")["value"].sum()
        return series


def watch(served: ServedModel, *, every_s: float = 0.25, urls: Sequence[str] = ()) -> Watch:
    """Watch a served model from entering a with-block to leaving it.

    Parameters
    ----------
    served
        A model of a running server.
    every_s
        Time between two readings. Triton renews its own gauges every two seconds, its counters at once.
    urls
        Further metrics endpoints to read, such as the gateway's.

    Returns
    -------
    Watch
        A context manager; its ``result`` is a `Watched`.

    Examples
    --------
    >>> with watch(embedding) as seen:  # doctest: +SKIP
    ...     run = accel.load_test(embedding, texts, rate=100)
    >>> seen.result  # doctest: +SKIP
    """
    return Watch(served, tuple(urls), every_s)


@contextlib.contextmanager
def _gpu() -> Iterator[Any]:
    """A function that reads utilization (0 to 1) and used bytes of the first GPU; nothing where there is none."""
    try:
        nvml = require("pynvml", extra="triton")
        nvml.nvmlInit()
    except Exception:  # no package, no driver or no GPU: each has its own type
        yield dict
        return
    try:
        yield functools.partial(_read_gpu, nvml, nvml.nvmlDeviceGetHandleByIndex(0))
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: Any, device: Any) -> dict[str, float]:
    return {
        "gpu_utilization": nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
        "gpu_memory_bytes": float(nvml.nvmlDeviceGetMemoryInfo(device).used),
    }
