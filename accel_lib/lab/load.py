"""Load on a served model, from a generator that is not what is measured.

Requests are serialized beforehand and sent over raw ``grpc.aio`` from an event loop in a thread of its own (Jupyter's
loop is running already); answers are parsed after the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError, RequestError, ServerError, require
from accel_lib.lab import findings
from accel_lib.lab.generator import Generator, Reply
from accel_lib.lab.measure import Result, tidy
from accel_lib.stats import median_interval, percentile, percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.refusals import request_error
from accel_lib.triton.statistics import Statistics

_SLICES = 10  # parts of the run whose throughputs give its interval
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LoadRun(Result):
    """What `load` measured; `frame` has one row a request answered or failed in time.

    Parameters
    ----------
    frame
        ``start_s`` since the measurement began, ``ms`` (latency), ``tokens``, ``error`` (empty if there was none).
    concurrency
        Requests that were under way at any time.
    seconds
        How long was measured.
    statistics
        What Triton counted meanwhile; None where it was gone, or the model was loaded anew.
    stopped
        Why the run ended early; empty if it did not.
    """

    concurrency: int
    seconds: float
    statistics: Statistics | None
    stopped: str = ""

    @property
    def throughput(self) -> float:
        """Sentences answered a second."""
        return len(self._answered) / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return percentile(self._answered["ms"].to_numpy(), 50)

    @property
    def p95_ms(self) -> float:
        """Latency that 95% of the answers stay under."""
        return percentile(self._answered["ms"].to_numpy(), 95)

    @property
    def p99_ms(self) -> float:
        """Latency that 99% of the answers stay under."""
        return percentile(self._answered["ms"].to_numpy(), 99)

    @property
    def errors(self) -> dict[str, int]:
        """Requests that failed, by cause."""
        return dict(Counter(error for error in self.frame["error"] if error))

    @property
    def batch_sizes(self) -> pd.Series[Any]:
        """Executions by batch size, as Triton counted them."""
        sizes = self.statistics.batch_sizes if self.statistics else {}
        series = pd.Series(sizes, name="executions", dtype=np.int64).rename_axis("batch_size")
        series.attrs.update(self.frame.attrs)
        return series

    @property
    def summary(self) -> pd.DataFrame:
        """The run in one row: throughput and percentiles with intervals, milliseconds inside Triton, mean batch."""
        ms = self._answered["ms"].to_numpy()
        ended = self._answered["start_s"].to_numpy() + ms / 1e3
        slices = np.histogram(ended, bins=_SLICES, range=(0, self.seconds))[0] * _SLICES / self.seconds
        row: dict[str, Any] = {"concurrency": self.concurrency, "sentences_per_s": self.throughput}
        row["sentences_per_s_low"], row["sentences_per_s_high"] = median_interval(slices)
        for q in (50, 95, 99):
            row[f"p{q}_ms"] = percentile(ms, q)
            row[f"p{q}_ms_low"], row[f"p{q}_ms_high"] = percentile_interval(ms, q)
        if self.statistics and self.statistics.requests:
            spent = {part: getattr(self.statistics, f"{part}_ns") / self.statistics.requests / 1e6 for part in _PARTS}
            row |= {f"{part}_ms": value for part, value in spent.items()}
            row["client_ms"] = max(float(ms.mean()) - sum(spent.values()), 0.0)
            row["mean_batch_size"] = self.statistics.mean_batch_size
        return pd.DataFrame([row | {"errors": sum(self.errors.values())}])

    @property
    def finding(self) -> str:
        """Throughput and latency, what the time went into, and what went wrong."""
        return findings.load(self.summary, self.errors, self.stopped)

    @property
    def _answered(self) -> pd.DataFrame:
        answered: pd.DataFrame = self.frame.loc[self.frame["error"] == ""]
        return answered

    @property
    def _table(self) -> pd.DataFrame:
        return self.summary


def load(
    served: ServedModel, texts: Sequence[str], *, concurrency: int = 8, seconds: float = 5, warmup_s: float = 1
) -> LoadRun:
    """Keep a number of requests under way, one text each, and measure what comes back.

    This is a closed loop: a slow server is asked less often, so latency looks better than under callers who do not wait
    for each other.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        Sent in turn, over and over.
    concurrency
        Requests under way at any time.
    seconds, warmup_s
        How long to measure, and how long to send beforehand.

    Returns
    -------
    LoadRun
        With what came back in time when the server died or the model was unloaded meanwhile: `stopped` says so.

    Raises
    ------
    AccelError
        No texts, or a concurrency or duration that is not above zero.
    RequestError
        Not one request was answered: with the first one's cause.

    Examples
    --------
    >>> run = accel.load(server.model("embedding"), texts, concurrency=32)  # doctest: +SKIP
    """
    if not len(texts) or concurrency < 1 or seconds <= 0:
        asked = f"{len(texts)} texts, concurrency {concurrency}, {seconds:g} s"
        fix = "accel_lib.load(served, texts, concurrency=8, seconds=5)"
        raise AccelError("A load needs texts, a request under way and time.", seen=asked, fix=fix)
    rows = served._tokenize(texts, None)[1]
    with Generator(served._server.grpc_url, [_request(served, row) for row in rows], concurrency) as generator:
        generator.wait(warmup_s)
        before, begin = _statistics(served), time.perf_counter()
        generator.wait(seconds)
        end, after = time.perf_counter(), _statistics(served)
    replies = [reply for reply in generator.replies if begin <= reply.ended_s <= end]
    frame = tidy([_row(served.name, reply, begin, rows) for reply in replies])
    if not any(reply.answer is not None for reply in replies):
        first = next((reply.refusal for reply in generator.replies if reply.refusal), "")
        if first:
            raise request_error(served.name, first)
        fix = f"measure longer: accel_lib.load({served.name}, texts, seconds={seconds * 4:g})"
        raise RequestError("No answer came within the measurement.", seen=f"{seconds:g} s", fix=fix)
    counted = None
    if before and after:
        with contextlib.suppress(ServerError):  # the model was loaded anew: nothing to subtract from
            counted = after - before
    stopped = request_error(served.name, generator.stopped).cause if generator.stopped else ""
    return LoadRun(frame=frame, concurrency=concurrency, seconds=end - begin, statistics=counted, stopped=stopped)


def _request(served: ServedModel, row: NDArray[np.int64]) -> bytes:
    """One text as Triton's own message, serialized."""
    message = require("tritonclient.grpc.service_pb2", extra="triton").ModelInferRequest(
        model_name=served.name, model_version=served.version
    )
    for name, values in (("input_ids", row), ("attention_mask", np.ones_like(row))):
        message.inputs.add(name=name, datatype="INT64", shape=[1, len(row)])
        message.raw_input_contents.append(values.tobytes())
    return bytes(message.SerializeToString())


def _row(name: str, reply: Reply, begin: float, rows: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    error = request_error(name, reply.refusal).cause if reply.answer is None else _fault(reply.answer)
    spent_ms = (reply.ended_s - reply.started_s) * 1e3
    return {"start_s": reply.started_s - begin, "ms": spent_ms, "tokens": len(rows[reply.index]), "error": error}


def _fault(answer: bytes) -> str:
    """What is wrong with an answer, empty if nothing is."""
    message = require("tritonclient.grpc.service_pb2", extra="triton").ModelInferResponse.FromString(answer)
    values = np.frombuffer(b"".join(message.raw_output_contents), dtype=np.float32)
    return "" if len(values) and np.isfinite(values).all() else "The answer is empty or not finite."


def _statistics(served: ServedModel) -> Statistics | None:
    with contextlib.suppress(RequestError):
        return served.statistics()
    return None
