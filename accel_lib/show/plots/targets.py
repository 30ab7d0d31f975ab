"""Figures of tuning: a sweep, a prediction, a controller's step test, and an autoscaler's day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent
from accel_lib.show.plots.style import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    SKY,
    VERMILLION,
    canvas,
    ends,
    finish,
    key_below,
    log_axis,
    note,
    target,
)
from accel_lib.tuning.autoscale import MOST_LATE
from accel_lib.tuning.replica import SIGNALS
from accel_lib.tuning.results import SETTINGS, described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.simulation.curve import Curve
    from accel_lib.tuning.autoscale import Policies
    from accel_lib.tuning.replica import Replica
    from accel_lib.tuning.results import Sweep
    from accel_lib.tuning.step_response import StepTest

_RUNS = {"worst static": GREY, "best static": GREEN, "controller": BLUE}
_LINES = ((BLUE, 1.8), (ORANGE, 3.6), (VERMILLION, 1.4))  # colour and width: the last is seen upon the one before
_MARKERS = "osD^vPX"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FAR = 6  # times the least p95, from which on the axis is logarithmic


def tuning(found: Sweep) -> Axes:
    """Every measured setting of a sweep by its p95 and throughput, with the target and the Pareto front."""
    frame, p95_ms, best = found.frame, found.p95_ms, found.best
    ax = canvas(found.headline, rows=6 + len(frame) // 5)
    x, y = frame["p95_ms"], frame["texts_per_s"]
    front = found.front
    corners = [*front["p95_ms"], x.max()], [*front["texts_per_s"], front["texts_per_s"].max()]
    at = [front["p95_ms"].min(), *corners[0]], [0, *corners[1]]
    ax.step(*at, where="post", color=SKY, linewidth=4, zorder=0, label="Pareto front")
    ax.legend(frameon=False, fontsize=10, loc="best")
    across, up = ends(frame, "p95_ms"), ends(frame, "texts_per_s")
    up = np.minimum(up, [y, np.fmax(found.rate - y, 0) if found.rate else np.full(len(y), np.inf)])
    ax.errorbar(x, y, xerr=across, yerr=up, fmt="none", ecolor=LIGHT, elinewidth=1.5, zorder=1)
    ax.scatter(x, y, s=55, color=[BLUE if value <= p95_ms else GREY for value in x], zorder=2)
    (chosen,) = frame[(frame[list(best)] == pd.Series(best)).all(axis=1)].to_dict("records")
    at, met = (chosen["p95_ms"], chosen["texts_per_s"]), chosen["p95_ms"] <= p95_ms
    ring = GREEN if met else ORANGE
    ax.scatter(*at, s=190, facecolor="none", edgecolor=ring, linewidth=2.2, zorder=3)
    side, shift = ("right", (-12, -14)) if met else ("left", (12, -14))  # one that misses it lies right of the target
    note(ax, "chosen" if met else "closest", at, shift, ha=side, color=ring)
    for name, across, up in zip(_named(ax, frame), x, y, strict=True):
        note(ax, name, (across, up), (6, 5), fontsize=9)
    ax.margins(x=0.14, y=0.12)
    ax.set_ylim(bottom=0)
    if x.max() > _FAR * x.min():
        log_axis(ax, "x", "{x:,.0f}")
    target(ax, f"target {p95_ms:g} ms", x=p95_ms, at=0.05)
    ax.set_xlabel("p95 latency, ms")
    ax.set_ylabel("answered within the target, texts/s" if found.rate else "throughput, texts/s")
    return finish(ax, frame)


def _named(ax: Axes, frame: pd.DataFrame) -> list[str]:
    """A letter for each setting; below the axes is what each stands for: the values in which the settings differ."""
    names = [name for name in SETTINGS if name in frame and (frame[name].nunique() > 1 or len(frame) == 1)]
    letters = [_LETTERS[n % len(_LETTERS)] * (1 + n // len(_LETTERS)) for n in range(len(frame))]
    rows = frame[names].to_dict("records")
    said = [f"{letter}  {described(row)}" for letter, row in zip(letters, rows, strict=True)]
    half = -(-len(said) // 2)
    for column, part in enumerate((said[:half], said[half:])):
        words = "\n".join(part)
        ax.annotate(words, (0.5 * column, 0), (0, -38), "axes fraction", "offset points", va="top", fontsize=9)
    return letters


def curve(result: Curve, p95_ms: float | None = None, *, factor: float = 1.0) -> Axes:
    """Latency over load: simulated lines, measured dots with their intervals, and the latency target.

    `factor` is by how many times the simulated p95 may be off, as `check_simulator` found: a band around it.
    """
    frame = result.frame.assign(load=100 * result.frame["share"])
    ax = canvas(result.headline, rows=6)
    simulated, measured = (frame[frame["kind"] == kind] for kind in ("simulated", "measured"))
    for column, color in (("p95_ms", BLUE), ("p50_ms", GREY)):
        ax.plot(simulated["load"], simulated[column], color=color, linewidth=2)
        words = column.removesuffix("_ms") + ", simulated"
        note(ax, words, (simulated["load"].iloc[-1], simulated[column].iloc[-1]), (6, 1), color=color)
    if factor > 1:
        p95 = simulated["p95_ms"]
        ax.fill_between(simulated["load"], p95 / factor, p95 * factor, color=SKY, alpha=0.25, linewidth=0, zorder=0)
    if len(measured):
        yerr = ends(measured, "p95_ms")
        ax.errorbar(measured["load"], measured["p95_ms"], yerr=yerr, fmt="none", ecolor=VERMILLION, capsize=3)
        ax.scatter(measured["load"], measured["p95_ms"], color=VERMILLION, s=60, zorder=3)
        last = measured.iloc[-1]
        note(ax, "p95, measured", (last["load"], last["p95_ms"]), (0, 12), color=VERMILLION, ha="center")
    if p95_ms:
        target(ax, f"target {p95_ms:g} ms", y=p95_ms, at=0.01, color=GREEN)
    log_axis(ax, "y")
    most = simulated["load"].max()
    ax.set_xlim(0, most * 1.22)
    ax.set_xticks(np.arange(0, most + 1, 20))
    ax.set_xlabel("load, % of capacity")
    ax.set_ylabel("latency, ms")
    return finish(ax, frame)


def control(test: StepTest) -> Axes:
    """P95 of each window with the controller (of its first seed) and with the best and worst static setting."""
    ax = canvas(test.headline, rows=8)
    p95_ms = test.runs["controller"].p95_ms
    first = test.runs["controller"].frame
    window_s = float(first["start_s"].iloc[1] - first["start_s"].iloc[0]) if len(first) > 1 else 1.0
    end = float(first["start_s"].iloc[-1]) + window_s
    seen = [p95_ms]
    for name, color in _RUNS.items():
        run = test.runs[name]
        x, y = run.frame["start_s"] + window_s / 2, run.frame["p95_ms"].to_numpy(dtype=float)
        width = 2.4 if name == "controller" else 1.6
        label = f"{name}: {test.settings.get(name, 'adapts')}, {number(run.goodput_per_s)}/s in time"
        ax.plot(x, y, color=color, linewidth=width, marker="o", markersize=4.5, zorder=3, label=label)
        seen += y[np.isfinite(y)].tolist()
    busy = first[first["offered_per_s"] > first["offered_per_s"].mean()]
    begin, over = float(busy["start_s"].iloc[0]), float(busy["start_s"].iloc[-1]) + window_s
    ax.axvspan(begin, over, color=LIGHT, alpha=0.45, zorder=0)
    load = f"{number(busy['offered_per_s'].mean())} requests/s"
    where = ("data", "axes fraction")
    note(ax, load, ((begin + over) / 2, 0.97), (0, 0), xycoords=where, ha="center", va="top", color=GREY)
    target(ax, f"target {p95_ms:g} ms", y=p95_ms, at=1)
    _decisions(ax, test, window_s)
    ax.set_ylim(min(seen) * 0.35, max(seen) * 2.2)
    ax.set_xlim(0, end)
    log_axis(ax, "y", "{x:,.0f}")
    ax.set_xlabel("seconds (blue triangles: the controller sets another admission limit)")
    ax.set_ylabel("p95 of each window, ms")
    key_below(ax, columns=1, fontsize=9)
    return finish(ax, test.frame)


def _decisions(ax: Axes, test: StepTest, window_s: float) -> None:
    """The controller's slow decisions, at the end of the window that made it decide; admission as small ticks."""
    height = 0
    for window, decision in test.runs["controller"].log:
        at = (window + 1) * window_s
        if decision.action == "admission":
            ax.plot([at], [0.03], marker="v", markersize=5, color=BLUE, transform=ax.get_xaxis_transform(), zorder=4)
        elif decision.actuator:
            ax.axvline(at, color=BLUE, linewidth=1.0, linestyle=":")
            set_to = [SETTINGS[n](v) for n, v in decision.settings.items() if n != "max_queue_delay_us" or not v]
            words = ("back to " if decision.action == "roll back" else "") + listed(set_to)
            note(ax, words, (at, 0.08 + 0.05 * height), (4, 0), xycoords=("data", "axes fraction"), color=BLUE)
            height = (height + 1) % 3


