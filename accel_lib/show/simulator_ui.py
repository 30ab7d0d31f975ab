"""What the sliders do, without a widget: simulate, calibrate, pin, measure until it suffices, write the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import number
from accel_lib.load.runner import load_test
from accel_lib.simulation.fit import fit_simulator
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import SimulatedRun, simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

REQUESTS = 5_000
FOR_P99 = 1_000  # samples, under which a p99 says little
_ALIKE = 32  # texts that stand for a length
_PRECISE = 0.2  # width of the p95's interval over the p95, from which on a measurement suffices
_ROUNDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knobs:
    """Where the sliders stand; `tokens` 0 is the workload as it is, `preferred_batch_size` 0 none."""

    model: str
    engine: str
    precision: str
    rate: float
    max_batch_size: int = 64
    tokens: int = 0
    max_queue_delay_us: int = 0
    preferred_batch_size: int = 0
    instance_count: int = 1

    @property
    def contender(self) -> tuple[str, str, str]:
        """Model, engine and precision."""
        return self.model, self.engine, self.precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What the measure button found: latencies in ms, executions by batch size, texts/s."""

    ms: NDArray[np.float64]
    batch_sizes: pd.Series[Any]
    throughput: float

    @property
    def suffices(self) -> bool:
        """Whether the p95's interval is narrow enough."""
        low, high = percentile_interval(self.ms, 95)
        return bool(high - low <= _PRECISE * np.percentile(self.ms, 95))

    @property
    def said(self) -> str:
        """p95 with its interval, and p99 where there are samples enough for one."""
        low, high = percentile_interval(self.ms, 95)
        ends = f" ({number(low)}–{number(high)})" if np.isfinite([low, high]).all() else ""
        p99 = f", p99 {number(float(np.percentile(self.ms, 99)))} ms" if len(self.ms) >= FOR_P99 else ""
        p95 = number(float(np.percentile(self.ms, 95)))
        return f"Measured: {number(self.throughput)} texts/s, p95 {p95} ms{ends}{p99}, {len(self.ms):,} requests"


