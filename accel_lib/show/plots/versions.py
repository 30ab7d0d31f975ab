"""Figures of A/B tests: a difference that narrows, and how many requests a gain takes to be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from accel_lib.formatting import number
from accel_lib.show.plots.style import BLUE, LINE, SKY, VERMILLION, canvas, finish, log_axis, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = 5
_TICKS = (20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def narrowing(course: pd.DataFrame) -> Axes:
    """The difference of two versions as requests come in, with the interval for one look and the one for all.

    `course` is what `accel_lib.load.version_trial.narrowing` makes: ``requests``, ``difference``, ``low``, ``high``,
    ``anytime_low``, ``anytime_high``; shares from 0 to 1.
    """
    ax = canvas(_when_sure(course), rows=_ROWS)
    x, points = course["requests"], 100 * course.drop(columns="requests")
    late = points.iloc[len(points) // 2 :]
    reach = min(100.0, 1.6 * float(late[["anytime_low", "anytime_high"]].abs().max().max()))
    for low, high, words, strength in (
        ("anytime_low", "anytime_high", "sequential: 95% over all looks", 0.3),
        ("low", "high", "fixed horizon: 95% for one look", 0.6),
    ):
        ax.fill_between(x, points[low], points[high], color=SKY, alpha=strength, linewidth=0, label=words)
    ax.plot(x, points["difference"], color=BLUE, linewidth=2)
    ax.axhline(0, color=VERMILLION, linewidth=1.2)
    end, last = float(x.iloc[-1]), float(points["difference"].iloc[-1])
    note(ax, "measured", (end, last), (6, 8 if last >= 0 else -8), va="center", color=BLUE)
    log_axis(ax, "x")
    ax.set_xlim(float(x.iloc[0]), end)
    ax.set_ylim(-reach, reach)
    ticks = [tick for tick in _TICKS if x.iloc[0] <= tick <= end]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=10, loc="upper right")
    ax.set_xlabel("requests answered, both versions together")
    ax.set_ylabel("difference in right answers, points")
    return finish(ax, course)


def needed(frame: pd.DataFrame) -> Axes:
    """``requests`` that a ``gain`` (0 to 1, ascending) takes to be seen, on logarithmic axes."""
    ax = canvas(_price_of_small_gains(frame), rows=_ROWS)
    gains, requests = 100 * frame["gain"], frame["requests"]
    ax.plot(gains, requests, color=BLUE, **LINE)
    for gain, count in zip(gains, requests, strict=True):
        note(ax, f"{count:,}", (gain, count), (8, 6), color=BLUE)
    log_axis(ax, "x")
    log_axis(ax, "y", "{x:,.0f}")
    ax.set_xticks(gains.tolist(), [f"{gain:g}" for gain in gains])
    ax.minorticks_off()
    ax.set_xlim(gains.iloc[0] * 0.85, gains.iloc[-1] * 1.5)
    ax.set_xlabel("gain in right answers, points")
    ax.set_ylabel("requests, both versions together")
    return finish(ax, frame)


def _when_sure(course: pd.DataFrame) -> str:
    """When a difference was sure for good, or how small one would have had to be to stay hidden."""
    last = course.iloc[-1]
    outside = ((course["anytime_low"] > 0) | (course["anytime_high"] < 0)).to_numpy()
    ends = f"{100 * last['anytime_low']:+.1f} to {100 * last['anytime_high']:+.1f} points"
    if not outside[-1]:
        return f"After {int(last['requests']):,} requests the difference may still be anything from {ends}"
    hidden = (~outside).nonzero()[0]
    first = course["requests"].iloc[hidden[-1] + 1 if len(hidden) else 0]
    better = "more" if last["difference"] > 0 else "fewer"
    small, large = sorted(abs(100 * last[end]) for end in ("anytime_low", "anytime_high"))
    base, other = course.attrs["versions"]
    said = f"version {other} has {small:.1f} to {large:.1f} points {better} right answers than version {base}"
    return f"Sure after {int(first):,} requests: {said}"


def _price_of_small_gains(frame: pd.DataFrame) -> str:
    """How the requests grow as the gain shrinks."""
    small, large = frame.iloc[0], frame.iloc[-1]
    return (
        f"A gain of {100 * large['gain']:g} points shows after {int(large['requests']):,} requests, one of "
        f"{100 * small['gain']:g} after {int(small['requests']):,}: {large['gain'] / small['gain']:.3g} times smaller, "
        f"{number(small['requests'] / large['requests'])} times as many"
    )
