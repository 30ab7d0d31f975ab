"""The figure of the simulators' sliders: latencies against their target, and batch sizes; redrawn at each move."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.formatting import number
from accel_lib.show.plots.style import BLUE, GREEN, LIGHT, ORANGE, PURPLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INKS = {"now": BLUE, "A": ORANGE, "B": PURPLE, "measured": VERMILLION}
_BOX: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_POINTS = 200  # of a distribution's line
_NEAR = 0.4  # share of the axis
_DPI = 80
_LETTERS = 92


class Panel(Protocol):
    """One of the figure's axes, whose lines get new data."""

    def place(self, ax: Axes) -> None:
        """Draw what never changes."""

    def show(self, runs: Mapping[str, Any]) -> None:
        """Draw the data of each name; what is not there is not drawn."""


class Answer:
    """The figure that sliders redraw: two panels side by side."""

    def __init__(self, left: Panel, right: Panel) -> None:
        figure = require("matplotlib.figure", extra="notebook")
        agg = require("matplotlib.backends.backend_agg", extra="notebook")
        self.figure = figure.Figure(figsize=(8, 3.6), dpi=_DPI)
        self._canvas = agg.FigureCanvasAgg(self.figure)
        self._panels = (left, right)
        both = self.figure.subplots(1, 2, width_ratios=(3, 2))
        self.figure.subplots_adjust(left=0.09, right=0.98, top=0.8, bottom=0.15, wspace=0.24)
        self._title = self.figure.text(0.01, 0.97, "", va="top", fontsize=10.5, fontweight="bold", wrap=True)
        for ax, panel in zip(both, self._panels, strict=True):
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=9)
            panel.place(ax)

    def show(self, title: str, runs: Mapping[str, tuple[Any, Any]]) -> bytes:
        """Draw the data of both panels for each name, and return the figure as PNG."""
        self._title.set_text(textwrap.fill(title, _LETTERS))
        for place, panel in enumerate(self._panels):
            panel.show({name: data[place] for name, data in runs.items()})
        target = io.BytesIO()
        self._canvas.print_png(target)
        return target.getvalue()


class Latencies:
    """Share of requests that were answered within a time, and the target; of each name milliseconds.

    Parameters
    ----------
    words
        Of the x axis.
    target_ms
        Where the target's line is.
    """

    def __init__(self, words: str, target_ms: float) -> None:
        self._words, self._target_ms = words, target_ms

    def place(self, ax: Axes) -> None:
        """The target, the line of 95%, and the empty curves."""
        self._ax = ax
        ax.axvline(self._target_ms, color=GREEN, linestyle="--", linewidth=1.2)
        ax.axhline(95, color=LIGHT, linewidth=1)
        self._note = ax.text(self._target_ms, 2, "", color=GREEN, fontsize=9)
        ax.set(ylim=(0, 100.5), xlabel=self._words, ylabel="requests, %")
        self._lines = {name: ax.plot([], [], color=ink, linewidth=2)[0] for name, ink in _INKS.items()}
        self._names = {
            name: ax.text(1, 0, "", color=ink, fontsize=9, ha="right", bbox=_BOX) for name, ink in _INKS.items()
        }

    def show(self, runs: Mapping[str, Any]) -> None:
        """Curves, and each one's p95 in its colour."""
        right, shares = self._target_ms, np.linspace(0, 100, _POINTS)
        for place, name in enumerate(_INKS):
            ms = runs.get(name, np.array([]))
            self._lines[name].set_data(np.percentile(ms, shares) if len(ms) else [], shares if len(ms) else [])
            self._names[name].set_text(f"{name}: p95 {number(float(np.percentile(ms, 95)))} ms" if len(ms) else "")
            self._names[name].set_position((0.985, 0.62 - 0.09 * place))
            self._names[name].set_transform(self._ax.transAxes)
            if len(ms):
                right = max(right, float(np.percentile(ms, 99.5)))
        self._ax.set_xlim(0, right * 1.15)
        beside = self._target_ms < _NEAR * right  # where there is no room for words on the left of the line
        self._note.set_text(f" target {self._target_ms:g} ms ")
        self._note.set_horizontalalignment("left" if beside else "right")


class BatchSizes:
    """Share of requests by the size of the batch that they ran in; of each name executions by batch size."""

    def place(self, ax: Axes) -> None:
        """The empty steps."""
        self._ax = ax
        ax.set(xlabel="requests run together", ylabel="requests, %")
        ax.locator_params(axis="x", integer=True)
        self._bars = {name: ax.plot([], [], color=ink, drawstyle="steps-mid")[0] for name, ink in _INKS.items()}

    def show(self, runs: Mapping[str, Any]) -> None:
        """Steps, from nothing to nothing."""
        widest, most = 1, 1.0
        for name in _INKS:
            sizes = runs.get(name, pd.Series(dtype=float))
            requests = sizes * sizes.index.to_numpy(dtype=float)
            percents = 100 * requests / max(float(requests.sum()), 1e-9)
            self._bars[name].set_data(*_padded(sizes.index, percents))
            if len(sizes):
                widest, most = max(widest, int(sizes.index.max())), max(most, float(percents.max()))
        self._ax.set_xlim(0, widest + 1.5)
        self._ax.set_ylim(0, most * 1.1)


def _padded(sizes: Sequence[int] | pd.Index[Any], percents: pd.Series[Any]) -> tuple[NDArray[np.int64], list[float]]:
    """Every size from 0 to one beyond the largest, so that steps begin and end at nothing."""
    if not len(sizes):
        return np.array([], dtype=np.int64), []
    every = np.arange(0, int(max(sizes)) + 2)
    return every, percents.reindex(every, fill_value=0.0).tolist()
