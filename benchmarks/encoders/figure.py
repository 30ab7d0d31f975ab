"""The figure of a run: throughput by quality class, in one process and by clients, what was found as its title."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from accel_lib.formatting import listed, number
from accel_lib.show.plots.style import BLUE, GREY, LIGHT, VERMILLION
from benchmarks.encoders.classes import CLASSES, Row, fastest, rate, ratio, split
from benchmarks.encoders.verdict import summaries

BUSY = 32  # clients
TITLE_LETTERS, CAPTION_LETTERS = 125, 190
OUTSIDE = "in no class"
GAP = 1.1  # rows between two classes


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what the benchmark kept of both parts."""
    figure = plt.figure(figsize=(14, 8.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
    _bars(results["inprocess"], left.subplots())
    _panels(results["served"], right)
    figure.suptitle(textwrap.fill(finding(results), TITLE_LETTERS), x=0.01, ha="left", fontsize=13, fontweight="bold")
    facts = results["facts"]
    caption = f"measured on {facts['date']} on {facts['machine']}; {facts['texts']}; medians of the turns"
    figure.supxlabel(textwrap.fill(caption, CAPTION_LETTERS), x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def finding(results: dict[str, Any]) -> str:
    """Ours over the best of the others in each class, in one process and served to many clients."""
    busy = [row for row in summaries(results["served"], BUSY) if "gateway" not in row["name"]]
    alone, served = _ratios(results["inprocess"]), _ratios(busy)
    return (
        f"At equal quality, ours encode {listed(alone)} times as many texts as the best of the others in one process, "
        f"and answer {listed(served)} times as many of {BUSY} clients' requests"
    )


def _ratios(rows: Sequence[Row]) -> list[str]:
    ours, theirs = split(rows)
    found = []
    for wanted in CLASSES:
        mine, best = fastest(ours, wanted), fastest(theirs, wanted)
        found += [f"{ratio(mine, best):.2f} ({wanted})"] if mine and best else []
    return found


def _bars(rows: Sequence[Row], ax: Any) -> None:
    """A bar a candidate, class by class, ours in colour."""
    y, ticks, names = 0.0, [], []
    widest = max(map(rate, rows))
    for wanted in (*CLASSES, None):
        own = sorted((row for row in rows if row["class"] == wanted), key=rate, reverse=True)
        if not own:
            continue
        ax.annotate(wanted or OUTSIDE, (0, y), (-6, 0), textcoords="offset points", ha="right", va="center",
                    fontweight="bold")  # fmt: skip
        for row in own:
            y += 1
            hatch = {} if wanted else {"hatch": "////", "edgecolor": "white"}
            ax.barh(y, rate(row), color=BLUE if row["ours"] else LIGHT, height=0.72, **hatch)
            ax.annotate(number(rate(row)), (rate(row), y), (5, 0), textcoords="offset points", va="center")
            ticks.append(y)
            names.append(row["name"])
        y += GAP
    ax.set_yticks(ticks, names)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set_color(BLUE if name.startswith("ours") else "black")
    ax.set_ylim(y, -0.8)
    ax.set_xlim(0, 1.12 * widest)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("texts per second in one process, each at its best batching")


def _panels(rows: Sequence[Row], figure: Any) -> None:
    """Requests by clients, a panel for each class that a service is in."""
    present = [wanted for wanted in (*CLASSES, None) if any(row["class"] == wanted for row in rows)]
    axes = np.atleast_1d(figure.subplots(len(present), 1, sharex=True, sharey=True))
    top = 1.1 * max(rate(row) for level in _levels(rows) for row in summaries(rows, level))
    for wanted, ax in zip(present, axes, strict=True):
        ax.set_ylim(0, top)
        _lines([row for row in rows if row["class"] == wanted], ax)
        ax.set_title(wanted or OUTSIDE, loc="left", fontsize=10, fontweight="bold")
        ax.set_ylabel("requests per second")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("clients, each waiting for its answer, one text a request", loc="left")


def _lines(rows: Sequence[Row], ax: Any) -> None:
    """A line a service: ours blue, the fastest peer vermillion, the others grey; names at the right end."""
    levels = _levels(rows)
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = {name: [rate(_at(rows, name, level)) for level in levels] for name in names}
    theirs = [name for name in names if not _at(rows, name, levels[0])["ours"]]
    best = max(theirs, key=lambda name: lines[name][levels.index(BUSY)], default="")
    heights = _apart(np.array([line[-1] for line in lines.values()]), gap=0.09 * ax.get_ylim()[1])
    for (name, line), height in zip(lines.items(), heights, strict=True):
        ours = name not in theirs
        color = BLUE if ours else VERMILLION if name == best else GREY
        ax.plot(levels, line, color=color, marker="o" if ours else "s", markersize=4, linewidth=2.4 if ours else 1.3)
        thin = {"arrowstyle": "-", "color": color, "linewidth": 0.6}
        words = {"xy": (levels[-1], line[-1]), "xytext": (levels[-1] * 1.35, height)}
        ax.annotate(f"{name} {number(line[-1])}", **words, arrowprops=thin, color=color, va="center", fontsize=8)
    ax.set_xscale("log", base=2)
    ax.set_xticks(levels, map(str, levels))
    ax.minorticks_off()
    ax.set_xlim(0.85, levels[-1] * 300)
    ax.spines["bottom"].set_bounds(0.85, levels[-1])


def _levels(rows: Sequence[Row]) -> list[int]:
    return sorted({row["concurrency"] for row in rows})


def _at(rows: Sequence[Row], name: str, level: int) -> Row:
    return next(row for row in summaries(rows, level) if row["name"] == name)


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Where names stand so that none covers another, from the lowest up."""
    placed = heights.copy()
    for below, above in itertools.pairwise(np.argsort(heights)):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed
