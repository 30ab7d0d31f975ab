"""Sliders over the simulators: Triton's batcher here, an engine that generates in `generation_sliders`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError, require
from accel_lib.formatting import number
from accel_lib.load.runner import load_test
from accel_lib.show.generation_sliders import GenerationSliders
from accel_lib.show.plots.answer import Answer, BatchSizes, Latencies
from accel_lib.show.slider_panel import Knob, SliderPanel
from accel_lib.simulation.fit import fit_simulator
from accel_lib.simulation.generation_prediction import GenerationSimulator
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import SimulatedRun, simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

FOR_P99 = 1_000  # samples, under which a p99 says little
_REQUESTS = 5_000
_ALIKE = 32  # texts that represent a length
_PRECISE = 0.2  # width of the p95's interval over the p95, from which on a measurement suffices
_CALIBRATE = "Calibrate, 20 s"
_COPY = "Below is the config.pbtxt of this setting: click into it, Ctrl+A selects it, Ctrl+C copies it."


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

    def __str__(self) -> str:
        """P95 with its interval, and p99 where there are samples enough for one."""
        low, high = percentile_interval(self.ms, 95)
        p95, p99 = (number(float(np.percentile(self.ms, q))) for q in (95, 99))
        ends = f" ({number(low)}–{number(high)})" if np.isfinite([low, high]).all() else ""
        tail = f", p99 {p99} ms" if len(self.ms) >= FOR_P99 else ""
        return f"Measured: {number(self.throughput)} texts/s, p95 {p95} ms{ends}{tail}, {len(self.ms):,} requests"


class Sliders(SliderPanel):
    """Sliders over Triton's batcher; made by `sliders`."""

    measured: Measured | None

    def __init__(
        self,
        models: Sequence[ServedModel],
        texts: Sequence[str],
        *,
        p95_ms: float,
        rate: float = 100,
        calibrated: Sequence[ServiceTime] = (),
        most_instances: int = 4,
    ) -> None:
        if not models or not len(texts) or p95_ms <= 0:
            fix = "sliders([server.model('embedding', 1)], texts, p95_ms=50)"
            raise AccelError("Sliders need a model, texts and a target above zero.", seen=f"{p95_ms} ms", fix=fix)
        self.texts, self.p95_ms = texts, p95_ms
        self.models = {_name(served): served for served in models}
        self.services = {
            (_name(served), count): service
            for served, service in zip(models, calibrated, strict=False)
            for count in service.costs
        }
        self._lengths = models[0].tokenize(texts).lengths
        self._answer = Answer(Latencies("answered within, ms", p95_ms), BatchSizes())
        kinds = zip(("model", "engine", "precision"), zip(*self.models, strict=True), strict=True)
        super().__init__(
            self._knobs(models[0].config, round(rate), most_instances),
            {
                "calibrate": (_CALIBRATE, self.calibrate),
                "measure": ("Measure", lambda: self.measure()),
                "copy": ("Copy config", self._copy),
            },
            {kind: list(values) for kind, values in kinds},
        )
        widgets = require("ipywidgets", extra="notebook")
        self.text = widgets.Textarea(layout=widgets.Layout(width="640px", height="220px", display="none"))
        self.box.children = (*self.box.children, self.text)
        self.refresh()

    @property
    def served(self) -> ServedModel | None:
        """The chosen model; None if that combination is not served."""
        return self.models.get(tuple(widget.value for widget in self.chosen.values()))

    @property
    def service(self) -> ServiceTime | None:
        """What was calibrated for this choice of model and instances; None if nothing was."""
        return self.services.get((_name(self.served), self.setting["instance_count"])) if self.served else None

    @property
    def config(self) -> ModelConfig:
        """The configuration that the sliders describe."""
        setting = self.setting
        preferred = min(setting["preferred_batch_size"], setting["max_batch_size"])
        fields = {name: setting[name] for name in ("max_batch_size", "max_queue_delay_us", "instance_count")}
        return self._chosen().config.replace(**fields, preferred_batch_sizes=(preferred,) if preferred else ())

    def simulate(self) -> SimulatedRun:
        """The simulator's answer, from 5,000 requests; an `AccelError` where nothing was calibrated."""
        if self.service is None:
            raise AccelError("This choice is not calibrated.", seen=self.setting, fix="press Calibrate")
        lengths = self._lengths[self._alike()].tolist()
        rate = self.setting["rate"]
        return simulate(self.service, self.config, rate=rate, requests=_REQUESTS, lengths=lengths)

    def refresh(self) -> None:
        """Redraw the answer; an uncalibrated choice disables what would need it and leaves the way to calibrate."""
        ready = self.service is not None
        for name, widget in [*self.knobs.items(), *self.buttons.items()]:
            widget.disabled = not ready and name not in ("instance_count", "calibrate")
        self.buttons["calibrate"].disabled = ready or not self.served
        if ready:
            super().refresh()
            self.text.value = self.config.to_text()
            self.said.value = self.said.value or ("" if self.text.layout.display == "none" else _COPY)
        elif self.served:
            self.said.value = f"Not calibrated: press “{_CALIBRATE}”."
        else:
            self.said.value = "That combination is not served here."

    def draw(self, run: SimulatedRun) -> bytes:
        """Latencies and batch sizes, of the answer, the pins and what was measured."""
        seen = {
            name: (each.frame.loc[each.frame["error"] == "", "ms"].to_numpy(), each.batch_sizes)
            for name, each in {"now": run, **self.pins}.items()
        }
        if self.measured:
            seen["measured"] = (self.measured.ms, self.measured.batch_sizes)
        return self._answer.show(self.title(run), seen)

    def title(self, run: SimulatedRun) -> str:
        """The answer in a sentence: within the target or not, and what sets it."""
        met = "within" if run.p95_ms <= self.p95_ms else "over"
        rate, p95 = number(run.throughput), number(run.p95_ms)
        said = f"{rate} texts/s, p95 {p95} ms: {met} the target of {self.p95_ms:g} ms. The limit is {run.bottleneck}"
        return said if self.measured is None else f"{said}. {self.measured}"

    def calibrate(self) -> None:
        """Calibrate the chosen model with this number of instances."""
        served, count = self._chosen(), self.setting["instance_count"]
        service = fit_simulator(served, self.texts, instance_counts=(count,))
        self.services |= {(_name(served), fitted): service for fitted in service.costs}

    def measure(self, *, seconds: float = 3, rounds: int = 8) -> None:
        """Measure the real model, round after round, until the p95's interval is narrow enough."""
        served, config, parts = self._chosen(), self.config, []
        texts = [self.texts[int(index)] for index in self._alike()]
        with served.own_config():
            served.server.load(served.name, config)
            for turn in range(rounds):
                load = {"rate": self.setting["rate"], "seconds": seconds, "seed": turn}
                parts.append(load_test(served, texts, warmup_s=0.5, **load))  # type: ignore[arg-type]
                self.measured = Measured(
                    ms=np.concatenate([run.frame.loc[run.frame["error"] == "", "ms"].to_numpy() for run in parts]),
                    batch_sizes=pd.concat([run.batch_sizes for run in parts]).groupby(level=0).sum(),
                    throughput=float(np.mean([run.throughput for run in parts])),
                )
                if self.measured.suffices:
                    break

    def _copy(self) -> None:
        self.text.layout.display = "" if self.text.layout.display == "none" else "none"

    def _chosen(self) -> ServedModel:
        if self.served is None:
            known = "; ".join(" ".join(name) for name in self.models)
            raise AccelError("No such model is served.", seen=self.setting, fix=f"choose from: {known}")
        return self.served

    def _alike(self) -> NDArray[np.int64]:
        """Indices of the texts that are about as long as the slider says; all for 0."""
        tokens, every = self.setting["tokens"], np.arange(len(self._lengths))
        if not tokens:
            return every
        return np.sort(np.argsort(np.abs(self._lengths - tokens), kind="stable")[:_ALIKE])

    def _knobs(self, config: ModelConfig, rate: int, most_instances: int) -> dict[str, Knob]:
        most = max(most_instances, config.instance_count)
        return {
            "rate": Knob(words="requests/s", value=rate, low=1, high=max(3 * rate, 3)),
            "max_batch_size": Knob(words="max batch", value=max(1, config.max_batch_size), low=1, high=64),
            "tokens": Knob(words="tokens (0: all)", value=0, low=0, high=int(self._lengths.max())),
            "max_queue_delay_us": Knob(
                words="queue delay, µs", value=config.max_queue_delay_us, low=0, high=50_000, step=500
            ),
            "preferred_batch_size": Knob(words="preferred size", value=0, low=0, high=64),
            "instance_count": Knob(words="instances", value=config.instance_count, low=1, high=most),
        }