def signals(replica: Replica) -> Axes:
    """Queue time and both utilisations of one replica, each relative to its value at half load, by load."""
    frame, growths = replica.frame, replica.growths
    ax = canvas(replica.headline, rows=6)
    load = 100 * frame["share"]
    for signal, (color, width) in zip(growths, _LINES, strict=False):
        values = replica.relative(signal)
        ax.plot(load, values, color=color, linewidth=width, marker="o", markersize=2 + width)
    ax.axhline(1, color=LIGHT, linewidth=1, zorder=0)
    log_axis(ax, "y", "{x:g}×")
    ax.yaxis.set_minor_formatter("")
    for signal, (color, _) in zip(growths, _LINES, strict=False):
        note(ax, SIGNALS[signal], (load.iloc[-1], growths[signal]), color=color)
    ax.set_xlim(0, 130)
    ax.set_xticks(np.arange(0, 101, 20))
    ax.set_xlabel("load, % of what one replica can serve")
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
    for name, (color, width) in zip(names, _LINES, strict=False):
        frame = chosen[name].frame
        ax.step(frame["hour"], frame["replicas"], where="post", color=color, linewidth=width, label=name)
    ax.legend(frameon=False, loc="upper left", fontsize=10)
    ax.set_xlim(0, 24)
    ax.set_ylim(0, None)
    ax.set_xticks(np.arange(0, 25, 3))
    ax.set_xlabel("hour of the day")
    ax.set_ylabel("replicas that answer")
    return finish(ax, first)


