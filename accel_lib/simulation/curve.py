"""Latency over load, predicted; with what was measured beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from accel_lib.load.results import Run
from accel_lib.measurement import Result
from accel_lib.simulation import findings
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.config import ModelConfig

SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_CROWD = 4  # full batches that the clients of a saturated model have under way


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Curve(Result):
    """What `latency_curve` made.

    Parameters
    ----------
    frame
        One row a load: ``kind`` (``"simulated"`` or ``"measured"``), ``share`` of capacity, ``offered_per_s``,
        ``p50_ms``, ``p95_ms`` with ``_low`` and ``_high``.
    capacity
        Sentences a second of a model that always has enough waiting.
    """

    capacity: float

    @property
    def headline(self) -> str:
        """How much the p95 grows towards capacity, and how far the measured points are from the curve."""
        return findings.curve(self.frame)

    def table(self) -> str:
        """The loads as plain text."""
        return self._readable().to_string(index=False)

    def at(self, share: float) -> float:
        """The simulated p95 at a share of capacity, ms."""
        simulated = self.frame[self.frame["kind"] == "simulated"]
        return float(simulated.loc[simulated["share"] == share, "p95_ms"].iloc[0])


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SettingsTable(Result):
    """What `predict_settings` made: one row a setting, with latencies, mean batch, busy share and what the limit is."""

    @property
    def headline(self) -> str:
        """Which setting answers soonest, and what the slowest costs."""
        return findings.settings(self.frame)


def predict_settings(service: ServiceTime, settings: Mapping[str, ModelConfig], *, rate: float) -> SettingsTable:
    """Predict one load, `rate` requests a second, under several configurations, by name."""
    rows = []
    for name, config in settings.items():
        run = simulate(service, config, rate=rate)
        facts = run.summary[["p50_ms", "p95_ms", "mean_batch_size"]].iloc[0].to_dict()
        rows.append({"setting": name} | facts | {"busy": run.busy, "bottleneck": run.bottleneck})
    frame = pd.DataFrame(rows)
    frame.attrs["machine"] = service.machine
    return SettingsTable(frame=frame)


def saturated(service: ServiceTime, config: ModelConfig | None = None, *, requests: int = 2_000) -> float:
    """Sentences a second with so many clients that full batches always wait, simulated."""
    config = (config or service.config).replace(max_queue_size=0, queue_timeout_us=0)
    clients = _CROWD * max(1, config.max_batch_size) * config.instance_count
    return simulate(service, config, concurrency=clients, requests=max(requests, 4 * clients)).throughput


def latency_curve(
    service: ServiceTime,
    config: ModelConfig | None = None,
    *,
    shares: Sequence[float] = SHARES,
    measured: Mapping[float, Run] | None = None,
    requests: int = 20_000,
) -> Curve:
    """Predict latency at shares of capacity, and put measured runs beside.

    Parameters
    ----------
    service
        What `fit_simulator` measured.
    config
        The configuration to predict; the calibration's own if left out.
    shares
        Of capacity, in order.
    measured
        Open-loop runs of `load` by their share of capacity.
    requests
        Simulated a point.

    Returns
    -------
    Curve
    """
    capacity = saturated(service, config)
    rows = [
        _row("simulated", share, simulate(service, config, rate=share * capacity, requests=requests))
        for share in sorted({*shares, *(measured or {})})
    ]
    rows += [_row("measured", share, run) for share, run in (measured or {}).items()]
    frame = pd.DataFrame(rows)
    frame.attrs["machine"] = service.machine
    return Curve(frame=frame, capacity=capacity)


def _row(kind: str, share: float, run: Run) -> dict[str, Any]:
    ms = run.frame.loc[run.frame["error"] == "", "ms"].to_numpy()
    low, high = percentile_interval(ms, 95)
    facts = {"kind": kind, "share": share, "offered_per_s": run.offered, "requests": len(run.frame)}
    return facts | {"p50_ms": run.p50_ms, "p95_ms": run.p95_ms, "p95_ms_low": low, "p95_ms_high": high}
