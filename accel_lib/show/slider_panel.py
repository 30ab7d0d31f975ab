"""What sliders over a simulator share: knobs, buttons, pins, and a picture that is drawn again at each move.

Written in the API that ipywidgets 7.7 and 8.1 share. Without a reader to drag them, as in a run from top to bottom, the
first answer is shown as a figure.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from accel_lib.errors import AccelError, require
from accel_lib.progress import live_notebook


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    """A slider: its words, where it begins, and its ends."""

    words: str
    value: int
    low: int
    high: int
    step: int = 1


class SliderPanel(abc.ABC):
    """Widgets and what they do; shown by ending a cell with it.

    Parameters
    ----------
    knobs
        Sliders by the name of what they set.
    buttons
        Their words by name, and what a press does.
    choosers
        Dropdowns by their words: what one may choose from.
    """

    def __init__(
        self,
        knobs: Mapping[str, Knob],
        buttons: Mapping[str, tuple[str, Callable[[], None]]],
        choosers: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.pins: dict[str, Any] = {}
        self.measured: Any = None
        pins = {f"pin_{name.lower()}": (f"Pin {name}", functools.partial(self.pin, name)) for name in ("A", "B")}
        self._actions = pins | {"clear": ("Clear pins", self.clear)} | dict(buttons)
        self._build(knobs, choosers or {})

    @abc.abstractmethod
    def simulate(self) -> Any:
        """The simulator's answer to where the sliders are."""

    @abc.abstractmethod
    def draw(self, run: Any) -> bytes:
        """The answer, the pins and what was measured, as PNG."""

    @property
    def setting(self) -> dict[str, int]:
        """Where the sliders are, by name."""
        return {name: int(widget.value) for name, widget in self.knobs.items()}

    def refresh(self) -> None:
        """Draw the answer; what cannot be simulated is said instead."""
        self.said.value = ""
        try:
            self.image.value = self.draw(self.simulate())
        except AccelError as error:
            self.said.value = f"<pre>{error}</pre>"

    def pin(self, name: str) -> None:
        """Keep the answer as ``"A"`` or ``"B"``, to compare with."""
        self.pins[name] = self.simulate()

    def clear(self) -> None:
        """Forget pins and the measurement."""
        self.pins.clear()
        self.measured = None

    def _press(self, name: str, *_: object) -> None:
        """While a button works it says so; an error is shown below the buttons, not lost in a log."""
        words, act = self._actions[name]
        failed = ""
        self.buttons[name].description = "Working …"
        try:
            act()
        except AccelError as error:
            failed = f"<pre>{error}</pre>"
        self.buttons[name].description = words
        self.refresh()
        self.said.value = failed or self.said.value

    def _moved(self, *_: object) -> None:
        """What was measured belongs to where the sliders were before."""
        self.measured = None
        self.refresh()

    def _build(self, knobs: Mapping[str, Knob], choosers: Mapping[str, list[str]]) -> None:
        widgets = require("ipywidgets", extra="notebook")
        auto = widgets.Layout(width="auto")
        self.chosen = {
            kind: widgets.Dropdown(options=sorted(set(names)), value=names[0], description=kind, layout=auto)
            for kind, names in choosers.items()
        }
        self.knobs = {
            name: widgets.IntSlider(
                value=knob.value, min=knob.low, max=knob.high, step=knob.step, description=knob.words,
                continuous_update=True, style={"description_width": "110px"}, layout=widgets.Layout(width="360px"),
            )
            for name, knob in knobs.items()
        }  # fmt: skip
        self.buttons = {
            name: widgets.Button(description=words, layout=auto) for name, (words, _) in self._actions.items()
        }
        self.image = widgets.Image(format="png")
        self.said = widgets.HTML()
        columns = widgets.HBox([widgets.VBox([*part.values()]) for part in (self.chosen, self.knobs) if part])
        self.box = widgets.VBox([columns, widgets.HBox([*self.buttons.values()]), self.said, self.image])
        for widget in [*self.chosen.values(), *self.knobs.values()]:
            widget.observe(self._moved, names="value")
        for name, button in self.buttons.items():
            button.on_click(functools.partial(self._press, name))

    def _ipython_display_(self) -> None:
        display = import_module("IPython.display")
        display.display(self.box if live_notebook() else display.Image(bytes(self.image.value)))
