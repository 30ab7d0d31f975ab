"""The figure of the simulator's sliders: latencies and batch sizes, redrawn at each move."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.formatting import number
from accel_lib.show.plots.style import BLUE, GREEN, LIGHT, ORANGE, PURPLE, VERMILLION

_INKS = {"now": BLUE, "A": ORANGE, "B": PURPLE, "measured": VERMILLION}
_BOX: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_POINTS = 200  # of a distribution's line
_DPI = 80
_LETTERS = 92


class Answer:
    """The figure that sliders redraw: one set of axes, whose lines get new data."""

    def __init__(self, p95_ms: float) -> None:
        figure = require("matplotlib.figure", extra="notebook")
        agg = require("matplotlib.backends.backend_agg", extra="notebook")
        self.figure = figure.Figure(figsize=(8, 3.6), dpi=_DPI)
        self._canvas = agg.FigureCanvasAgg(self.figure)
        self.latency, self.sizes = self.figure.subplots(1, 2, width_ratios=(3, 2))
        self.figure.subplots_adjust(left=0.09, right=0.98, top=0.8, bottom=0.15, wspace=0.24)
        self._title = self.figure.text(0.01, 0.97, "", va="top", fontsize=10.5, fontweight="bold", wrap=True)
        for ax in (self.latency, self.sizes):
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=9)
        self.latency.axvline(p95_ms, color=GREEN, linestyle="--", linewidth=1.2)
        self.latency.axhline(95, color=LIGHT, linewidth=1)
        at = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
        self.latency.annotate(f"target {p95_ms:g} ms", (p95_ms, 2), (-4, 0), color=GREEN, **at)
        self.latency.set(ylim=(0, 100.5), xlabel="answered within, ms", ylabel="requests, %")
        self.sizes.set(xlabel="requests run together", ylabel="requests, %")
        self._p95_ms = p95_ms
        self._lines = {name: self.latency.plot([], [], color=ink, linewidth=2)[0] for name, ink in _INKS.items()}
        self._bars = {name: self.sizes.plot([], [], color=ink, drawstyle="steps-mid")[0] for name, ink in _INKS.items()}
        self._names = {
            name: self.latency.text(1, 0, "", color=ink, fontsize=9, ha="right", bbox=_BOX)
            for name, ink in _INKS.items()
        }

    def show(self, title: str, runs: Mapping[str, tuple[NDArray[np.float64], pd.Series[Any]]]) -> bytes:
        """Draw latencies (ms) and executions by batch size of each name, and return the figure as PNG."""
        import textwrap

        self._title.set_text(textwrap.fill(title, _LETTERS))
        right, widest, most = self._p95_ms, 1, 1.0
        for place, name in enumerate(_INKS):
            ms, sizes = runs.get(name, (np.array([]), pd.Series(dtype=float)))
            shares = np.linspace(0, 100, _POINTS)
            self._lines[name].set_data(np.percentile(ms, shares) if len(ms) else [], shares if len(ms) else [])
            requests = sizes * sizes.index.to_numpy(dtype=float)
            percents = 100 * requests / max(float(requests.sum()), 1e-9)
            self._bars[name].set_data(_padded(sizes.index, percents))
            self._names[name].set_text(f"{name}: p95 {number(float(np.percentile(ms, 95)))} ms" if len(ms) else "")
            self._names[name].set_position((0.985, 0.62 - 0.09 * place))
            self._names[name].set_transform(self.latency.transAxes)
            if len(ms):
                right = max(right, float(np.percentile(ms, 99.5)))
                widest, most = max(widest, int(sizes.index.max())), max(most, float(percents.max()))
        self.latency.set_xlim(0, right * 1.15)
        self.sizes.set_xlim(0, widest + 1.5)
        self.sizes.set_ylim(0, most * 1.1)
        target = io.BytesIO()
        self._canvas.print_png(target)
        return target.getvalue()


def _padded(sizes: Sequence[int] | pd.Index[Any], percents: pd.Series[Any]) -> tuple[NDArray[np.int64], list[float]]:
    """Every size from 0 to one beyond the largest, so that steps begin and end at nothing."""
    if not len(sizes):
        return np.array([], dtype=np.int64), []
    every = np.arange(0, int(max(sizes)) + 2)
    return every, percents.reindex(every, fill_value=0.0).tolist()
