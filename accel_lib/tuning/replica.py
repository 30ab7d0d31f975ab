"""What one replica does at every load: how long requests queue in it, and what an autoscaler could read of it.

Both utilisations are as Kubernetes gets them. The GPU's is NVML's: the share of the time in which anything runs on it,
however little of the card that takes; so with several instances, the time in which any of them executes. The CPU's is
the CPU seconds of a pod per second, over the cores that it requests.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.formatting import listed, times
from accel_lib.machine import inspect_machine
from accel_lib.measurement import Result
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import simulate

SIGNALS = {"queue_ms": "queue time", "cpu": "CPU utilisation", "gpu": "GPU utilisation"}
_LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
_SATURATED = 64  # requests in flight at which a replica is as fast as it gets
_REQUESTS = 3_000


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Replica(Result):
    """One replica at every load.

    `frame` has ``share`` (of capacity), ``rate`` (requests/s), ``queue_ms``, ``p95_ms``, and utilisations as shares:
    ``cpu`` (of the requested cores; NaN if it could not be measured) and ``gpu``.
    """

    capacity: float  # requests/s that a replica answers at most

    @property
    def headline(self) -> str:
        """How much each signal grows from half load to the limit."""
        parts = [f"{SIGNALS[signal]} grows {times(growth)}" for signal, growth in self.growths.items()]
        return f"From half load to the limit {listed([parts[0], *(part.replace(' grows', '') for part in parts[1:])])}"

    @property
    def growths(self) -> dict[str, float]:
        """Each measured signal at the largest load over what it is at half load."""
        measured = [signal for signal in SIGNALS if not self.frame[signal].isna().any()]
        return {signal: float(self.relative(signal).iloc[-1]) for signal in measured}

    def relative(self, signal: str) -> pd.Series[float]:
        """A signal over its value at half load, by load; that value counts as a thousandth of its unit at least."""
        values: pd.Series[float] = self.frame[signal] / max(self.at(signal, 0.5), 1e-3)
        return values

    def scaled(self, latency: float) -> Replica:
        """The same replica, if its queue and its p95 were this many times what was simulated."""
        frame = self.frame.copy()
        frame[["queue_ms", "p95_ms"]] *= latency
        return dataclasses.replace(self, frame=frame)

    def load_within(self, p95_ms: float) -> float:
        """The share of its capacity up to which a replica's p95 stays under a limit."""
        frame = self.frame
        if p95_ms <= frame["p95_ms"].iloc[0]:
            return float(frame["share"].iloc[0])
        return float(np.interp(p95_ms, frame["p95_ms"], frame["share"]))

    def needed(self, rates: ArrayLike, p95_ms: float) -> NDArray[np.int64]:
        """Replicas that answer these requests/s within a p95."""
        each = self.capacity * self.load_within(p95_ms)
        return np.maximum(1, np.ceil(np.asarray(rates, dtype=float) / each)).astype(np.int64)

    def at(self, column: str, load: float) -> float:
        """A column at some share of the capacity."""
        return float(np.interp(load, self.frame["share"], self.frame[column]))


def simulate_replica(service: ServiceTime, *, cores: float | None = None) -> Replica:
    """What one replica does at every load, simulated from what `fit_simulator` measured.

    `cores` are those that the replica's pod requests; if left out, those of this machine.
    """
    cores = cores or inspect_machine().cores
    cost, instances = service.cost(service.config), service.config.instance_count
    capacity = simulate(service, concurrency=_SATURATED, requests=_REQUESTS).throughput
    rows = []
    for rate in (load * capacity for load in _LOADS):
        run = simulate(service, rate=rate, requests=_REQUESTS)
        row = {"share": rate / capacity, "rate": rate, "p95_ms": run.p95_ms}
        row["queue_ms"] = run.summary["queue_ms"].iloc[0]
        row["cpu"] = (run.busy * instances * cost.cores + rate * cost.request_cpu / 1e3) / cores
        rows.append(row | {"gpu": min(1.0, run.any_busy)})
    frame = pd.DataFrame(rows)
    for column in (*SIGNALS, "p95_ms"):  # chance must not make more load look like less
        frame[column] = np.maximum.accumulate(frame[column])
    frame.attrs |= service.frame.attrs | {"simulated": True}
    return Replica(frame=frame, capacity=capacity)
