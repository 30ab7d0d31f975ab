"""Put load on a served model, closed or open loop, from a generator that is not what is measured.

Requests are serialized beforehand and sent over raw ``grpc.aio`` or HTTP from an event loop in a thread of its own
(Jupyter's loop is running already); responses are parsed after the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError, RequestError
from accel_lib.formatting import listed, number, percent
from accel_lib.load import storage
from accel_lib.load.arrivals import poisson
from accel_lib.load.generator import Generator, Reply
from accel_lib.load.requests import Request, make_requests
from accel_lib.load.results import Run
from accel_lib.measurement import to_frame
from accel_lib.progress import Progress
from accel_lib.stats import percentile
from accel_lib.triton.client import ServedModel
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.statistics import Statistics
from accel_lib.triton.wire import Protocol, fault

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
_SPENT = {"queue_ms": "waiting in the queue", "compute_infer_ms": "the model", "client_ms": "client and transport"}
_BUSY = 0.85  # share of a core from which the generator, not the server, sets the pace
_LATE_MS = 2.0  # lateness of sending that a machine's own clock ticks explain


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LoadRun(Run):
    """What `load_test` measured; `frame` has ``naive_ms`` beside ``ms``: latency from when a request was really sent.

    Parameters
    ----------
    generator_busy
        Share of one core that sending and receiving took.
    statistics
        What Triton counted meanwhile; None where it was gone, or the model was loaded again.
    connections
        Open loop: requests that the client could have in flight; 0 if as many as were due.
    counted_s
        Seconds that `statistics` cover: in an open loop until the last response. 0 in a run that does not say.
    """

    generator_busy: float
    statistics: Statistics | None
    connections: int = 0
    counted_s: float = 0.0

    @property
    def naive_p95_ms(self) -> float:
        """The p95 counted from the moment of sending, which hides the time that requests were late."""
        return percentile(self._answered["naive_ms"].to_numpy(), 95)

    @property
    def lag_ms(self) -> float:
        """How late 95% of the requests were sent at most."""
        return percentile((self.frame["ms"] - self.frame["naive_ms"]).to_numpy(), 95)

    @property
    def generator_bound(self) -> bool:
        """Whether the generator was the bottleneck: it filled its core, or sent late without a reason."""
        late = self.lag_ms > max(_LATE_MS, 0.1 * self.p50_ms) and not self.connections
        return self.generator_busy > _BUSY or late

    @property
    def batch_sizes(self) -> pd.Series[Any]:
        """Executions by batch size, as Triton counted them."""
        sizes = self.statistics.batch_sizes if self.statistics else {}
        series = pd.Series(sizes, name="executions", dtype=np.int64).rename_axis("batch_size")
        series.attrs.update(self.frame.attrs)
        return series

    @property
    def headline(self) -> str:
        """Throughput and latency, what the time went into, and what went wrong."""
        run = self.summary.iloc[0]
        load = f"with {self.load}" if self.concurrency else f"of {self.load}"
        latency = f"p50 {number(self.p50_ms)} ms, p95 {number(self.p95_ms)} ms"
        said = f"{number(self.throughput)} texts/s {load}: {latency}"
        if "queue_ms" in run:
            spent = run[list(_SPENT)].astype(float)
            said += f"; {percent(spent.max() / spent.sum())} of the time goes into {_SPENT[str(spent.idxmax())]}"
        if self.errors:
            kinds = listed([f"{count} × {cause.rstrip('.').lower()}" for cause, count in self.errors.items()])
            said += f". Failed: {kinds}"
        if self.generator_bound:
            said += ". The generator was the bottleneck, so this says nothing about the server's limit"
        return self._and_stopped(said)

    @property
    def load(self) -> str:
        """What was put on the model, in words."""
        return in_flight(self.concurrency) if self.concurrency else f"{number(self.offered)} texts/s offered"

    @property
    def explanation(self) -> str:
        """The batches that Triton ran."""
        if not self.statistics:
            return "Triton counted nothing"
        return f"Triton ran batches of {number(self.statistics.mean_batch_size)} rows on average"

    def save(self, path: str | Path) -> Path:
        """Write the run with its machine and versions, as ``.json`` or ``.parquet``; returns the path."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("frame", "statistics")]
        counted = dataclasses.asdict(self.statistics) if self.statistics else None
        facts = {name: getattr(self, name) for name in names} | {"statistics": counted}
        return storage.write(Path(path), self.frame, facts)

    @classmethod
    def open(cls, path: str | Path) -> LoadRun:
        """Read a run that `save` wrote."""
        frame, facts = storage.read(Path(path))
        counted = facts.pop("statistics")
        return cls(frame=frame, statistics=Statistics.from_dict(counted) if counted else None, **facts)

    def _details(self) -> dict[str, Any]:
        row: dict[str, Any] = {} if self.concurrency else {"naive_p95_ms": self.naive_p95_ms}
        if self.statistics and self.statistics.requests:
            spent = {part: getattr(self.statistics, f"{part}_ns") / self.statistics.requests / 1e6 for part in _PARTS}
            row |= {f"{part}_ms": value for part, value in spent.items()}
            row["client_ms"] = max(float(self._answered["naive_ms"].mean()) - sum(spent.values()), 0.0)
            row["mean_batch_size"] = self.statistics.mean_batch_size
        return row


