"""Sliders over the simulator, in the API that ipywidgets 7.7 and 8.1 share; what they do is in `playground`.

Without somebody to drag them, as in a run from top to bottom, the first answer stands there as a figure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

from accel_lib.errors import AccelError, require
from accel_lib.progress import live_notebook
from accel_lib.show.plots.answer import Answer
from accel_lib.show.simulator_ui import Knobs, Playground
from accel_lib.simulation.service_time import ServiceTime
from accel_lib.triton.client import ServedModel

_CALIBRATE = "Calibrate, 20 s"
_COPY = "Below is the config.pbtxt of this setting: click into it, Ctrl+A selects it, Ctrl+C copies it."


class Sliders:
    """Widgets and their callbacks; made by `sliders`, and shown by ending a cell with it.

    Parameters
    ----------
    playground
        What the widgets turn.
    rate
        Where the rate's slider begins, requests a second; it reaches to three times as much.
    most_instances
        Where the instances' slider ends.
    """

    def __init__(self, playground: Playground, *, rate: float, most_instances: int) -> None:
        widgets = require("ipywidgets", extra="notebook")
        self.playground = playground
        self._answer = Answer(playground.p95_ms)
        first = next(iter(playground.models))
        self.chosen = {
            name: widgets.Dropdown(
                options=sorted({contender[place] for contender in playground.models}),
                value=first[place],
                description=name,
                layout=widgets.Layout(width="auto"),
            )
            for place, name in enumerate(("model", "engine", "precision"))
        }
        config = playground.models[first].config
        longest = int(playground.lengths.max())

        def slider(words: str, value: int, low: int, high: int, step: int = 1) -> Any:
            return widgets.IntSlider(
                value=value, min=low, max=high, step=step, description=words, continuous_update=True,
                style={"description_width": "110px"}, layout=widgets.Layout(width="360px"),
            )  # fmt: skip

        self.knobs = {
            "rate": slider("requests/s", round(rate), 1, max(round(3 * rate), 3)),
            "max_batch_size": slider("max batch", max(1, config.max_batch_size), 1, 64),
            "tokens": slider("tokens (0: all)", 0, 0, longest),
            "max_queue_delay_us": slider("queue delay, µs", config.max_queue_delay_us, 0, 50_000, 500),
            "preferred_batch_size": slider("preferred size", 0, 0, 64),
            "instance_count": slider("instances", config.instance_count, 1, max(most_instances, config.instance_count)),
        }
        self.buttons = {
            name: widgets.Button(description=words, layout=widgets.Layout(width="auto"))
            for name, words in (
                ("calibrate", _CALIBRATE), ("pin_a", "Pin A"), ("pin_b", "Pin B"), ("clear", "Clear pins"),
                ("measure", "Measure"), ("copy", "Copy config"),
            )
        }  # fmt: skip
        self.image = widgets.Image(format="png")
        self.text = widgets.Textarea(layout=widgets.Layout(width="640px", height="220px", display="none"))
        self.said = widgets.HTML()
        columns = [widgets.VBox([*self.chosen.values()]), widgets.VBox([*self.knobs.values()])]
        self.box = widgets.VBox(
            [widgets.HBox(columns), widgets.HBox([*self.buttons.values()]), self.said, self.image, self.text]
        )
        self._wire()
        self.refresh()

    @property
    def stand(self) -> Knobs:
        """Where the widgets stand."""
        chosen = {name: widget.value for name, widget in self.chosen.items()}
        return Knobs(**chosen, **{name: widget.value for name, widget in self.knobs.items()})

    def refresh(self, *_: object) -> None:
        """Redraw the answer; an uncalibrated choice disables what would need it and leaves the way to calibrate."""
        stand = self.stand
        served = stand.contender in self.playground.models
        ready = served and self.playground.ready(stand)
        for name, widget in [*self.knobs.items(), *self.buttons.items()]:
            widget.disabled = not ready and name not in ("instance_count", "calibrate")
        self.buttons["calibrate"].disabled = ready or not served
        if not ready:
            self.said.value = (
                f"Not calibrated: press “{_CALIBRATE}”." if served else "That combination is not served here."
            )
            return
        self.said.value = ""
        run = self.playground.simulate(stand)
        self.image.value = self._answer.show(self.playground.title(run), self.playground.shown(run))
        self.text.value = self.playground.config(stand).to_text()

    def calibrate(self, *_: object) -> None:
        """The calibrate button."""
        with self._busy("calibrate", "Calibrating …"):
            self.playground.calibrate(self.stand)

    def measure(self, *_: object) -> None:
        """The measure button."""
        with self._busy("measure", "Measuring …"):
            self.playground.measure(self.stand)

    def pin_a(self, *_: object) -> None:
        """Keep the answer as A."""
        self.playground.pin("A", self.stand)
        self.refresh()

    def pin_b(self, *_: object) -> None:
        """Keep the answer as B."""
        self.playground.pin("B", self.stand)
        self.refresh()

    def clear(self, *_: object) -> None:
        """Forget pins and the measurement."""
        self.playground.pins.clear()
        self.playground.measured = None
        self.refresh()

    def copy(self, *_: object) -> None:
        """Show the configuration to copy, or hide it again."""
        hidden = self.text.layout.display == "none"
        self.text.layout.display = "" if hidden else "none"
        self.said.value = _COPY if hidden else ""

    @contextlib.contextmanager
    def _busy(self, name: str, words: str) -> Iterator[None]:
        """While it works the button says so; an error is shown below the buttons, not lost in a log."""
        button = self.buttons[name]
        before, button.description = button.description, words
        failed = ""
        try:
            yield
        except AccelError as error:
            failed = f"<pre>{error}</pre>"
        button.description = before
        self.refresh()
        self.said.value = failed or self.said.value

    def _changed(self, *_: object) -> None:
        """A moved slider: what was measured belongs to where it stood before."""
        self.playground.measured = None
        self.refresh()

    def _wire(self) -> None:
        for widget in [*self.chosen.values(), *self.knobs.values()]:
            widget.observe(self._changed, names="value")
        for name, button in self.buttons.items():
            press: Callable[..., None] = getattr(self, name)
            button.on_click(press)

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
        Requests a second to begin with.
    calibrated
        What `fit_simulator` returned for the models, in their order.
    most_instances
        Where the slider of instances ends.

    Returns
    -------
    Sliders

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
    playground = Playground(several, texts, p95_ms=p95_ms, calibrated=services)
    return Sliders(playground, rate=rate, most_instances=most_instances)
