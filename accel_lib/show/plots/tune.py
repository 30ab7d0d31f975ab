"""Figures of settings: a sweep with its Pareto front, and what memory a batch needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from accel_lib.formatting import number
from accel_lib.show.plots.base import BLUE, GREEN, GREY, LIGHT, ORANGE, SKY, VERMILLION, canvas, ends, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.bench.memory import MemoryFit
    from accel_lib.tuning.results import Sweep


def tuning(found: Sweep) -> Axes:
    """Every measured setting of a sweep by its p95 and throughput, with the target and the Pareto front."""
    frame, p95_ms, best = found.frame, found.p95_ms, found.best
    ax = canvas(found.headline, rows=6)
    x, y = frame["p95_ms"], frame["texts_per_s"]
    front = found.front
    ax.step(front["p95_ms"], front["texts_per_s"], where="post", color=SKY, linewidth=2, zorder=0)
    if len(front) > 1:
        last = front.iloc[-1]
        ax.annotate(
            "no setting beats these in both", (last["p95_ms"], last["texts_per_s"]), (0, 9),
            textcoords="offset points", ha="right", color=BLUE, fontsize=9,
        )  # fmt: skip
    across, up = ends(frame, "p95_ms"), ends(frame, "texts_per_s")
    ax.errorbar(x, y, xerr=across, yerr=up, fmt="none", ecolor=LIGHT, elinewidth=1.5, zorder=1)
    ax.scatter(x, y, s=55, color=[BLUE if value <= p95_ms else GREY for value in x], zorder=2)
    (chosen,) = frame[(frame[list(best)] == pd.Series(best)).all(axis=1)].to_dict("records")
    at, met = (chosen["p95_ms"], chosen["texts_per_s"]), chosen["p95_ms"] <= p95_ms
    ring = GREEN if met else ORANGE
    ax.scatter(*at, s=190, facecolor="none", edgecolor=ring, linewidth=2.2, zorder=3)
    ax.annotate("chosen" if met else "closest", at, (-12, 8), textcoords="offset points", ha="right", color=ring)
    ax.margins(x=0.14, y=0.12)
    ax.axvline(p95_ms, color=VERMILLION, linestyle="--", linewidth=1.4)
    ax.annotate(
        f"target {p95_ms:g} ms", (p95_ms, 0.02), (5, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", color=VERMILLION,
    )  # fmt: skip
    ax.set_xlabel("p95 latency, ms")
    ax.set_ylabel("throughput, texts/s")
    return finish(ax, frame)


def memory(fit: MemoryFit) -> Axes:
    """What a batch was predicted to need, what it needed, and where the memory ends.

    Parameters
    ----------
    fit
        What `accel_lib.bench.memory.fit_memory` returned.
    """
    ax = canvas(fit.headline, rows=6)
    frame, model = fit.frame, fit.model
    top = float(frame["tokens"].max()) * 1.15
    tokens = np.array([0.0, top])
    ax.plot(tokens, [model.bytes(int(value)) / 1e6 for value in tokens], color=SKY, linewidth=2, zorder=1)
    ax.annotate("fit", (top, model.bytes(int(top)) / 1e6), (4, 0), textcoords="offset points", color=BLUE, va="center")
    for role, color, marker, shift, side in (
        ("fitted", BLUE, "o", (9, -10), "left"),
        ("checked", VERMILLION, "D", (-9, 8), "right"),
    ):
        part = frame[frame["role"] == role]
        ax.scatter(part["tokens"], part["measured_mb"], color=color, marker=marker, s=60, zorder=2)
        for _, row in part.iterrows():
            words = f"{role}: {row['batch_size']:.0f} texts, {number(row['measured_mb'])} MB"
            ax.annotate(words, (row["tokens"], row["measured_mb"]), shift, textcoords="offset points", ha=side,
                        fontsize=9, color=color)  # fmt: skip
    ax.axhline(model.fixed_bytes / 1e6, color=GREY, linestyle=":", linewidth=1.2)
    words = (
        f"before the first batch: {number(model.fixed_bytes / 1e6)} MB ({number(model.weights_bytes / 1e6)} MB file)"
    )
    ax.annotate(
        words, (top, model.fixed_bytes / 1e6), (0, -14), textcoords="offset points", fontsize=9, color=GREY, ha="right",
    )  # fmt: skip
    ax.set_xlim(0, top * 1.06)
    ax.set_ylim(0, max(float(frame["measured_mb"].max()), model.bytes(int(top)) / 1e6) * 1.15)
    ax.set_xlabel("tokens in a batch, padding counted")
    ax.set_ylabel("memory of one instance, MB")
    return finish(ax, frame)
