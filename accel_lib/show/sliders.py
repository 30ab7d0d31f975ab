"""Sliders over the simulator: latency and batch sizes of a setting, redrawn as it is dragged, and measured beside it.

Written in the API that ipywidgets 7.7 and 8.1 share. Without a reader to drag them, as in a run from top to bottom, the
first answer is shown as a figure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import AccelError, require
from accel_lib.formatting import number
from accel_lib.load.runner import load_test
from accel_lib.progress import live_notebook
from accel_lib.show.plots.answer import Answer
from accel_lib.simulation.fit import fit_simulator
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.simulation.simulator import SimulatedRun, simulate
from accel_lib.stats import percentile_interval
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig

FOR_P99 = 1_000  # samples, under which a p99 says little
_REQUESTS = 5_000
_ALIKE = 32  # texts that represent a length
_PRECISE = 0.2  # width of the p95's interval over the p95, from which on a measurement suffices
_BUTTONS = {
    "calibrate": "Calibrate, 20 s",
    "pin_a": "Pin A",
    "pin_b": "Pin B",
    "clear": "Clear pins",
    "measure": "Measure",
    "copy": "Copy config",
}
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


class Sliders:
    """Widgets and what they do; made by `sliders`, and shown by ending a cell with it."""

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
        self.pins: dict[str, SimulatedRun] = {}
        self.measured: Measured | None = None
        self.services = {
            (_name(served), count): service
            for served, service in zip(models, calibrated, strict=False)
            for count in service.costs
        }
        self._lengths = models[0].tokenize(texts).lengths
        self._answer = Answer(p95_ms)
        self._build(models[0].config, rate, most_instances)
        self.refresh()

    @property
    def setting(self) -> dict[str, int]:
        """Where the sliders are, by name."""
        return {name: int(widget.value) for name, widget in self.knobs.items()}

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

    def refresh(self, *_: object) -> None:
        """Redraw the answer; an uncalibrated choice disables what would need it and leaves the way to calibrate."""
        ready = self.service is not None
        for name, widget in [*self.knobs.items(), *self.buttons.items()]:
            widget.disabled = not ready and name not in ("instance_count", "calibrate")
        self.buttons["calibrate"].disabled = ready or not self.served
        self.said.value = ""
        if not self.served:
            self.said.value = "That combination is not served here."
        elif not ready:
            self.said.value = f"Not calibrated: press “{_BUTTONS['calibrate']}”."
        else:
            run = self.simulate()
            self.image.value = self._answer.show(self.title(run), self._shown(run))
            self.text.value = self.config.to_text()

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

    def pin(self, name: str) -> None:
        """Keep the answer as ``"A"`` or ``"B"``, to compare with."""
        self.pins[name] = self.simulate()

    def clear(self) -> None:
        """Forget pins and the measurement."""
        self.pins.clear()
        self.measured = None

    def _copy(self, *_: object) -> None:
        hidden = self.text.layout.display == "none"
        self.text.layout.display = "" if hidden else "none"
        self.said.value = _COPY if hidden else ""

    def _press(self, name: str, *_: object) -> None:
        """While a button works it says so; an error is shown below the buttons, not lost in a log."""
        acts = {"calibrate": self.calibrate, "measure": lambda: self.measure(), "clear": self.clear}
        acts |= {"pin_a": functools.partial(self.pin, "A"), "pin_b": functools.partial(self.pin, "B")}
        failed = ""
        self.buttons[name].description = "Working …"
        try:
            acts[name]()
        except AccelError as error:
            failed = f"<pre>{error}</pre>"
        self.buttons[name].description = _BUTTONS[name]
        self.refresh()
        self.said.value = failed or self.said.value

    def _moved(self, *_: object) -> None:
        """What was measured belongs to where the sliders were before."""
        self.measured = None
        self.refresh()

    def _chosen(self) -> ServedModel:
        if self.served is None:
            known = "; ".join(" ".join(name) for name in self.models)
            raise AccelError("No such model is served.", seen=self.setting, fix=f"choose from: {known}")
        return self.served

    def _shown(self, run: SimulatedRun) -> dict[str, tuple[NDArray[np.float64], pd.Series[Any]]]:
        """Latencies and batch sizes of all that is to be seen, by name."""
        seen = {
            name: (each.frame.loc[each.frame["error"] == "", "ms"].to_numpy(), each.batch_sizes)
            for name, each in {"now": run, **self.pins}.items()
        }
        return seen | ({"measured": (self.measured.ms, self.measured.batch_sizes)} if self.measured else {})

    def _alike(self) -> NDArray[np.int64]:
        """Indices of the texts that are about as long as the slider says; all for 0."""
        tokens, every = self.setting["tokens"], np.arange(len(self._lengths))
        if not tokens:
            return every
        return np.sort(np.argsort(np.abs(self._lengths - tokens), kind="stable")[:_ALIKE])

    def _build(self, config: ModelConfig, rate: float, most_instances: int) -> None:
        widgets = require("ipywidgets", extra="notebook")
        names, auto = list(self.models), widgets.Layout(width="auto")

        def slider(words: str, value: int, low: int, high: int, step: int = 1) -> Any:
            return widgets.IntSlider(
                value=value, min=low, max=high, step=step, description=words, continuous_update=True,
                style={"description_width": "110px"}, layout=widgets.Layout(width="360px"),
            )  # fmt: skip

        self.chosen = {
            kind: widgets.Dropdown(options=sorted(set(values)), value=values[0], description=kind, layout=auto)
            for kind, values in zip(("model", "engine", "precision"), zip(*names, strict=True), strict=True)
        }
        self.knobs = {
            "rate": slider("requests/s", round(rate), 1, max(round(3 * rate), 3)),
            "max_batch_size": slider("max batch", max(1, config.max_batch_size), 1, 64),
            "tokens": slider("tokens (0: all)", 0, 0, int(self._lengths.max())),
            "max_queue_delay_us": slider("queue delay, µs", config.max_queue_delay_us, 0, 50_000, 500),
            "preferred_batch_size": slider("preferred size", 0, 0, 64),
            "instance_count": slider("instances", config.instance_count, 1, max(most_instances, config.instance_count)),
        }
        self.buttons = {name: widgets.Button(description=words, layout=auto) for name, words in _BUTTONS.items()}
        self.image = widgets.Image(format="png")
        self.text = widgets.Textarea(layout=widgets.Layout(width="640px", height="220px", display="none"))
        self.said = widgets.HTML()
        columns = widgets.HBox([widgets.VBox([*part.values()]) for part in (self.chosen, self.knobs)])
        self.box = widgets.VBox([columns, widgets.HBox([*self.buttons.values()]), self.said, self.image, self.text])
        for widget in [*self.chosen.values(), *self.knobs.values()]:
            widget.observe(self._moved, names="value")
        for name, button in self.buttons.items():
            button.on_click(self._copy if name == "copy" else functools.partial(self._press, name))

    def _ipython_display_(self) -> None:
        display = import_module("IPython.display")
        display.display(self.box if live_notebook() else display.Image(bytes(self.image.value)))


def sliders(
    models: ServedModel | Sequence[ServedModel],
    texts: Sequence[str],
    *,
    p95_ms: float,
    rate: float = 100,
    calibrated: ServiceTime | Sequence[ServiceTime] = (),
    most_instances: int = 4,
) -> Sliders:
    """Sliders over the simulator: drag load and configuration, and see latency and batch sizes at once.

    Models and numbers of instances that were not calibrated are disabled until "Calibrate" is pressed. A and B can be
    pinned to compare, "Measure" asks the real server until its interval is narrow enough, and "Copy config" shows the
    ``config.pbtxt``. Without a reader at the notebook the first answer is drawn as a figure.

    Parameters
    ----------
    models
        One served model or several to choose from.
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

    Raises
    ------
    AccelError
        No model, no texts, or a target that is not above zero.

    Examples
    --------
    >>> accel.sliders(mine, texts, p95_ms=50, calibrated=service)  # doctest: +SKIP
    """
    several = [models] if isinstance(models, ServedModel) else list(models)
    services = [calibrated] if isinstance(calibrated, ServiceTime) else list(calibrated)
    how: dict[str, Any] = {"p95_ms": p95_ms, "rate": rate, "most_instances": most_instances}
    return Sliders(several, texts, calibrated=services, **how)


def _name(served: ServedModel) -> tuple[str, ...]:
    """Model, engine and precision."""
    manifest = served.artifact.manifest
    return manifest.model, manifest.format, manifest.precision
