"""Predict what a load does to a served model, without sending a request: Triton's batcher on fitted execution times."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.results import Run
from accel_lib.simulation.request_queue import QUEUE_FULL
from accel_lib.simulation.scheduler import Scheduler
from accel_lib.simulation.service_time import ServiceTime, counted
from accel_lib.triton.config import ModelConfig

_WARMUP = 0.1  # part of a closed loop's requests that is not counted
_PAUSE_S = 0.01  # of a client after a refusal, as in `load_test`
_KEEPS_UP = 0.97  # share of the offered load, under which a run falls behind
_BUSY = 0.9  # share of the time from which instances are the limit
_FULL = 0.8  # of the largest batch: there is no room for more
_MUCH = 0.4  # share of the latency that names its cause
_FULL_QUEUE = ". With a full queue Triton 24.10 may do far worse: it was seen to pause half a second between batches"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SimulatedRun(Run):
    """What `simulate` predicts; `frame` has ``queue_ms`` and ``model_ms`` beside ``ms``."""

    config: ModelConfig
    batch_sizes: pd.Series[Any]  # executions by batch size
    busy: float  # share of the time that an instance computes, their mean
    any_busy: float  # share of the time that at least one does

    @property
    def bottleneck(self) -> str:
        """What sets the latency."""
        run, config = self.summary.iloc[0], self.config
        much = _MUCH * max(run["queue_ms"] + run["compute_infer_ms"] + run["client_ms"], 1e-9)
        behind = not self.concurrency and self.throughput < _KEEPS_UP * self.offered
        idle = f"while instances are idle {percent(1 - self.busy)} of the time"
        if behind or self.busy > _BUSY:
            several = counted(config.instance_count, "instance") if config.instance_count > 1 else "instance"
            said = f"the {several}, busy {percent(min(self.busy, 1.0))} of the time"
            most = config.max_batch_size if config.dynamic_batching else 1
            full = behind or run["mean_batch_size"] > _FULL * most
            return said if full else f"{said}: more load makes larger batches"
        if run["queue_ms"] > much:
            delayed = run["queue_ms"] < 1.5e-3 * config.max_queue_delay_us
            return f"the queue delay, {idle}" if delayed else f"requests that come in bunches and queue, {idle}"
        return "client and transport" if run["client_ms"] > much else "the model's own time"

    @property
    def headline(self) -> str:
        """Throughput and latency, and what sets them."""
        asked = f"with {self.concurrency} in flight" if self.concurrency else f"of {number(self.offered)} offered"
        said = f"Simulated: {number(self.throughput)} texts/s {asked}, p95 {number(self.p95_ms)} ms"
        rejected = f"; rejected: {sum(self.errors.values()):,}" if self.errors else ""
        return f"{said}{rejected}. The limit is {self.bottleneck}{_FULL_QUEUE if QUEUE_FULL in self.errors else ''}"

    def _details(self) -> dict[str, Any]:
        done, sizes = self._answered, self.batch_sizes
        queue_ms, model_ms = (float(done[name].mean()) for name in ("queue_ms", "model_ms"))
        return {
            "queue_ms": queue_ms,
            "compute_infer_ms": model_ms,
            "client_ms": max(float(done["ms"].mean()) - queue_ms - model_ms, 0.0),
            "mean_batch_size": float((sizes.index * sizes).sum() / sizes.sum()) if len(sizes) else 0.0,
        }


def simulate(
    service: ServiceTime,
    config: ModelConfig | None = None,
    *,
    concurrency: int = 8,
    rate: float | None = None,
    arrivals: ArrayLike | None = None,
    requests: int = 5_000,
    lengths: Sequence[int] | None = None,
    priority: int | Sequence[int] = 0,
    queue_timeout_us: int | Sequence[int] = 0,
    seed: int = 0,
) -> SimulatedRun:
    """Predict what `load_test` would measure; 100,000 requests take about a second.

    The batcher's decisions are Triton's own; how long an execution takes is drawn from what was measured. Latency
    counts as in `load_test`, from when a request is due to its response in the client.

    Parameters
    ----------
    config
        Any configuration of that model; its own if left out. What counts is batching, queue, instances and
        `max_batch_tokens`.
    concurrency
        Closed loop: requests in flight at any time.
    rate, arrivals
        Open loop: requests/s on average, Poisson; or seconds from the start at which requests are due.
    requests
        How many to simulate (`arrivals` say it themselves).
    lengths
        Tokens of the texts, sent in turn; those of the fitted workload if left out.
    priority, queue_timeout_us
        As in `load_test`: 1 is served first; each request's own timeout in the queue. A sequence is taken in turn.

    Examples
    --------
    >>> accel.simulate(service, service.config.replace(max_queue_delay_us=2_000), rate=200).p95_ms  # doctest: +SKIP
    """
    random, config = np.random.default_rng(seed), config or service.config
    due = _due(random, rate, arrivals, requests)
    count = requests if due is None else len(due)
    if concurrency < 1 or count < 1:
        asked = f"concurrency {concurrency}, {count} requests"
        raise AccelError("A simulation needs requests.", seen=asked, fix="accel_lib.simulate(service, rate=100)")
    tokens, levels, timeouts = (
        np.resize(np.asarray(values, dtype=np.int64), count).tolist()
        for values in (service.lengths if lengths is None else lengths, priority, queue_timeout_us)
    )
    loop = _Loop(service, config, tokens, random)
    requested = zip(range(count), levels, timeouts, strict=True)
    if due is None:
        loop.following = requested
        for _ in range(min(concurrency, count)):
            loop.send_next(0.0)
    else:
        for (index, level, timeout_us), at_s in zip(requested, due.tolist(), strict=True):
            loop.send(index, at_s, level, timeout_us)
    return loop.run(due, levels, concurrency)


class _Loop:
    """The scheduler between clients that responses come back to, one after the other."""

    def __init__(
        self, service: ServiceTime, config: ModelConfig, tokens: list[int], random: np.random.Generator
    ) -> None:
        count = len(tokens)
        self.following: Iterator[tuple[int, int, int]] = iter(())  # closed loop: what is still to be sent
        self._service, self._config, self._tokens = service, config, tokens
        self._seconds, self._noise = service.of(config), random.choice(service.noise, count).tolist()
        self._each_s = service.client_ms / 1e3
        self._way_s = max(service.transport_ms - service.client_ms, 0.0) / 2e3  # there, and back
        self._client_s = 0.0  # until when the client is at work
        self._sent, self._waited, self._model = [0.0] * count, [0.0] * count, [0.0] * count
        self._ended = [np.nan] * count
        self._refused: dict[int, str] = {}
        self._executed = 0
        gap_s, slowdown = service.cost(config).gap / 1e3, service.slowdown(config)
        self._scheduler = Scheduler(config, self._execute, self._answer, slowdown=slowdown, gap_s=gap_s)

    def send(self, number: int, at_s: float, priority: int, timeout_us: int) -> None:
        self._sent[number] = at_s
        self._scheduler.send(number, at_s + self._way_s, priority, timeout_us)

    def send_next(self, at_s: float) -> None:
        for index, priority, timeout_us in self.following:
            self.send(index, at_s, priority, timeout_us)
            break

    def _execute(self, indices: Sequence[int]) -> float:
        tokens = self._tokens
        alone_s = self._seconds([tokens[index] for index in indices]) * self._noise[self._executed]
        self._executed += 1
        return float(alone_s)

    def _answer(self, number: int, at_s: float, refusal: str, spent_s: float) -> None:
        self._model[number] = spent_s
        self._waited[number] = at_s - self._sent[number] - self._way_s - spent_s
        self._client_s = max(at_s + self._way_s, self._client_s) + self._each_s
        self._ended[number] = self._client_s
        if refusal:
            self._refused[number] = refusal
        self.send_next(self._client_s + (_PAUSE_S if refusal else 0.0))

    def run(self, due: NDArray[np.float64] | None, levels: list[int], concurrency: int) -> SimulatedRun:
        """Run it; of a closed loop, what ended between its warm-up and the last request sent is the result."""
        scheduler, instances = self._scheduler, self._config.instance_count
        scheduler.run()
        sent, ended = np.array(self._sent), np.array(self._ended)
        frame = pd.DataFrame(
            {"start_s": sent, "ms": (ended - sent) * 1e3, "rows": 1, "tokens": self._tokens, "priority": levels}
        )
        frame["error"] = pd.Series(self._refused, dtype=object).reindex(frame.index).fillna("")
        frame["model_ms"], frame["queue_ms"] = np.array(self._model) * 1e3, np.array(self._waited) * 1e3
        begin, seconds = 0.0, float(sent.max())
        if due is None:
            begin = float(sent[int(len(sent) * _WARMUP)])
            frame = frame[(ended >= begin) & (ended <= seconds)].reset_index(drop=True)
            frame["start_s"] -= begin
        frame.attrs["machine"] = self._service.machine
        seconds = max(seconds - begin, 1e-9)
        sizes = pd.Series(Counter(scheduler.batch_sizes), name="executions", dtype=int).sort_index()
        return SimulatedRun(
            frame=frame,
            concurrency=concurrency if due is None else 0,
            offered=float("nan") if due is None else len(sent) / seconds,
            seconds=seconds,
            config=self._config,
            batch_sizes=sizes.rename_axis("batch_size"),
            busy=scheduler.busy_s / max(scheduler.ended_s * instances, 1e-9),
            any_busy=scheduler.any_busy_s / max(scheduler.ended_s, 1e-9),
        )


def _due(
    random: np.random.Generator, rate: float | None, arrivals: ArrayLike | None, requests: int
) -> NDArray[np.float64] | None:
    if arrivals is not None:
        return np.asarray(arrivals, dtype=float)
    if rate is None:
        return None
    if not rate > 0:
        raise AccelError("Requests need a rate above zero.", seen=rate, fix="accel_lib.simulate(service, rate=100)")
    return np.cumsum(random.exponential(1 / rate, requests))