@overload
def sliders(
    models: ServedModel | Sequence[ServedModel],
    texts: Sequence[str],
    *,
    p95_ms: float,
    rate: float = 100,
    calibrated: ServiceTime | Sequence[ServiceTime] = (),
    most_instances: int = 4,
) -> Sliders: ...
@overload
def sliders(
    models: GenerationSimulator,
    *,
    ttft_ms: float,
    itl_ms: float,
    rate: float | None = None,
    served: ServedModel | None = None,
) -> GenerationSliders: ...
def sliders(models: Any, texts: Sequence[str] = (), **settings: Any) -> Sliders | GenerationSliders:
    """Sliders over a simulator: drag load and configuration, and see latencies at once.

    A and B can be pinned to compare, and "Measure" asks the real server. Without a reader at the notebook the first
    answer is drawn as a figure.

    Of Triton's batcher: latency and batch sizes. Models and numbers of instances that were not calibrated are disabled
    until "Calibrate" is pressed; "Measure" goes on until its interval is narrow enough, and "Copy config" shows the
    ``config.pbtxt``. Of a model that generates: time to the first token and between tokens, and the goodput.

    Parameters
    ----------
    models
        One served model or several to choose from; or what `fit_generation_simulator` returned.
    texts
        The workload.
    p95_ms
        The latency target.
    rate
        Requests/s to begin with; the slider reaches to three times as much.
    calibrated
        What `fit_simulator` returned for the models, in their order.
    most_instances
        Where the slider of instances ends.
    ttft_ms, itl_ms, served
        Of a model that generates: the targets, to a request's first token and between its tokens; and the model that
        "Measure" asks.

    Raises
    ------
    AccelError
        No model, no texts, or a target that is not above zero.

    Examples
    --------
    >>> accel.sliders(mine, texts, p95_ms=50, calibrated=service)  # doctest: +SKIP
    >>> accel.sliders(simulator, ttft_ms=1_000, itl_ms=100)  # doctest: +SKIP
    """
    if isinstance(models, GenerationSimulator):
        return GenerationSliders(models, **settings)
    calibrated = settings.pop("calibrated", ())
    services = [calibrated] if isinstance(calibrated, ServiceTime) else list(calibrated)
    several = [models] if isinstance(models, ServedModel) else list(models)
    return Sliders(several, texts, calibrated=services, **settings)


def _name(served: ServedModel) -> tuple[str, ...]:
    """Model, engine and precision."""
    manifest = served.artifact.manifest
    return manifest.model, manifest.format, manifest.precision
