"""Figures of load: latency against the rate, where its time goes, what a batch gains, and a model watched over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from accel_lib.bench.roofline import Crossover
from accel_lib.formatting import number, percent
from accel_lib.load.curve import RateCurve
from accel_lib.load.monitor import Watched
from accel_lib.show.plots.base import BLUE, GREEN, GREY, LIGHT, ORANGE, SKY, VERMILLION, canvas, finish, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPAN_COLORS = (VERMILLION, SKY, ORANGE, GREEN)
_DECADES = 30  # range of a logarithmic axis up to which its minor ticks are named
_LENGTH_COLORS = (BLUE, SKY, ORANGE, VERMILLION, GREEN, GREY)


def latency(curve: RateCurve) -> Axes:
    """p95 against the offered rate: from when requests were due, on the client's clock, and the closed loop's.

    Parameters
    ----------
    curve
        What ``rate_curve`` returns.
    """
    frame = curve.frame
    ax = canvas(curve.headline, rows=6)
    x = frame["offered_per_s"].to_numpy()
    ax.axvline(curve.capacity, color=LIGHT, linewidth=1.4, zorder=0)
    lines = (("p95_ms", VERMILLION, "from when it was due", 9), ("naive_p95_ms", BLUE, "on the client's clock", -15))
    for column, color, words, up in lines:
        ax.plot(x, frame[column], color=color, marker="o", linewidth=1.8)
        ax.annotate(
            words, (x[-1], frame[column].iloc[-1]), (0, up), textcoords="offset points", ha="right", color=color
        )
    ax.scatter([curve.capacity], [curve.closed.p95_ms], color=GREEN, marker="D", s=70, zorder=3)
    ax.annotate(
        "closed loop ",
        (curve.capacity, curve.closed.p95_ms),
        (-8, -14),
        textcoords="offset points",
        ha="right",
        color=GREEN,
    )
    ax.annotate(
        "capacity ", (curve.capacity, 1), (-4, -10), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="right", color=GREY,
    )  # fmt: skip
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    _name_minor_ticks(ax)
    ax.margins(y=0.15)
    ax.set_xlabel("offered rate, requests per second")
    ax.set_ylabel("p95 latency, ms")
    return finish(ax, frame)


def _name_minor_ticks(ax: Axes) -> None:
    """Numbers between the powers of ten, where there are few powers and so room for them."""
    low, high = ax.get_ylim()
    if high < _DECADES * low:
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="y", which="minor", labelsize=8, colors=GREY)
    else:
        ax.yaxis.set_minor_formatter("")


def split(curve: RateCurve) -> Axes:
    """Where the time of a request goes, by the offered rate.

    Parameters
    ----------
    curve
        What ``rate_curve`` returns.
    """
    frame, parts = curve.frame, curve.spans
    ax = canvas(curve.explanation, rows=len(frame))
    y = np.arange(len(frame))
    left = np.zeros(len(frame))
    for (name, values), color in zip(parts.items(), _SPAN_COLORS, strict=True):
        ax.barh(y, values, left=left, color=color, height=0.62, label=str(name))
        left = left + values.to_numpy()
    for row, end in zip(y.tolist(), left.tolist(), strict=True):
        label(ax, end, row, f"{number(end)} ms")
    ax.set_yticks(y, [f"{percent(share)} of capacity" for share in frame["share"]])
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, loc="lower right", fontsize=10)
    ax.invert_yaxis()
    ax.set_xlabel("mean time of a request, ms")
    return finish(ax, frame, right=float(left.max()) * 1.7)


def crossover(frame: pd.DataFrame) -> Axes:
    """Time of one token against the tokens in its batch: falling while a batch costs the same, then flat.

    Parameters
    ----------
    frame
        The ``frame`` of a crossover.
    """
    ax = canvas(Crossover(frame=frame).headline, rows=7)
    for color, (length, part) in zip(_LENGTH_COLORS * len(frame), frame.groupby("tokens"), strict=False):
        part = part.sort_values("batch_tokens")
        ax.plot(
            part["batch_tokens"],
            part["token_ms"] * 1e3,
            color=color,
            marker="o",
            linewidth=1.6,
            label=f"texts of {length} tokens",
        )
    tokens = np.geomspace(frame["batch_tokens"].min(), frame["batch_tokens"].max(), 100)
    fixed, each = 1e3 * frame["batch_ms"].iloc[0], frame["token_us"].iloc[0]
    ax.plot(tokens, fixed / tokens + each, color=GREY, linestyle="--", linewidth=1.2, label="fixed part + tokens")
    if tokens[0] * each < fixed < tokens[-1] * each:
        ax.axvline(fixed / each, color=LIGHT, linewidth=1.4, zorder=0)
        words, where = f"{number(fixed / each)} tokens: half is for tokens", ("data", "axes fraction")
        side, shift = ("left", 5) if fixed / each < float(np.sqrt(tokens[0] * tokens[-1])) else ("right", -5)
        ax.annotate(
            words, (fixed / each, 1), (shift, -10), xycoords=where, textcoords="offset points", color=GREY, ha=side
        )
    ax.legend(edgecolor="none", framealpha=1, fontsize=10, loc="upper right", bbox_to_anchor=(1, 0.93))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.yaxis.set_major_formatter("{x:g}")
    _name_minor_ticks(ax)
    ax.set_xlabel("tokens in the batch (texts × tokens of each)")
    ax.set_ylabel("time of one token, µs")
    return finish(ax, frame)


def watching(seen: Watched) -> Axes:
    """Throughput, and the time that requests waited, second by second.

    Parameters
    ----------
    seen
        The ``result`` of a `watch`.
    """
    frame = seen.frame
    ax = canvas(seen.headline, rows=6)
    ax.plot(frame["time_s"], frame["texts_per_s"], color=BLUE, linewidth=1.6)
    ax.set_xlabel("seconds")
    ax.set_ylabel("throughput, texts/s", color=BLUE)
    ax.set_ylim(0, float(frame["texts_per_s"].max()) * 1.15)
    waited = ax.twinx()
    waited.spines[["top"]].set_visible(False)
    told = frame[frame["requests_per_s"] > 0]  # without an answer there is no waiting time to show
    waited.fill_between(told["time_s"], told["queue_ms"], color=VERMILLION, alpha=0.25, linewidth=0)
    waited.plot(told["time_s"], told["queue_ms"], color=VERMILLION, linewidth=1.4)
    waited.set_ylabel("waiting in the queue, ms a request", color=VERMILLION)
    waited.set_ylim(0, max(float(frame["queue_ms"].max()) * 1.4, 1.0))
    for when in frame.loc[frame["reset"], "time_s"]:
        ax.axvline(when, color=GREY, linestyle=":", linewidth=1.2)
    return finish(ax, frame)