def recovery(chosen: Policies, *names: str, hour: float) -> Axes:
    """The p95 under some policies from shortly before a burst until they are back within the target."""
    ax = canvas(chosen.recovery(*names, hour=hour), rows=6)
    for name, (color, width) in zip(names, _LINES, strict=False):
        frame = chosen[name].frame
        minutes = 60 * (frame["hour"] - hour)
        seen = (minutes >= -2) & (minutes <= 12)
        ax.step(minutes[seen], frame["p95_ms"][seen], where="post", color=color, linewidth=width, label=name)
    target(ax, f"target {number(chosen.replays[0].p95_ms)} ms", y=chosen.replays[0].p95_ms, at=1, color=GREEN)
    log_axis(ax, "y", "{x:,.0f}")
    key_below(ax, columns=len(names))
    ax.set_xlabel("minutes since the burst began")
    ax.set_ylabel("p95 latency, ms")
    return finish(ax, chosen.frame)


def costs(chosen: Policies) -> Axes:
    """Cost per million answered requests, USD, against the share that came late, one point a policy."""
    frame = chosen.frame
    ax = canvas(chosen.headline, rows=6)
    late, cost = 100 * frame["late"].to_numpy(), frame["cost_per_million"].to_numpy()
    ax.axvspan(-100, 100 * MOST_LATE, color="#EAF5F0", zorder=0)
    sizes = range(190, 15, -25)  # markers at one place are seen in each other
    parts = zip(frame.to_dict("records"), late, cost, COLORS, _MARKERS, sizes, strict=False)
    for row, x, y, color, marker, size in parts:
        words = f"{row['name']}: {number(row['cost_per_million'])} USD, {percent(row['late'], 1)} late"
        look = {"facecolor": "none", "edgecolor": color, "linewidth": 1.8}
        ax.scatter(x, y, s=size, marker=marker, label=words, zorder=2, **look)
    key_below(ax, columns=2)
    ax.set_xlim(-0.04 * max(late.max(), 1), 1.08 * max(late.max(), 1))
    ax.set_ylim(0, 1.1 * cost.max())
    ax.set_xlabel("requests while the p95 was over the target, % (green: at most 1%)")
    ax.set_ylabel("USD per million answered requests")
    return finish(ax, frame)
