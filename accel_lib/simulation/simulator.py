"""Predict what a load does to a served model, without sending a request: Triton's batcher on a calibrated clock."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError
from accel_lib.load.results import Run
from accel_lib.simulation import findings
from accel_lib.simulation.scheduler import Scheduler
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.triton.config import ModelConfig

_WARMUP = 0.1  # part of a closed loop's requests that is not counted
_PAUSE_S = 0.01  # of a client after a refusal, as `load` makes it


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SimulatedRun(Run):
    """What `simulate` predicts; `frame` has ``queue_ms`` and ``model_ms`` beside ``ms``.

    Parameters
    ----------
    config
        The configuration that was simulated.
    batch_sizes
        Executions by batch size.
    busy
        Share of the time that an instance computes, their mean.
    any_busy
        Share of the time that at least one instance computes.
    """

    config: ModelConfig
    batch_sizes: pd.Series[Any]
    busy: float
    any_busy: float

    @property
    def bottleneck(self) -> str:
        """What sets the latency, and what would help."""
        return findings.bottleneck(self.summary, self.busy, self.config)

    @property
    def headline(self) -> str:
        """Throughput and latency, and what sets them."""
        return findings.simulation(self.summary, self.errors, self.bottleneck)

    def _details(self) -> dict[str, Any]:
        done = self._answered
        queue_ms, model_ms = (float(done[name].mean()) for name in ("queue_ms", "model_ms"))
        sizes = self.batch_sizes
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
    """Predict what `load` would measure.

    The batcher's decisions are Triton's own; how long an execution takes is drawn from the calibration. 100,000
    requests take about a second. Latency counts as in `load`, from when a request is due to its answer in the client.

    Parameters
    ----------
    service
        What `fit_simulator` measured.
    config
        Any configuration of that model; its own if left out. What counts is batching, queue, instances and
        `max_batch_tokens`.
    concurrency
        Closed loop: requests under way at any time.
    rate
        Open loop: requests a second on average, Poisson.
    arrivals
        Open loop: seconds from the start at which requests are due.
    requests
        How many to simulate (`arrivals` say it themselves).
    lengths
        Tokens of the texts, sent in turn; those of the calibration's workload if left out.
    priority
        As in `load`: 1 is served first; a sequence gives the requests' in turn.
    queue_timeout_us
        As in `load`: each request's own timeout in the queue, microseconds, where the configuration lets it count.
    seed
        Of arrivals and service times.

    Returns
    -------
    SimulatedRun

    Raises
    ------
    AccelError
        A number of instances that was not calibrated, or a load of nothing.

    Examples
    --------
    >>> accel.simulate(service, service.config.replace(max_queue_delay_us=2_000), rate=200).p95_ms  # doctest: +SKIP
    """
    random, config = np.random.default_rng(seed), config or service.config
    due = _due(random, rate, arrivals, requests)
    count = requests if due is None else len(due)
    tokens = _in_turn(service.lengths if lengths is None else lengths, count)
    levels = _in_turn([priority] if isinstance(priority, int) else priority, count)
    timeouts = _in_turn([queue_timeout_us] if isinstance(queue_timeout_us, int) else queue_timeout_us, count)
    if concurrency < 1 or count < 1:
        asked = f"concurrency {concurrency}, {count} requests"
        raise AccelError("A simulation needs requests.", seen=asked, fix="accel_lib.simulate(service, rate=100)")
    loop = _Loop(service, config, tokens, random, count)
    clients = range(min(concurrency, count))
    for number in clients if due is None else range(count):
        loop.send(number, 0.0 if due is None else float(due[number]), levels[number], timeouts[number])
    if due is None:
        loop.again = iter(list(zip(range(count), levels, timeouts, strict=True))[len(clients) :])
    loop.run()
    return loop.result(due, tokens, levels, concurrency)


class _Loop:
    """The scheduler between clients that answers come back to, one after the other."""

    def __init__(
        self, service: ServiceTime, config: ModelConfig, tokens: list[int], random: np.random.Generator, count: int
    ) -> None:
        self.again: Iterable[tuple[int, int, int]] = iter(())  # closed loop: what is sent as soon as an answer is there
        self._service, self._config, self._tokens = service, config, tokens
        self._seconds, self._noise = service.of(config), random.choice(service.noise, count).tolist()
        self._each_s = service.client_ms / 1e3
        self._way_s = max(service.transport_ms - service.client_ms, 0.0) / 2e3  # there, and back
        self._client_s = 0.0  # until when the client is at work
        self._sent, self._waited, self._model = [0.0] * count, [0.0] * count, [0.0] * count
        self._ended = [np.nan] * count
        self._refused: dict[int, str] = {}
        self._executed = 0
        self._scheduler = Scheduler(config, self._execute, self._answer, gap_s=service.cost(config).gap / 1e3)

    def send(self, number: int, at_s: float, priority: int, timeout_us: int) -> None:
        self._sent[number] = at_s
        self._scheduler.send(number, at_s + self._way_s, priority, timeout_us)

    def run(self) -> None:
        self._scheduler.run()

    def _execute(self, numbers: Sequence[int], busy: int) -> float:
        tokens, model = self._tokens, self._model
        spent = self._seconds([tokens[number] for number in numbers], busy) * self._noise[self._executed]
        self._executed += 1
        for number in numbers:
            model[number] = spent
        return float(spent)

    def _answer(self, number: int, at_s: float, refusal: str) -> None:
        self._waited[number] = at_s - self._sent[number] - self._way_s - self._model[number]
        self._client_s = max(at_s + self._way_s, self._client_s) + self._each_s
        self._ended[number] = self._client_s
        if refusal:
            self._refused[number] = refusal
        for following, level, timeout_us in self.again:
            self.send(following, self._client_s + (_PAUSE_S if refusal else 0.0), level, timeout_us)
            break

    def result(
        self, due: NDArray[np.float64] | None, tokens: list[int], levels: list[int], concurrency: int
    ) -> SimulatedRun:
        """The run as a table; of a closed loop, what was answered between its beginning and the last request sent."""
        sent, ended = np.array(self._sent), np.array(self._ended)
        frame = pd.DataFrame(
            {"start_s": sent, "ms": (ended - sent) * 1e3, "rows": 1, "tokens": tokens, "priority": levels}
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
        sizes = pd.Series(Counter(self._scheduler.batch_sizes), name="executions", dtype=int).sort_index()
        return SimulatedRun(
            frame=frame,
            concurrency=concurrency if due is None else 0,
            offered=len(sent) / seconds if due is not None else float("nan"),
            seconds=seconds,
            config=self._config,
            batch_sizes=sizes.rename_axis("batch_size"),
            busy=self._scheduler.busy_s / max(self._scheduler.ended_s * self._config.instance_count, 1e-9),
            any_busy=self._scheduler.any_busy_s / max(self._scheduler.ended_s, 1e-9),
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


def _in_turn(values: Sequence[int], count: int) -> list[int]:
    return np.resize(np.asarray(values, dtype=np.int64), count).tolist()
