"""Figures of the side paths: response cache, rate limiter, a model in halves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel_lib.formatting import number, percent, times
from accel_lib.load.rate_limiter import ALONE
from accel_lib.load.response_cache import CacheGain, Lookups
from accel_lib.load.rounds import Ways
from accel_lib.load.split_model import HALVES, INSTANCES
from accel_lib.show.plots.base import BLUE, GREEN, GREY, LIGHT, ORANGE, VERMILLION, canvas, ends, finish, label, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORKLOADS = (BLUE, ORANGE, GREEN)


def gain(result: CacheGain) -> Axes:
    """Throughput with the cache over that without, by the share of texts that repeat.

    Parameters
    ----------
    result
        What ``compare_response_cache`` returns.
    """
    ax = canvas(result.headline, rows=6)
    cached = result.frame[result.frame["setting"] == "cache"]
    share = np.linspace(0, min(0.995, float(cached["repeated"].max()) * 1.01), 200)
    ax.plot(100 * share, 1 / (1 - share), color=LIGHT, linewidth=1.6, zorder=0)
    ax.annotate(
        "if hits cost nothing",
        (100 * share[165], 1 / (1 - share[165])),
        (-6, 6),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=9,
    )
    for number_, (color, (workload, part)) in enumerate(
        zip(_WORKLOADS, cached.groupby("workload", sort=False), strict=False)
    ):
        part = part.sort_values("repeated")
        x = 100 * part["repeated"].to_numpy()
        ax.errorbar(x, part["speedup"], yerr=ends(part, "speedup"), color=color, fmt="o", markersize=7, capsize=3)
        for across, up, hits in zip(x, part["speedup"], part["hits"], strict=True):
            side, away = ("left", 8) if across < 50 else ("right", -8)
            below = -14 if number_ else 8
            ax.annotate(
                f"{percent(hits)} hits",
                (across, up),
                (away, below),
                textcoords="offset points",
                ha=side,
                color=color,
                fontsize=9,
            )
        ax.plot([], [], "o", color=color, label=str(workload))
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.yaxis.set_minor_formatter("")
    ax.legend(frameon=False, fontsize=10, loc="upper left")
    ax.set_xlim(-4, 104)
    ax.set_xlabel("requests whose text had come before, percent")
    ax.set_ylabel("throughput with the cache\nover that without")
    return finish(ax, result.frame)


def lookups(result: Lookups) -> Axes:
    """Time of a miss and of a hit, by workload.

    Parameters
    ----------
    result
        What ``time_lookups`` returns.
    """
    frame = result.frame
    ax = canvas(result.headline, rows=len(frame))
    y = rows(ax, [f"{workload}: {name}" for workload, name in zip(frame["workload"], frame["name"], strict=True)])
    ax.barh(y, frame["ms"], color=[GREEN if name == "hit" else BLUE for name in frame["name"]], height=0.62)
    ax.errorbar(frame["ms"], y, xerr=ends(frame, "ms"), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
    for at, end, ms, ratio, name in zip(
        y, frame["ms_high"].fillna(frame["ms"]), frame["ms"], frame["speedup"], frame["name"], strict=True
    ):
        label(ax, end, at, f"{number(ms)} ms" + (f", {times(ratio)} as fast" if name == "hit" else ""))
    ax.set_xlabel("time of one request on an idle server, ms (whiskers: interval of the median)")
    return finish(ax, frame, right=float(frame["ms_high"].fillna(frame["ms"]).max()) * 1.2)


def sharing(result: Ways) -> Axes:
    """The quick model's p95 beside a busy one, by setting of the rate limiter.

    Parameters
    ----------
    result
        What ``compare_rate_limits`` returns.
    """
    frame = result.frame
    ax = canvas(result.headline, rows=len(frame))
    y = rows(ax, frame["setting"])
    colors = [GREY if setting == ALONE else BLUE for setting in frame["setting"]]
    ax.barh(y, frame["p95_ms"], color=colors, height=0.62)
    ax.scatter(frame["p50_ms"], y, color="white", edgecolor="black", s=34, zorder=3)
    known = frame[["p95_ms_low", "p95_ms_high"]].notna().all(axis=1).to_numpy()
    whiskers = ends(frame, "p95_ms")[:, known]
    ax.errorbar(frame["p95_ms"][known], y[known], xerr=whiskers, fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
    reach = frame["p95_ms_high"].fillna(frame["p95_ms"])
    for at, end, p95, rate in zip(y, reach, frame["p95_ms"], frame["texts_per_s"], strict=True):
        beside = f", the busy one {number(rate)} documents/s" if rate == rate else ", alone"
        label(ax, end, at, f"{number(p95)} ms{beside}")
    ax.set_xlabel("p95 of the quick model, ms (dot: its median; whiskers: interval of the p95)")
    return finish(ax, frame, right=float(reach.max()) * 1.75)


def race(result: Ways) -> Axes:
    """Throughput of each layout over that of two instances, by workload.

    Parameters
    ----------
    result
        What ``compare_layouts`` returns.
    """
    frame = result.frame
    ax = canvas(result.headline, rows=len(frame))
    names = [f"{workload}: {setting}" for workload, setting in zip(frame["workload"], frame["setting"], strict=True)]
    y = rows(ax, names)
    colors = [{INSTANCES: BLUE, HALVES: VERMILLION}.get(setting, GREY) for setting in frame["setting"]]
    ax.barh(y, frame["speedup"], color=colors, height=0.62)
    others = (frame["setting"] != INSTANCES).to_numpy()
    whiskers = ends(frame, "speedup")[:, others]
    ax.errorbar(
        frame["speedup"][others], y[others], xerr=whiskers, fmt="none", ecolor="black", elinewidth=1.2, capsize=3
    )
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1)
    reach = frame[["speedup", "speedup_high"]].max(axis=1).where(others, 1.0)
    for at, end, rate, p95 in zip(y, reach, frame["texts_per_s"], frame["p95_ms"], strict=True):
        label(ax, end, at, f"{number(rate)} texts/s, p95 {number(p95)} ms")
    ax.set_xlabel("throughput over that of two instances (whiskers: interval of the ratio)")
    return finish(ax, frame, right=float(reach.max()) * 1.6)
