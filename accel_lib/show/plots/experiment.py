"""Figures of experiments: what a setting does to throughput, latency, goodput, rejections and priorities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from accel_lib.formatting import listed, number, percent
from accel_lib.load.experiment import Experiment
from accel_lib.show.plots.base import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    canvas,
    ends,
    finish,
    label,
    rows,
)
from accel_lib.triton.error_messages import request_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIMED_OUT = request_error("", "Request timeout expired").cause
_COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY)


def paths(experiment: Experiment) -> Axes:
    """The way of each setting through p95 and throughput as the load grows.

    Parameters
    ----------
    experiment
        What ``vary`` returns, at two loads or more.
    """
    frame = experiment.frame
    ax = canvas(experiment.headline, rows=7)
    for color, (name, part) in zip(_COLORS * len(frame), frame.groupby("setting", sort=False), strict=False):
        x, y = part["p95_ms"].to_numpy(), part["texts_per_s"].to_numpy()
        ax.errorbar(x, y, yerr=ends(part, "texts_per_s"), fmt="none", ecolor=color, alpha=0.35, elinewidth=1.4)
        ax.plot(x, y, color=color, marker="o", linewidth=1.8, label=str(name))
        for across, up, load in zip(x, y, part["load"], strict=True):
            ax.annotate(f"{load:.0f}", (across, up), (5, -11), textcoords="offset points", color=color, fontsize=9)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="x", which="minor", labelsize=8, colors=GREY)
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=10, loc="best")
    unit = "requests per second" if frame["open"].any() else "requests under way"
    ax.set_xlabel(f"p95 latency, ms (numbers at the points: {unit})")
    ax.set_ylabel("throughput, texts/s")
    return finish(ax, frame)


def bars(experiment: Experiment) -> Axes:
    """Throughput of each setting at one load, with its p95 and mean batch in words.

    Parameters
    ----------
    experiment
        What ``vary`` returns; of several loads the highest is drawn.
    """
    frame = experiment.frame[experiment.frame["load"] == experiment.frame["load"].max()].reset_index(drop=True)
    ax = canvas(experiment.headline, rows=len(frame))
    y = rows(ax, frame["setting"])
    ax.barh(y, frame["texts_per_s"], color=[GREY, *_COLORS * len(frame)][: len(frame)], height=0.62)
    ax.errorbar(
        frame["texts_per_s"],
        y,
        xerr=ends(frame, "texts_per_s"),
        fmt="none",
        ecolor="black",
        elinewidth=1.2,
        capsize=3,
    )
    reach = frame[["texts_per_s", "texts_per_s_high"]].max(axis=1)
    columns = (frame["p95_ms"], frame["mean_batch_size"], frame["refused"])
    for at, end, slow, size, refused in zip(y, reach, *columns, strict=True):
        lost = f", {percent(refused)} refused" if refused > 0 else ""
        label(ax, end, at, f"p95 {number(slow)} ms, {number(size)} rows a batch{lost}")
    ax.set_xlabel("throughput, texts/s (whiskers: interval of the median)")
    return finish(ax, experiment.frame, right=float(reach.max()) * 1.6)


def goodput(experiment: Experiment) -> Axes:
    """Answers within the target against the offered rate, by setting.

    Parameters
    ----------
    experiment
        What ``vary`` returns with ``rates`` and a ``target_ms``.
    """
    frame = experiment.frame
    ax = canvas(experiment.goodput, rows=6)
    most = float(frame["load"].max())
    ax.plot([0, most], [0, most], color=LIGHT, linewidth=1.4, zorder=0)
    ax.annotate("all in time ", (most, most), (0, -12), textcoords="offset points", ha="right", color=GREY, fontsize=9)
    for color, (name, part) in zip(_COLORS * len(frame), frame.groupby("setting", sort=False), strict=False):
        ax.plot(part["load"], part["goodput_per_s"], color=color, marker="o", linewidth=1.8, label=str(name))
    ax.set_xlim(left=0.9 * float(frame["load"].min()))
    ax.set_ylim(0, most * 1.06)
    ax.legend(frameon=False, fontsize=10, loc="best")
    ax.set_xlabel("offered, requests per second")
    ax.set_ylabel(f"answered within {experiment.target_ms:g} ms, per second")
    return finish(ax, frame)


def rejections(frame: pd.DataFrame, configured_ms: float) -> Axes:
    """When rejections reached the client, beside the timeout that was configured.

    Parameters
    ----------
    frame
        The ``rejections`` of an experiment: ``error``, ``ms``.
    configured_ms
        The configured timeout.
    """
    late = frame[frame["error"] == _TIMED_OUT]
    said = f"Nothing was rejected by a timeout of {configured_ms:g} ms"
    if len(late):
        half, most = number(float(late["ms"].median())), number(float(late["ms"].max()))
        said = f"A timeout of {configured_ms:g} ms rejects: p50 {half} ms, the last after {most} ms"
    ax = canvas(said, rows=5)
    if len(late):
        ax.hist(late["ms"], bins=40, color=SKY, edgecolor="white", linewidth=0.5)
    top = ax.get_ylim()[1] * 1.1
    ax.vlines(configured_ms, 0, top, color=VERMILLION, linestyle="--", linewidth=1.6)
    ax.annotate(
        f"configured: {configured_ms:g} ms",
        (configured_ms, top),
        (5, -10),
        textcoords="offset points",
        color=VERMILLION,
    )
    ax.set_xlim(left=0)
    ax.set_ylim(0, top)
    ax.set_xlabel("time from when a request was due until its rejection, ms")
    ax.set_ylabel("rejected requests")
    return finish(ax, frame)


def priorities(frame: pd.DataFrame) -> Axes:
    """p95 by setting and priority.

    Parameters
    ----------
    frame
        The ``by_priority`` of an experiment.
    """
    shown = frame.reset_index(drop=True)
    settings = shown[shown["priority"] == shown["priority"].min()][["setting", "p95_ms"]].to_numpy().tolist()
    said = listed([f"{number(p95)} ms ({setting})" for setting, p95 in settings])
    ax = canvas(f"p95 of the most urgent requests: {said}", rows=len(frame))
    columns = (shown["setting"], shown["priority"], shown["share"])
    names = [f"{name}: priority {level} ({percent(share)})" for name, level, share in zip(*columns, strict=True)]
    y = rows(ax, names)
    urgent = shown["priority"] == shown["priority"].min()
    ax.barh(y, shown["p95_ms"], color=[VERMILLION if one else BLUE for one in urgent], height=0.62)
    for at, value in zip(y, shown["p95_ms"], strict=True):
        label(ax, value, at, f"{number(value)} ms")
    ax.set_xlabel("p95 latency, ms (red: the urgent ones)")
    return finish(ax, frame, right=float(shown["p95_ms"].max()) * 1.15)