def load_test(
    served: ServedModel,
    texts: Sequence[str],
    *,
    concurrency: int = 8,
    rate: float | None = None,
    arrivals: ArrayLike | None = None,
    seconds: float = 5,
    warmup_s: float = 1,
    rows: int | Sequence[int] = 1,
    priority: int | Sequence[int] = 0,
    queue_timeout_us: int | Sequence[int] = 0,
    timeout_s: float | None = None,
    connections: int | None = None,
    protocol: Protocol = "grpc",
    seed: int = 0,
) -> LoadRun:
    """Send texts to a served model and measure what comes back.

    With `concurrency` it is a closed loop: each client waits for a response before it sends again, so a slow server
    gets fewer requests. With `rate` or `arrivals` it is an open loop: requests are due at given times, as from
    independent callers, and latency counts from then, however late they could be sent.

    Parameters
    ----------
    concurrency
        Closed loop: requests in flight at any time.
    rate
        Open loop: requests/s on average, Poisson.
    arrivals
        Open loop: seconds from the start at which requests are due; `accel_lib.load.arrivals` makes them.
    seconds, warmup_s
        How long to measure (`arrivals` say it themselves), and how long to send the same load beforehand.
    rows
        Texts in one request; a sequence gives the requests' in turn.
    priority
        For Triton's priority levels, 1 first; a sequence gives the requests' in turn.
    queue_timeout_us
        Each request's own timeout in the queue, microseconds; a sequence gives the requests' in turn. It only counts
        where the model's ``allow_timeout_override`` is set, and ``queue_timeout_us`` is one that it shortens.
    connections
        Open loop: requests that the client can have in flight, as most load tools have it; when all wait for responses,
        what is due is sent late. None sends everything when it is due.

    Returns
    -------
    LoadRun
        With what came back in time when the server died or the model was unloaded meanwhile: `stopped` says so.

    Raises
    ------
    RequestError
        Not one request was answered: with the first one's cause.

    Examples
    --------
    >>> run = accel.load_test(server.model("embedding"), texts, concurrency=32)  # doctest: +SKIP
    >>> run = accel.load_test(server.model("embedding"), texts, rate=200)  # doctest: +SKIP
    """
    if min(concurrency, 1 if connections is None else connections) < 1 or seconds <= 0:
        asked = f"concurrency {concurrency}, connections {connections}, {seconds:g} s"
        fix = "accel_lib.load_test(served, texts, concurrency=8, seconds=5)"
        raise AccelError("A load needs a request in flight and time.", seen=asked, fix=fix)
    due = due_times(rate, arrivals, seconds, seed)
    shape: dict[str, Any] = {"rows": rows, "priority": priority, "queue_timeout_us": queue_timeout_us}
    requests = make_requests(served, texts, protocol=protocol, **shape)
    payloads = [request.payload for request in requests]
    url = served.server.grpc_url if protocol == "grpc" else served.server.http_url
    common: dict[str, Any] = {"protocol": protocol, "timeout_s": timeout_s}
    if due is None:
        measured = _closed(served, Generator(url, payloads, concurrency=concurrency, **common), seconds, warmup_s)
    else:
        common["connections"] = connections
        with Generator(url, payloads, schedule_s=due[due < warmup_s].tolist(), **common) as warmup:
            warmup.finish()
        measured = _open(served, Generator(url, payloads, schedule_s=due.tolist(), **common), float(due[-1]))
    generator, replies, begin, length, counted, counted_s = measured
    if not any(reply.answer is not None for reply in replies):
        first = next((reply.refusal for reply in generator.replies if reply.refusal), "")
        if first:
            raise request_error(served.name, first)
        fix = f"measure longer: accel_lib.load_test({served.name}, texts, seconds={seconds * 4:g})"
        raise RequestError("No response came within the measurement.", seen=f"{seconds:g} s", fix=fix)
    rows_due = np.resize([request.rows for request in requests], 0 if due is None else len(due))
    offered = float("nan") if due is None else float(rows_due.sum()) / length
    frame = to_frame([_row(served.name, reply, begin, requests[reply.index], protocol) for reply in replies])
    return LoadRun(
        frame=frame,
        concurrency=0 if due is not None else concurrency,
        offered=offered,
        seconds=length,
        generator_busy=generator.busy_s / max(generator.ended_s - generator.began_s, 1e-9),
        statistics=counted,
        stopped=request_error(served.name, generator.stopped).cause if generator.stopped else "",
        connections=connections or 0,
        counted_s=counted_s,
    )