class Playground:
    """Calibrations, pins and measurements of some served models under one workload and target.

    Parameters
    ----------
    models
        Handles on served models, such as ``[server.model("embedding", 1), server.model("embedding", 2)]``.
    texts
        The workload.
    p95_ms
        The latency target.
    calibrated
        What was calibrated already, each with the model of the same place in `models`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        texts: Sequence[str],
        *,
        p95_ms: float,
        calibrated: Sequence[ServiceTime] = (),
    ) -> None:
        if not models or not len(texts) or p95_ms <= 0:
            fix = "sliders([server.model('embedding', 1)], texts, p95_ms=50)"
            raise AccelError("Sliders need a model, texts and a target above zero.", seen=f"{p95_ms} ms", fix=fix)
        self.texts, self.p95_ms = texts, p95_ms
        self.models = {_contender(served): served for served in models}
        self.pins: dict[str, SimulatedRun] = {}
        self.measured: Measured | None = None
        self._services: dict[tuple[tuple[str, str, str], int], ServiceTime] = {}
        for served, service in zip(models, calibrated, strict=False):
            self._keep(_contender(served), service)
        self.lengths = models[0].tokenize(texts).lengths

    def ready(self, knobs: Knobs) -> bool:
        """Whether this choice of model and instances is calibrated."""
        return (knobs.contender, knobs.instance_count) in self._services

    def service(self, knobs: Knobs) -> ServiceTime:
        """The calibration of this choice.

        Raises
        ------
        AccelError
            It is not calibrated, or not among the models.
        """
        if not self.ready(knobs):
            chosen = f"{', '.join(knobs.contender)}, {knobs.instance_count} instances"
            raise AccelError("This choice is not calibrated.", seen=chosen, fix="press Calibrate, or .calibrate(knobs)")
        return self._services[knobs.contender, knobs.instance_count]

    def calibrate(self, knobs: Knobs) -> ServiceTime:
        """Calibrate this choice on the real model."""
        service = fit_simulator(self._served(knobs), self.texts, instance_counts=(knobs.instance_count,))
        self._keep(knobs.contender, service)
        return service

    def config(self, knobs: Knobs) -> ModelConfig:
        """The configuration that these knobs stand for."""
        preferred = min(knobs.preferred_batch_size, knobs.max_batch_size)
        return self._served(knobs).config.replace(
            max_batch_size=knobs.max_batch_size,
            max_queue_delay_us=knobs.max_queue_delay_us,
            preferred_batch_sizes=(preferred,) if preferred else (),
            instance_count=knobs.instance_count,
        )

    def simulate(self, knobs: Knobs) -> SimulatedRun:
        """The simulator's answer, from at most 5,000 requests."""
        lengths = self.lengths[self._alike(knobs.tokens)].tolist()
        return simulate(self.service(knobs), self.config(knobs), rate=knobs.rate, requests=REQUESTS, lengths=lengths)

    def pin(self, name: str, knobs: Knobs) -> None:
        """Keep the answer as ``"A"`` or ``"B"``, to compare with."""
        self.pins[name] = self.simulate(knobs)

    def measure(self, knobs: Knobs, *, seconds: float = 3, rounds: int = _ROUNDS) -> Measured:
        """Measure the real thing, round after round, until the p95's interval is narrow enough."""
        served, parts = self._served(knobs), []
        before, config = served.config, self.config(knobs)
        texts = [self.texts[int(index)] for index in self._alike(knobs.tokens)]
        try:
            served.server.load(served.name, config)
            for turn in range(max(rounds, 1)):
                parts.append(load_test(served, texts, rate=knobs.rate, seconds=seconds, warmup_s=0.5, seed=turn))
                answered = [run.frame.loc[run.frame["error"] == "", "ms"] for run in parts]
                sizes = pd.concat([run.batch_sizes for run in parts]).groupby(level=0).sum()
                throughput = float(np.mean([run.throughput for run in parts]))
                ms = np.concatenate([part.to_numpy() for part in answered])
                measured = Measured(ms=ms, batch_sizes=sizes, throughput=throughput)
                if measured.suffices:
                    break
        finally:
            served.server.load(served.name, before)
        self.measured = measured
        return measured

    def title(self, run: SimulatedRun) -> str:
        """The answer in a sentence: within the target or not, and what sets it."""
        met = "within" if run.p95_ms <= self.p95_ms else "over"
        rate, p95 = number(run.throughput), number(run.p95_ms)
        said = f"{rate} texts/s, p95 {p95} ms: {met} the target of {self.p95_ms:g} ms. The limit is {run.bottleneck}"
        return said if self.measured is None else f"{said}. {self.measured.said}"

    def shown(self, run: SimulatedRun) -> dict[str, tuple[NDArray[np.float64], pd.Series[Any]]]:
        """Latencies and batch sizes of all that is to be seen, by name."""
        runs = {"now": run, **self.pins}
        seen = {
            name: (each.frame.loc[each.frame["error"] == "", "ms"].to_numpy(), each.batch_sizes)
            for name, each in runs.items()
        }
        return seen | ({"measured": (self.measured.ms, self.measured.batch_sizes)} if self.measured else {})

    def _served(self, knobs: Knobs) -> ServedModel:
        if knobs.contender in self.models:
            return self.models[knobs.contender]
        known = "; ".join(" ".join(contender) for contender in self.models)
        raise AccelError("No such model is served.", seen=" ".join(knobs.contender), fix=f"choose from: {known}")

    def _keep(self, contender: tuple[str, str, str], service: ServiceTime) -> None:
        self._services |= {(contender, count): service for count in service.costs}

    def _alike(self, tokens: int) -> NDArray[np.int64]:
        """Indices of the texts that are about so long, all for 0."""
        every = np.arange(len(self.lengths))
        if not tokens:
            return every
        return np.sort(np.argsort(np.abs(self.lengths - tokens), kind="stable")[:_ALIKE])


def _contender(served: ServedModel) -> tuple[str, str, str]:
    manifest = served.artifact.manifest
    return manifest.model, manifest.format, manifest.precision
