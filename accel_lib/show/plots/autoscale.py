"""Figures of the autoscaler: its signals, a day of replicas, and what policies cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accel_lib.formatting import listed, number, percent
from accel_lib.show.plots.base import BLUE, GREY, LIGHT, ORANGE, VERMILLION, canvas, finish, label
from accel_lib.tuning.autoscale import MOST_LATE
from accel_lib.tuning.replica import SIGNALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.tuning.autoscale import Policies
    from accel_lib.tuning.replica import Replica


_LINES = ((BLUE, 1.8), (ORANGE, 3.6), (VERMILLION, 1.4))  # colour and width: the last is seen upon the one before
_LETTER = 0.0105  # width of a label's letter, of the axes'


def signals(replica: Replica) -> Axes:
    """Queue time and both utilisations of one replica, each relative to its value at half load, by load."""
    frame, growths = replica.frame, replica.growths
    ax = canvas(replica.headline, rows=6)
    ax.set_yscale("log")
    for signal, (colour, width) in zip(growths, _LINES, strict=False):
        ax.plot(
            100 * frame["share"],
            replica.relative(signal),
            color=colour,
            linewidth=width,
            marker="o",
            markersize=2 + width,
        )
    grown = np.array(list(growths.values()))
    low, high = np.log(ax.get_ylim())
    for line, signal, height in zip(ax.lines, growths, _apart((np.log(grown) - low) / (high - low)), strict=True):
        place = (100 * float(frame["share"].iloc[-1]), float(np.exp(low + height * (high - low))))
        label(ax, *place, SIGNALS[signal])
        ax.texts[-1].set_color(line.get_color())
    ax.axhline(1, color=LIGHT, linewidth=1, zorder=0)
    ax.yaxis.set_major_formatter("{x:g}×")
    ax.yaxis.set_minor_formatter("")
    ax.set_xlim(0, 130)
    ax.set_xticks(np.arange(0, 101, 20))
    ax.set_xlabel("load, % of what one replica can answer")
    ax.set_ylabel("signal, times its value at half load")
    return finish(ax, frame)


def day(chosen: Policies, *names: str) -> Axes:
    """The replicas that policies keep through the day, over those that the load needs."""
    changes = chosen.frame.set_index("name")["changes"]
    title = f"Replicas change through the day: {listed([f'{name} {changes[name]:,} times' for name in names])}"
    ax = canvas(title, rows=6)
    first = chosen.replays[0].frame
    ax.fill_between(first["hour"], first["needed"], step="post", color=LIGHT, zorder=0)
    ax.annotate("needed for the load", (2.2, 0.15), color=GREY, fontsize=10)
    for name, (colour, width) in zip(names, _LINES, strict=False):
        frame = chosen[name].frame
        ax.step(frame["hour"], frame["replicas"], where="post", color=colour, linewidth=width, label=name)
    ax.legend(frameon=False, loc="upper left", fontsize=10)
    ax.set_xlim(0, 24)
    ax.set_ylim(0, None)
    ax.set_xticks(np.arange(0, 25, 3))
    ax.set_xlabel("hour of the day")
    ax.set_ylabel("replicas that answer")
    return finish(ax, first)


def costs(chosen: Policies, unit: str = "USD") -> Axes:
    """Cost of a million requests against the share that came late, one point a policy."""
    frame = chosen.frame
    ax = canvas(chosen.headline, rows=6)
    late = 100 * frame["late"]
    ax.axvspan(-100, 100 * MOST_LATE, color="#EAF5F0", zorder=0)
    top = 1.18 * float(frame["cost_per_million"].max())
    width = 1.12 * max(late.max(), 1)
    said = [
        f"{row['name']}: {number(row['cost_per_million'])} {unit}, {percent(row['late'])} late"
        for _, row in frame.iterrows()
    ]
    ends = [
        x + (-1 if x > 0.5 * width else 1) * (0.018 + _LETTER * len(words)) * width
        for x, words in zip(late, said, strict=True)
    ]
    heights = _apart(
        frame["cost_per_million"].to_numpy() / top, [sorted(span) for span in zip(late, ends, strict=True)]
    )
    for (_, row), x, end, words, height in zip(frame.iterrows(), late, ends, said, heights, strict=True):
        kept = row["late"] <= MOST_LATE
        ax.scatter(x, row["cost_per_million"], s=75, color=BLUE if kept else GREY, zorder=2)
        near = (x + (0.018 if end > x else -0.018) * width, height * top)
        ax.annotate(words, near, ha="left" if end > x else "right", va="center", fontsize=10)
    ax.set_xlim(-0.04 * max(late.max(), 1), 1.08 * max(late.max(), 1))
    ax.set_ylim(0, top)
    ax.set_xlabel("requests while the p95 was over the target, % (green: at most 1%)")
    ax.set_ylabel(f"{unit} per million requests")
    return finish(ax, frame)


def _apart(
    heights: NDArray[np.float64], spans: Sequence[Sequence[float]] = (), gap: float = 0.065
) -> NDArray[np.float64]:
    """Where labels stand so that none covers another: from the lowest up, each `gap` above those it would lie upon.

    `spans` are where they begin and end from left to right; if left out, all of them are above each other.
    """
    placed = heights.copy()
    order = np.argsort(heights)
    for count, above in enumerate(order):
        for below in order[:count]:
            if not spans or (spans[below][0] < spans[above][1] and spans[above][0] < spans[below][1]):
                placed[above] = max(placed[above], placed[below] + gap)
    return placed
