"""The figure of a run: throughput in one process beside throughput by clients, with what was found as its title."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from accel_lib.formatting import number, times
from accel_lib.show.plots.style import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILLION

COLORS = {
    "Triton, ours INT8": GREEN,
    "Triton, ours FP32": BLUE,
    "our gateway, INT8": SKY,
    "Triton, naive": GREY,
    "infinity": ORANGE,
    "FastAPI + sentence-transformers": PURPLE,
    "LitServe": VERMILLION,
}
BUSY = 32  # clients
TITLE_LETTERS, NAME_LETTERS, CAPTION_LETTERS = 118, 20, 170


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what the benchmark kept of both parts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained", width_ratios=(1, 1.15))
    _bars(results, left)
    _lines(results["served"], right)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    words = textwrap.fill(finding(results), TITLE_LETTERS)
    figure.suptitle(words, x=0.01, ha="left", fontsize=13, fontweight="bold")
    facts = results["facts"]
    caption = f"measured on {facts['date']} on {facts['machine']}; {facts['texts']}; medians of the rounds"
    figure.supxlabel(textwrap.fill(caption, CAPTION_LETTERS), x=0.01, ha="left", fontsize=8, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def finding(results: dict[str, Any]) -> str:
    """Ours in INT8 over the best other, in one process and served to many clients."""
    rates = {row["name"]: float(np.median(row["rates"])) for row in results["inprocess"]}
    alone = {name: value for name, value in rates.items() if name != "ours FP32"}
    busy = {
        name: rate(results["served"], name, BUSY)
        for name in dict.fromkeys(row["name"] for row in results["served"])
        if name not in ("Triton, ours FP32", "our gateway, INT8")
    }
    alone, busy = _over_the_best(alone, "ours INT8"), _over_the_best(busy, "Triton, ours INT8")  # type: ignore[assignment]
    return f"In one process ours in INT8 answers {alone}; served to {BUSY} clients, {busy}"


def _over_the_best(rates: dict[str, float], ours: str) -> str:
    others = {name: rate for name, rate in rates.items() if name != ours}
    best = max(others, key=lambda name: others[name])
    return f"{times(rates[ours] / others[best])} as many texts as the best other, {best}"


def rate(rows: list[dict[str, Any]], name: str, clients: int) -> float:
    """Requests a second, the median of the rounds."""
    return float(np.median([row["rate"] for row in rows if (row["name"], row["concurrency"]) == (name, clients)]))


def _bars(results: dict[str, Any], ax: Any) -> None:
    rows = results["inprocess"]
    names = [textwrap.fill(row["name"], NAME_LETTERS) for row in rows]
    rates = [float(np.median(row["rates"])) for row in rows]
    colors = [{"ours INT8": GREEN, "ours FP32": BLUE}.get(row["name"], LIGHT) for row in rows]
    limit = results["limits"]["FP32"] * 1e9 / results["facts"]["flop_per_sentence"]
    ax.barh(names, rates, color=colors, height=0.62)
    for y, value in enumerate(rates):
        ax.annotate(number(value), (value, y), (5, 0), textcoords="offset points", va="center")
    ax.axvline(limit, color=VERMILLION, linestyle="--", linewidth=1.3)
    side, shift = ("left", 6) if limit > rates[0] else ("right", -6)  # away from the first bar and its number
    words = f"FP32 matrix\nproducts end\nat {number(limit)}"
    ax.annotate(words, (limit, 0), (shift, 0), textcoords="offset points", ha=side, va="center", color=VERMILLION)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.12 * max(*rates, limit))
    ax.set_xlabel("texts per second in one process, each at its best batching")


def _lines(rows: list[dict[str, Any]], ax: Any) -> None:
    levels = sorted({row["concurrency"] for row in rows})
    names = [name for name in COLORS if any(row["name"] == name for row in rows)]
    lines = {name: [rate(rows, name, level) for level in levels] for name in names}
    top = 1.08 * max(map(max, lines.values()))
    heights = _apart(np.array([line[-1] for line in lines.values()]), gap=0.055 * top)
    for (name, line), height in zip(lines.items(), heights, strict=True):
        ours = "our" in name
        ax.plot(levels, line, color=COLORS[name], marker="o" if ours else "s", linewidth=2.4 if ours else 1.4)
        words = {"xy": (levels[-1], line[-1]), "xytext": (levels[-1] * 1.35, height)}
        thin = {"arrowstyle": "-", "color": COLORS[name], "linewidth": 0.7}
        ax.annotate(f"{name} {number(line[-1])}", **words, arrowprops=thin, color=COLORS[name], va="center")
    ax.set_xscale("log", base=2)
    ax.set_xticks(levels, map(str, levels))
    ax.minorticks_off()
    ax.set_xlim(0.85, levels[-1] * 60)
    ax.set_ylim(0, top)
    ax.set_xlabel("clients, each waiting for its answer, one text a request", loc="left")
    ax.set_ylabel("requests per second")


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Where names stand so that none covers another, from the lowest up."""
    placed = heights.copy()
    for below, above in itertools.pairwise(np.argsort(heights)):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed
