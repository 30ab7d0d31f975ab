"""Figures of token streams over time, of goodput and latency by rate, and of retrieval and the answers from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from accel_lib.formatting import listed, number, percent, times
from accel_lib.load.generation_curve import GenerationCurve
from accel_lib.load.generation_results import GenerationLoadRun
from accel_lib.show.plots.style import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    VERMILLION,
    canvas,
    draw_bars,
    finish,
    log_axis,
    note,
    rows,
    target,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.bench.answers import AnswerComparison
    from accel_lib.bench.ranking import RankingComparison

_HIGHEST = 14  # rows of a canvas for a timeline at most
_GAP = 1.5  # requests of room between two runs
_DEEPEST = 10  # passages
_COLUMNS = {"time to first token": "ttft_p95_ms", "between tokens": "itl_p95_ms"}


def streams(runs: GenerationLoadRun | Mapping[str, GenerationLoadRun], *, title: str = "") -> Axes:
    """Draw each request as a bar over time: pale while it waits for its first token, full while it gets tokens.

    With several runs, by name, they stand one below the other, on one time axis.
    """
    named = {"": runs} if isinstance(runs, GenerationLoadRun) else dict(runs)
    count = sum(len(run.frame) for run in named.values())
    ax = canvas(title or _said(named), rows=int(np.clip(count / 6, 5, _HIGHEST)))
    top = 0.0
    middles = []
    for (_, run), color in zip(named.items(), COLORS, strict=False):
        y = top + np.arange(len(run.frame))
        _bars(ax, run.frame, y, color)
        middles.append(float(y.mean()))
        top = float(y[-1]) + 1 + _GAP
    ax.invert_yaxis()
    ax.set_yticks(middles if len(named) > 1 else [], list(named) if len(named) > 1 else [])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds (each line a request: pale while it waits, full while it gets tokens)")
    ax.set_xlim(left=0)
    return finish(ax, next(iter(named.values())).frame)


def _bars(ax: Axes, frame: pd.DataFrame, y: np.ndarray[Any, Any], color: str) -> None:
    begin, end = frame["intended_s"].to_numpy(), frame["end_s"].to_numpy()
    first = frame["first_token_s"].fillna(frame["end_s"]).to_numpy()
    failed = (frame["error"] != "").to_numpy()
    ax.barh(y, first - begin, left=begin, height=0.8, color=color, alpha=0.25, linewidth=0)
    ax.barh(y, end - first, left=first, height=0.8, color=color, linewidth=0)
    if failed.any():
        ax.scatter(end[failed], y[failed], color=VERMILLION, marker="x", s=18, zorder=3)


def _said(named: Mapping[str, GenerationLoadRun]) -> str:
    if len(named) > 1:
        ends = {name: run.seconds for name, run in named.items()}
        said = listed([f"{number(end)} s with {name}" for name, end in ends.items()])
        return f"The last request ends after {said}"
    (run,) = named.values()
    longest = float(run.frame["ttft_ms"].max()) / 1e3
    said = f"At most {run.at_once} of {len(run.frame)} requests get tokens at once; the longest wait for a "
    failed = int((run.frame["error"] != "").sum())
    return f"{said}first token is {number(longest)} s" + (f"; {failed} fail" if failed else "")


def kept(curves: GenerationCurve | Mapping[str, GenerationCurve]) -> Axes:
    """Requests/s that keep their targets against the offered rate; several curves by name."""
    named = {"": curves} if isinstance(curves, GenerationCurve) else dict(curves)
    first = next(iter(named.values()))
    ends = {name: curve.frame["kept_per_s"].iloc[-1] for name, curve in named.items()}
    title = first.headline
    if len(named) > 1:
        said = listed([f"{number(value)} with {name}" for name, value in ends.items()])
        share = percent(first.frame["share"].iloc[-1])
        title = f"At {share} of capacity requests/s within {first.runs[-1].targets} are {said}"
    ax = canvas(title, rows=6)
    rates = first.frame["rate_per_s"].to_numpy()
    ax.plot([0, rates.max()], [0, rates.max()], color=LIGHT, linewidth=1.4, zorder=0)
    note(ax, "all that were offered", (rates.max(), rates.max()), (-8, 2), ha="right", color=GREY)
    ax.axvline(first.capacity, color=LIGHT, linewidth=1.4, linestyle=":", zorder=0)
    where = ("data", "axes fraction")
    note(ax, "capacity ", (first.capacity, 1), (-4, -10), xycoords=where, ha="right", color=GREY)
    for (name, curve), color in zip(named.items(), COLORS, strict=False):
        ax.plot(curve.frame["rate_per_s"], curve.frame["kept_per_s"], color=color, **LINE)
        at = (curve.frame["rate_per_s"].iloc[-1], curve.frame["kept_per_s"].iloc[-1])
        note(ax, name, at, (8, 0), color=color)
    ax.set_xlabel("offered, requests per second")
    ax.set_ylabel("in time, requests per second")
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    if len(named) > 1:
        ax.set_xlim(0, rates.max() * 1.35)
    return finish(ax, first.frame)


def token_latency(curve: GenerationCurve) -> Axes:
    """Time to the first token and between tokens, p50 and p95, against the offered rate."""
    frame, run = curve.frame, curve.runs[-1]
    rows = frame.iloc[[0, -1]]
    grown = {words: rows[column].iloc[1] / rows[column].iloc[0] for words, column in _COLUMNS.items()}
    said = listed([f"{words} {number(ratio)}×" for words, ratio in grown.items()])
    shares = [percent(share) for share in rows["share"]]
    ax = canvas(f"From {shares[0]} to {shares[1]} of capacity the p95 changes: {said}", rows=6)
    for (words, column), color in zip(_COLUMNS.items(), (VERMILLION, BLUE), strict=True):
        ax.plot(frame["rate_per_s"], frame[column], color=color, **LINE)
        ax.plot(frame["rate_per_s"], frame[column.replace("95", "50")], color=color, linestyle="--", linewidth=1.2)
        note(ax, words, (frame["rate_per_s"].iloc[-1], frame[column].iloc[-1]), (8, 0), color=color)
    for words, limit in (("TTFT target", run.ttft_ms), ("ITL target", run.itl_ms)):
        if np.isfinite(limit):
            target(ax, words, y=limit, at=0.01, color=GREEN)
    log_axis(ax, "y", "{x:,.0f}")
    ax.set_xlabel("offered, requests per second (full lines p95, dashed p50)")
    ax.set_ylabel("ms (logarithmic)")
    ax.set_xlim(0, float(frame["rate_per_s"].max()) * 1.35)
    return finish(ax, frame)


def mode_gains(frame: pd.DataFrame) -> Axes:
    """Tokens per second of continuous batching over static: columns ``spread``, ``measured`` and ``predicted``."""
    first, last = frame.iloc[0], frame.iloc[-1]
    ax = canvas(
        f"Continuous over static batching: {times(first['measured'])} for {first['spread']}, "
        f"{times(last['measured'])} for {last['spread']} (predicted {times(last['predicted'])})",
        rows=len(frame),
    )
    y = rows(ax, frame["spread"])
    ax.barh(y, frame["measured"], color=BLUE, height=0.62)
    ax.scatter(frame["predicted"], y, color=VERMILLION, marker="D", s=60, zorder=3)
    ax.axvline(1, color=GREY, linewidth=1.2)
    reach = frame[["measured", "predicted"]].max(axis=1)
    for row, end, measured, predicted in zip(y, reach, frame["measured"], frame["predicted"], strict=True):
        note(ax, f"{times(measured)}, predicted {times(predicted)}", (end, row), (9, 0))
    ax.set_xlabel("tokens per second in units of static batching (bar: measured, diamond: predicted)")
    return finish(ax, frame, right=float(reach.max()) * 1.5)


def first_passages(comparison: RankingComparison) -> Axes:
    """How often the right passage is among the first 1 to 10: by vectors, and reranked."""
    ax = canvas(comparison.headline, rows=6)
    deep = np.arange(1, _DEEPEST + 1)
    shares = 100 * (comparison.ranks[:, :, None] <= deep).mean(axis=1)
    for values, name, color, up in zip(shares, comparison.frame["name"], (GREY, BLUE), (-12, 4), strict=True):
        ax.plot(deep, values, color=color, label=str(name), **LINE)
        note(ax, percent(values[0] / 100), (1, values[0]), (-8, up), color=color, ha="right")
    ax.legend(frameon=False, loc="lower right", fontsize=10)
    ax.set_xticks(deep)
    ax.set_xlim(0.3, _DEEPEST + 0.3)
    ax.set_ylim(0, 103)
    ax.set_xlabel("passages that are looked at, the best first")
    ax.set_ylabel("questions whose passage is among them, %")
    return finish(ax, comparison.frame)


def answers(comparison: AnswerComparison) -> Axes:
    """The share of right answers by the way they were made, with its interval."""
    columns = ["right", "right_low", "right_high"]
    frame = comparison.frame.assign(**{name: 100 * comparison.frame[name] for name in columns})
    said = [f"{percent(row['right'])} of {row['requests']}" for row in comparison.frame.to_dict("records")]
    ax = draw_bars(frame, "right", title=comparison.headline, names=frame["name"], labels=said, room=1.3)
    ax.set_xlabel("answers that hold an expected word, % (whiskers: 95% interval)")
    return ax
