"""Figures of settings compared under the same load: batching, queue limits, priorities, cache, rate limiter, halves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent, times
from accel_lib.load.experiment import Experiment
from accel_lib.load.rate_limiter import ALONE
from accel_lib.load.response_cache import CacheGain, Lookups
from accel_lib.load.rounds import Ways
from accel_lib.load.split_model import HALVES, INSTANCES
from accel_lib.show.plots.style import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    SKY,
    VERMILLION,
    canvas,
    draw_bars,
    ends,
    finish,
    key_below,
    log_axis,
    note,
    target,
)
from accel_lib.triton.error_messages import request_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOST = {"refused": "rejected", "gave_up": "given up"}
_TIMED_OUT = request_error("", "Request timeout expired").cause


def paths(experiment: Experiment) -> Axes:
    """The way of each setting through p95 and throughput as the load grows: what `vary` returns at several loads."""
    frame = experiment.frame
    ax = canvas(experiment.headline, rows=7)
    for color, (name, part) in zip(COLORS * len(frame), frame.groupby("setting", sort=False), strict=False):
        x, y = part["p95_ms"].to_numpy(), part["texts_per_s"].to_numpy()
        ax.errorbar(x, y, yerr=ends(part, "texts_per_s"), fmt="none", ecolor=color, alpha=0.35, elinewidth=1.4)
        ax.plot(x, y, color=color, label=str(name), **LINE)
        for across, up, load in zip(x, y, part["load"], strict=True):
            note(ax, f"{load:.0f}", (across, up), (6, -12), color=color, fontsize=9)
    log_axis(ax, "x")
    ax.set_ylim(0)
    key_below(ax, columns=2)
    unit = "requests per second" if frame["open"].any() else "requests in flight"
    ax.set_xlabel(f"p95 latency, ms (numbers at the points: {unit})")
    ax.set_ylabel("throughput, texts/s")
    return finish(ax, frame)


def bars(experiment: Experiment) -> Axes:
    """Throughput of each setting at the highest load of what `vary` returns, with p95 and mean batch in words."""
    everything = experiment.frame
    frame = everything[everything["load"] == everything["load"].max()]
    said = [
        f"p95 {number(row['p95_ms'])} ms, {number(row['mean_batch_size'])} rows a batch"
        + "".join(f", {percent(row[name])} {words}" for name, words in _LOST.items() if row[name] > 0)
        for row in frame.to_dict("records")
    ]
    colors = [GREY, *COLORS * len(frame)][: len(frame)]
    names = frame["setting"]
    ax = draw_bars(frame, "texts_per_s", title=experiment.headline, names=names, labels=said, colors=colors)
    ax.set_xlabel("throughput, texts/s (whiskers: interval of the median, where there are enough answers)")
    return ax


def goodput(experiment: Experiment) -> Axes:
    """Responses within the target against the offered rate: what `vary` returns with ``rates`` and ``target_ms``."""
    frame = experiment.frame
    ax = canvas(experiment.goodput, rows=6)
    most = float(frame["load"].max())
    ax.plot([0, most], [0, most], color=LIGHT, linewidth=1.4, zorder=0)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    note(ax, "all in time", (0.75 * most, 0.75 * most), (0, 0), ha="center", color=GREY, bbox=box)
    for color, (name, part) in zip(COLORS * len(frame), frame.groupby("setting", sort=False), strict=False):
        yerr = ends(part, "goodput_per_s")
        ax.errorbar(part["load"], part["goodput_per_s"], yerr=yerr, fmt="none", ecolor=color, alpha=0.35)
        ax.plot(part["load"], part["goodput_per_s"], color=color, label=str(name), **LINE)
    ax.set_xlim(left=0.9 * float(frame["load"].min()))
    ax.set_ylim(0, max(most, float(frame["goodput_per_s_high"].max())) * 1.06)
    ax.legend(frameon=False, fontsize=10, loc="best")
    ax.set_xlabel("offered, requests per second")
    ax.set_ylabel(f"answered within {experiment.target_ms:g} ms, per second")
    return finish(ax, frame)


def rejections(frame: pd.DataFrame, configured_ms: float) -> Axes:
    """When rejections reached the client (the ``rejections`` of an `Experiment`) beside the configured timeout."""
    late = frame.loc[frame["error"] == _TIMED_OUT, "ms"]
    said = f"Nothing was rejected by a timeout of {configured_ms:g} ms"
    if len(late):
        half, most = number(float(late.median())), number(float(late.max()))
        said = f"A timeout of {configured_ms:g} ms rejects half of the late requests within {half} ms"
        said += f", the last after {most} ms"
    ax = canvas(said, rows=5)
    if len(late):
        ax.hist(late, bins=40, color=SKY, edgecolor="white", linewidth=0.5)
    target(ax, f"configured: {configured_ms:g} ms", x=configured_ms, at=0.96)
    ax.set_xlim(left=0)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.1)
    ax.set_xlabel("time from when a request was due until its rejection, ms")
    ax.set_ylabel("rejected requests")
    return finish(ax, frame)


def priorities(frame: pd.DataFrame) -> Axes:
    """p95 by setting and priority: the ``by_priority`` of an `Experiment`."""
    urgent = frame["priority"] == frame["priority"].min()
    said = [f"{number(p95)} ms ({name})" for p95, name in zip(frame["p95_ms"], frame["setting"], strict=True)]
    first = [words for words, one in zip(said, urgent, strict=True) if one]
    rows = frame.to_dict("records")
    ax = draw_bars(
        frame,
        "p95_ms",
        title=f"p95 of the most urgent requests: {listed(first)}",
        names=[f"{row['setting']}: priority {row['priority']} ({percent(row['share'])})" for row in rows],
        labels=[f"{number(p95)} ms" for p95 in frame["p95_ms"]],
        colors=[VERMILLION if one else BLUE for one in urgent],
        room=1.15,
    )
    ax.set_xlabel("p95 latency, ms (red: the urgent ones)")
    return ax


def gain(result: CacheGain) -> Axes:
    """Throughput with the response cache over that without, by the share of texts that repeat."""
    ax = canvas(result.headline, rows=6)
    cached = result.frame[result.frame["setting"] == "cache"]
    share = np.linspace(0, min(0.995, float(cached["repeated"].max()) * 1.01), 200)
    free = 1 / (1 - share)
    ax.plot(100 * share, free, color=LIGHT, linewidth=1.6, zorder=0)
    note(ax, "if hits cost nothing", (100 * share[165], free[165]), (-6, 6), ha="right", color=GREY)
    for place, (color, (workload, part)) in enumerate(
        zip(COLORS, cached.groupby("workload", sort=False), strict=False)
    ):
        x = 100 * part["repeated"].to_numpy()
        whiskers = ends(part, "speedup")
        ax.errorbar(x, part["speedup"], yerr=whiskers, color=color, fmt="o", capsize=3, label=str(workload))
        for across, up, hits in zip(x, part["speedup"], part["hits"], strict=True):
            side, away = ("left", 8) if across < 50 else ("right", -8)
            note(ax, f"{percent(hits)} hits", (across, up), (away, -14 if place else 8), ha=side, color=color)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    log_axis(ax, "y", "{x:g}×")
    ax.legend(frameon=False, fontsize=10, loc="upper left")
    ax.set_xlim(-4, 104)
    ax.set_xlabel("requests whose text had come before, percent")
    ax.set_ylabel("throughput with the cache\nover that without")
    return finish(ax, result.frame)


def lookups(result: Lookups) -> Axes:
    """Time of a cache miss and of a hit, by workload."""
    rows = result.frame.to_dict("records")
    faster = [f", {times(row['speedup'])} as fast" if row["name"] == "hit" else "" for row in rows]
    ax = draw_bars(
        result.frame,
        "ms",
        title=result.headline,
        names=[f"{row['workload']}: {row['name']}" for row in rows],
        labels=[f"{number(row['ms'])} ms{more}" for row, more in zip(rows, faster, strict=True)],
        colors=[GREEN if row["name"] == "hit" else BLUE for row in rows],
        room=1.2,
    )
    ax.set_xlabel("time of one request on an idle server, ms (whiskers: interval of the median)")
    return ax


def sharing(result: Ways) -> Axes:
    """The quick model's p95 beside a busy one, by setting of the rate limiter."""
    rows = result.frame.to_dict("records")
    rates = [row["texts_per_s"] for row in rows]
    beside = [f", the busy one {number(rate)} documents/s" if rate == rate else ", alone" for rate in rates]
    ax = draw_bars(
        result.frame,
        "p95_ms",
        title=result.headline,
        names=[row["setting"] for row in rows],
        labels=[f"{number(row['p95_ms'])} ms{more}" for row, more in zip(rows, beside, strict=True)],
        colors=[GREY if row["setting"] == ALONE else BLUE for row in rows],
        room=1.75,
    )
    ax.scatter(result.frame["p50_ms"], range(len(rows)), color="white", edgecolor="black", s=34, zorder=3)
    ax.set_xlabel("p95 of the quick model, ms (dot: its p50; whiskers: interval of the p95)")
    return ax


def race(result: Ways) -> Axes:
    """Throughput of each layout over that of two instances, by workload."""
    rows = result.frame.to_dict("records")
    ax = draw_bars(
        result.frame,
        "speedup",
        title=result.headline,
        names=[f"{row['workload']}: {row['setting']}" for row in rows],
        labels=[f"{number(row['texts_per_s'])} texts/s, p95 {number(row['p95_ms'])} ms" for row in rows],
        colors=[{INSTANCES: BLUE, HALVES: VERMILLION}.get(row["setting"], GREY) for row in rows],
    )
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlabel("throughput over that of two instances (whiskers: interval of the ratio)")
    return ax