def due_times(rate: float | None, arrivals: ArrayLike | None, seconds: float, seed: int) -> NDArray[np.float64] | None:
    """When requests are due in an open loop: as told, or Poisson; None for a closed loop."""
    if arrivals is None:
        return None if rate is None else poisson(rate, seconds, seed=seed)
    due = np.asarray(arrivals, dtype=float)
    if due.ndim != 1 or not len(due) or not np.isfinite(due).all() or due[0] < 0 or (np.diff(due) < 0).any():
        fix = "seconds from the start, in order: accel_lib.load.arrivals.poisson(rate, seconds)"
        raise AccelError("These are no arrivals.", seen=f"shape {due.shape}", fix=fix)
    return due


_Measured = tuple[Generator, list[Reply], float, float, Statistics | None, float]


def _closed(served: ServedModel, generator: Generator, seconds: float, warmup_s: float) -> _Measured:
    with generator:
        generator.wait(warmup_s)
        before, begin = statistics_now(served), time.perf_counter()
        watch_progress(generator, seconds)
        end, after = time.perf_counter(), statistics_now(served)
    replies = [reply for reply in generator.replies if begin <= reply.ended_s <= end]
    return generator, replies, begin, end - begin, _between(before, after), end - begin


def _open(served: ServedModel, generator: Generator, last_s: float) -> _Measured:
    before = statistics_now(served)
    with generator:
        watch_progress(generator, last_s)
        generator.finish()
    counted = _between(before, statistics_now(served))
    counted_s = max((reply.ended_s for reply in generator.replies), default=generator.began_s) - generator.began_s
    length = generator.stopped_s - generator.began_s if generator.stopped else max(last_s, 1e-9)
    return generator, generator.replies, generator.began_s, length, counted, counted_s


def watch_progress(generator: Generator, seconds: float) -> None:
    """Let it run with a line that says how far it is."""
    progress, until = Progress("load"), time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0 and not generator.wait(min(left, 0.5)):
        progress.tick(f"{len(generator.replies):,} responses")
    progress.clear()


def _row(name: str, reply: Reply, begin: float, request: Request, protocol: Protocol) -> dict[str, Any]:
    error = request_error(name, reply.refusal).cause if reply.answer is None else fault(reply.answer, protocol)
    spent = {"ms": (reply.ended_s - reply.due_s) * 1e3, "naive_ms": (reply.ended_s - reply.sent_s) * 1e3}
    facts = {"rows": request.rows, "tokens": request.tokens, "priority": request.priority, "error": error}
    return {"start_s": reply.due_s - begin} | spent | facts


def _between(before: Statistics | None, after: Statistics | None) -> Statistics | None:
    """What was counted meanwhile; None where a reload set the numbers back, or the server could not be asked."""
    return after - before if before and after and after.follows(before) else None


def statistics_now(served: ServedModel) -> Statistics | None:
    """What Triton has counted for a model; None where it cannot be asked."""
    with contextlib.suppress(RequestError):
        return served.statistics()
    return None


def in_flight(count: float) -> str:
    """``"1 request in flight"``, ``"8 requests in flight"``."""
    return f"{count:.0f} request{'' if count == 1 else 's'} in flight"
