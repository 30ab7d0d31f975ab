"""Predict latency over load and for several settings, with what was measured beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel_lib.formatting import number, percent, times
from accel_lib.load.results import Run
from accel_lib.measurement import Result, highest, lowest
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.config import ModelConfig

SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_FEWEST = 2_000  # requests that a saturated model is simulated with
_CLIENTS = 4  # full batches that the clients of a saturated model have in flight
_ALIKE = 1.15  # times as much: still about the same


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Curve(Result):
    """What `latency_curve` made.

    `frame` has one row a load: ``kind`` (``"simulated"`` or ``"measured"``), ``share`` of capacity, ``offered_per_s``,
    ``p50_ms``, ``p95_ms`` with ``_low`` and ``_high``.
    """

    capacity: float  # texts/s of a model that always has enough waiting

    @property
    def headline(self) -> str:
        """How much the p95 grows towards capacity, and how far the measured points are from the curve."""
        simulated = self._simulated
        shares = simulated.index.to_numpy(dtype=float)
        low, high = (float(shares[np.abs(shares - at).argmin()]) for at in (0.8, 0.95))
        ends = f"{number(simulated[high])} ms against {number(simulated[low])} ms"
        ratio = times(simulated[high] / simulated[low])
        said = f"At {percent(high)} of capacity the simulated p95 is {ratio} that at {percent(low)}"
        measured = self.frame[self.frame["kind"] == "measured"]
        if measured.empty:
            return f"{said}: {ends}"
        ratios = measured["p95_ms"].to_numpy() / simulated[measured["share"]].to_numpy()
        span = times(ratios[0]) if len(ratios) == 1 else f"{number(ratios.min())} to {times(ratios.max())}"
        return f"{said}: {ends}. Measured p95s are {span} the simulated ones"

    def at(self, share: float) -> float:
        """The simulated p95 at a share of capacity, ms."""
        return float(self._simulated[share])

    @property
    def _simulated(self) -> pd.Series[Any]:
        p95: pd.Series[Any] = self.frame[self.frame["kind"] == "simulated"].set_index("share")["p95_ms"]
        return p95


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SettingsTable(Result):
    """What `predict_settings` made: one row a setting, with latencies, mean batch, busy share and bottleneck."""

    @property
    def headline(self) -> str:
        """Which setting has the lowest p95, and which the highest."""
        best, worst = lowest(self.frame, "p95_ms"), highest(self.frame, "p95_ms")
        if worst["p95_ms"] <= _ALIKE * best["p95_ms"]:
            return f"At this load the {len(self.frame)} settings are alike: p95 about {number(best['p95_ms'])} ms"
        ends = f"{number(worst['p95_ms'])} ms against {number(best['p95_ms'])} ms"
        ratio, sizes = (
            times(worst["p95_ms"] / best["p95_ms"]),
            [number(row["mean_batch_size"]) for row in (worst, best)],
        )
        batches = f", with batches of {sizes[0]} against {sizes[1]}" if sizes[0] != sizes[1] else ""
        return f"{worst['setting']}: p95 is {ratio} that of {best['setting']}, {ends}{batches}"


def predict_settings(service: ServiceTime, settings: Mapping[str, ModelConfig], *, rate: float) -> SettingsTable:
    """Predict one load, `rate` requests/s, under several configurations, by name."""
    rows = []
    for name, config in settings.items():
        run = simulate(service, config, rate=rate)
        facts = run.summary[["p50_ms", "p95_ms", "mean_batch_size"]].iloc[0].to_dict()
        rows.append({"setting": name} | facts | {"busy": run.busy, "bottleneck": run.bottleneck})
    frame = pd.DataFrame(rows)
    frame.attrs |= {"machine": service.machine, "simulated": True}
    return SettingsTable(frame=frame)


def saturated(service: ServiceTime, config: ModelConfig | None = None) -> float:
    """Texts/s with enough clients that full batches always wait, simulated."""
    config = (config or service.config).replace(max_queue_size=0, queue_timeout_us=0)
    clients = _CLIENTS * max(1, config.max_batch_size) * config.instance_count
    return simulate(service, config, concurrency=clients, requests=max(_FEWEST, 4 * clients)).throughput


def latency_curve(
    service: ServiceTime,
    config: ModelConfig | None = None,
    *,
    shares: Sequence[float] = SHARES,
    measured: Mapping[float, Run] | None = None,
    requests: int = 20_000,
) -> Curve:
    """Predict latency at shares of capacity, and put open-loop runs of `load_test`, `measured` at some, beside.

    Without a `config` it is that of the fitted model; `requests` are simulated for each point.
    """
    capacity, measured = saturated(service, config), measured or {}
    rows = [
        _row("simulated", share, simulate(service, config, rate=share * capacity, requests=requests))
        for share in sorted({*shares, *measured})
    ]
    rows += [_row("measured", share, run) for share, run in measured.items()]
    frame = pd.DataFrame(rows)
    frame.attrs |= {"machine": service.machine, "simulated": not measured}
    return Curve(frame=frame, capacity=capacity)


def _row(kind: str, share: float, run: Run) -> dict[str, Any]:
    ms = run.frame.loc[run.frame["error"] == "", "ms"].to_numpy()
    low, high = percentile_interval(ms, 95)
    facts = {"kind": kind, "share": share, "offered_per_s": run.offered, "requests": len(run.frame)}
    return facts | {"p50_ms": run.p50_ms, "p95_ms": run.p95_ms, "p95_ms_low": low, "p95_ms_high": high}
