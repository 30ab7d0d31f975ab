"""Figures: one function each, a tidy table in, the Axes out, the finding as its title.

A table that knows the machine it was measured on (``frame.attrs["machine"]``) gets it as a caption.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import Profile
from accel_lib.bench.batching import Batching
from accel_lib.bench.compare import Comparison
from accel_lib.bench.speedup import SpeedupMap
from accel_lib.errors import require
from accel_lib.formatting import listed, number, percent, times
from accel_lib.measurement import machine_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.triton.statistics import Timeline

# Okabe and Ito's palette: told apart by colour-blind readers too (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILLION, SKY, YELLOW, PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442", "#CC79A7",
)  # fmt: skip
GREY, LIGHT = "#595959", "#D9D9D9"
_WASTED: dict[str, Any] = {"color": "white", "edgecolor": VERMILLION, "hatch": "////", "linewidth": 0.8}
_SPANS = {
    "tokenize_ms": "tokenize",
    "transport_ms": "transport",
    "queue_ms": "queue",
    "compute_input_ms": "gather inputs",
    "compute_infer_ms": "compute",
    "compute_output_ms": "take answer",
}
_WIDTH_INCHES, _TITLE_LETTERS, _CAPTION_LETTERS = 8.0, 74, 110


def batching(frame: pd.DataFrame) -> Axes:
    """Tokens a second by batching strategy: real ones solid, padding hatched.

    Parameters
    ----------
    frame
        One row a strategy: ``strategy``, ``texts_per_s``, ``tokens_per_s`` (real ones), ``padding`` (share of the
        computed tokens), ``speedup``, ``speedup_low``, ``speedup_high`` over the first row.
    """
    ax = canvas(Batching(frame=frame).headline, rows=len(frame))
    real = frame["tokens_per_s"].to_numpy()
    padded = real * frame["padding"].to_numpy() / (1 - frame["padding"].to_numpy())
    y = rows(ax, frame["strategy"])
    ax.barh(y, real, color=BLUE, height=0.62)
    some = padded > 0
    ax.barh(y[some], padded[some], left=real[some], height=0.62, **_WASTED)
    for row, rate, share, end in zip(y, frame["texts_per_s"], frame["padding"], real + padded, strict=True):
        waste = f", {percent(share)} padding" if share > 0 else ""
        label(ax, end, row, f"{number(rate)} texts/s{waste}")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("tokens computed per second (solid: text, hatched: padding)")
    return finish(ax, frame, right=(real + padded).max() * 1.5)


def comparison(frame: pd.DataFrame) -> Axes:
    """Sentences a second step by step: what each gains or loses, its size, and what it keeps of the reference.

    A step counts from the fastest before it, so that none is credited with making up for another's loss.

    Parameters
    ----------
    frame
        One row a step, in order, as `accel_lib.compare` makes them: ``name``, ``over``, ``texts_per_s`` with
        ``_low`` and ``_high``, ``speedup`` with ``_low`` and ``_high``, ``size_mb``, ``cosine_mean``, and
        ``top10_overlap`` or ``same_label``.
    """
    ax = canvas(Comparison(frame=frame).headline, rows=len(frame))
    rate = frame["texts_per_s"].to_numpy()
    before = np.maximum.accumulate(np.concatenate([rate[:1], rate[:-1]]))
    y = rows(ax, frame["name"])
    ax.barh(y, np.minimum(rate, before), color=LIGHT, height=0.62)
    up, down = rate > before, rate < before
    ax.barh(y[up], (rate - before)[up], left=before[up], color=GREEN, height=0.62)
    ax.barh(y[down], (before - rate)[down], left=rate[down], height=0.62, **_WASTED)
    ax.errorbar(rate, y, xerr=ends(frame, "texts_per_s"), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
    reach = np.maximum(before, frame["texts_per_s_high"])
    for row, end, value, step in zip(y, reach, rate, rate / before, strict=True):
        label(ax, end, row, f"{number(value)}, step {times(step)}" if row else number(value))
    column = "same_label" if "same_label" in frame else "top10_overlap"
    head = {"top10_overlap": "10 nearest kept", "same_label": "same label"}[column]
    size = [f"{number(size_mb)} MB" for size_mb in frame["size_mb"]]
    for at, cells in ((1.02, ["size", *size]), (1.15, [head, *frame[column].map(percent)])):
        for row, words in zip([-0.75, *y], cells, strict=True):
            ax.text(at, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=10, color=BLUE)
    ax.set_xlabel("texts/s (green: gained, hatched: lost; whiskers: interval of the median)")
    return finish(ax, frame, right=reach.max() * 1.38)


def agreement(frame: pd.DataFrame) -> Axes:
    """Mean cosine to the reference beside the share of nearest neighbours that stay, per candidate.

    Parameters
    ----------
    frame
        One row a candidate: ``name``, ``cosine_mean``, ``top10_overlap``.
    """
    ax = canvas(Comparison(frame=frame).agreement, rows=len(frame))
    y = rows(ax, frame["name"])
    cosine, kept = frame["cosine_mean"].to_numpy(), frame["top10_overlap"].to_numpy()
    ax.hlines(y, np.minimum(kept, cosine), np.maximum(kept, cosine), color=LIGHT, linewidth=3, zorder=1)
    ax.scatter(cosine, y, color=BLUE, s=70, zorder=2)
    ax.scatter(kept, y, color=VERMILLION, s=70, zorder=3, marker="D")
    lowest = float(min(cosine.min(), kept.min()))
    span = max(1 - lowest, 1e-6)
    for row, near, same in zip(y, cosine, kept, strict=True):
        for value, words, up, color in (
            (near, f"mean cosine {near:.3f}", 9, BLUE),
            (same, f"{percent(same)} of the 10 nearest kept", -17, VERMILLION),
        ):
            side = "right" if value > 1 - span / 2 else "left"
            ax.annotate(words, (value, row), (0, up), textcoords="offset points", ha=side, color=color, fontsize=10)
    ax.set_ylim(len(y) - 0.4, -0.5)
    ax.set_xlim(lowest - 0.05 * span, 1 + 0.05 * span)
    ax.set_xlabel("agreement with the reference, 1 = identical (dot: cosine, diamond: share of neighbours)")
    return finish(ax, frame)


def speedup_map(frame: pd.DataFrame) -> Axes:
    """Speed-up over batch size and length, as a map that is white where nothing is gained.

    Parameters
    ----------
    frame
        One row a size: ``candidate``, ``baseline``, ``batch_size``, ``tokens``, ``speedup`` with ``_low`` and
        ``_high``; ``frame.attrs["recorded"]`` names where and when, if it was not measured now.
    """
    from matplotlib.colors import CenteredNorm

    table = frame.pivot(index="batch_size", columns="tokens", values="speedup")
    ax = canvas(SpeedupMap(frame=frame).headline, rows=len(table) + 1)
    logs = np.log2(table.to_numpy(dtype=float))
    limit = max(float(np.nanmax(np.abs(logs))), 0.25)
    ax.imshow(logs, cmap="PuOr_r", norm=CenteredNorm(0, limit), aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(logs):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.7 * limit else "black"
            ax.text(column, row, times(float(2**value)), ha="center", va="center", color=ink, fontsize=11)
    ax.set_xticks(range(table.shape[1]), [f"{tokens:,}" for tokens in table.columns])
    ax.set_yticks(range(table.shape[0]), [f"{size:,}" for size in table.index])
    ax.set_xlabel("length of each text, tokens")
    ax.set_ylabel("batch size, texts")
    return finish(ax, frame)


def floor(frame: pd.DataFrame) -> Axes:
    """Time of one batch by the tokens in it: flat where launching is the work, rising where computing is.

    Parameters
    ----------
    frame
        As for `speedup_map`, with ``baseline_ms`` and ``candidate_ms``.
    """
    ax = canvas(SpeedupMap(frame=frame).floor, rows=5)
    work = frame["batch_size"] * frame["tokens"]
    for role, color, up in (("baseline", VERMILLION, 9), ("candidate", BLUE, -16)):
        times_ms = frame[f"{role}_ms"]
        ax.scatter(work, times_ms, color=color, s=28, alpha=0.6, linewidth=0)
        middle = times_ms.groupby(work).median()
        ax.plot(middle.index, middle, color=color, linewidth=1.6)
        name = str(frame[role].iloc[0])
        ax.annotate(name, (middle.index[0], middle.iloc[0]), (0, up), textcoords="offset points", color=color)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("tokens in one batch (texts × tokens of each)")
    ax.set_ylabel("time of one batch, ms")
    ax.margins(y=0.12)
    return finish(ax, frame)


def lengths(tokens: NDArray[np.int64], max_length: int) -> Axes:
    """Histogram of text lengths, with the model's limit.

    Parameters
    ----------
    tokens
        Tokens a text, int ``[n]``, as ``model.lengths(texts)`` gives them.
    max_length
        The model's limit, at which longer texts are cut.
    """
    median, most = (int(np.percentile(tokens, q, method="higher")) for q in (50, 99))
    cut = percent(float(np.mean(tokens >= max_length)))
    ax = canvas(f"Tokens per text: p50 {median}, p99 {most}; {cut} fill the model's {max_length}", rows=4)
    bins = [max_length * step / 40 for step in range(41)]
    counts, _, _ = ax.hist(tokens, bins=bins, color=SKY, edgecolor="white", linewidth=0.5)
    top = float(np.max(counts)) * 1.1
    for place, words, color, side in ((median, "median", BLUE, "left"), (max_length, "limit", VERMILLION, "right")):
        ax.vlines(place, 0, top, color=color, linestyle="--", linewidth=1.4)
        shift = 5 if side == "left" else -5
        ax.annotate(f"{words} {place}", (place, top), (shift, -8), textcoords="offset points", ha=side, color=color)
    ax.set_xlim(0, max_length * 1.01)
    ax.set_xlabel("length, tokens")
    ax.set_ylabel("texts")
    return finish(ax, pd.DataFrame())


def length_profiles(lengths: NDArray[np.int64], profiles: Sequence[Profile]) -> Axes:
    """Histogram of text lengths, with the range that each optimization profile takes.

    Parameters
    ----------
    lengths
        Tokens a text, int ``[n]``, as ``model.lengths(texts)`` gives them.
    profiles
        As ``accel_lib.convert.tensorrt.choose_profiles`` returns them.
    """
    spans = sorted(profiles, key=lambda profile: profile.max[1])
    within = np.diff([0.0, *(float(np.mean(lengths <= profile.max[1])) for profile in spans)])
    parts = [f"{percent(share)} up to {profile.max[1]} tokens" for share, profile in zip(within, spans, strict=True)]
    if within.sum() < 1:
        parts.append(f"{percent(1 - within.sum())} longer than any")
    ax = canvas(f"Texts by optimization profile: {listed(parts)}", rows=5)
    right = max(spans[-1].max[1], int(lengths.max()))
    counts, _, _ = ax.hist(
        lengths, bins=[right * step / 40 for step in range(41)], color=SKY, edgecolor="white", linewidth=0.5
    )
    top, left = float(np.max(counts)), 0
    for index, (profile, color) in enumerate(
        zip(spans, (GREEN, PURPLE, ORANGE, VERMILLION) * len(spans), strict=False)
    ):
        last, limit = index == len(spans) - 1, profile.max[1]
        height = top * (1.1 + 0.15 * (len(spans) - index - 1))
        ax.vlines(limit, 0, height, color=color, linestyle="--", linewidth=1.4)
        ax.annotate("", (limit, height), (left, height), arrowprops={"arrowstyle": "<->", "color": color})
        words = f" best at {profile.opt[0]} × {profile.opt[1]}, up to {profile.max[0]} × {limit} "
        at, side = ((limit, height), "right") if last else ((left, height), "left")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line where another profile ends
        ax.annotate(words, at, (0, 4), textcoords="offset points", ha=side, color=color, bbox=box)
        left = limit
    ax.set_xlim(0, right * 1.01)
    ax.set_ylim(0, top * (1.1 + 0.15 * len(spans)))
    ax.set_xlabel("length, tokens (profiles: batch × tokens)")
    ax.set_ylabel("texts")
    return finish(ax, pd.DataFrame())


def timeline(request: Timeline) -> Axes:
    """One request from text to vector, cut into the spans it passes through.

    Parameters
    ----------
    request
        What ``server.model(name).timeline(text)`` returns.
    """
    spent = dataclasses.asdict(request)
    frame = pd.DataFrame({"span": [_SPANS[name] for name in spent], "ms": spent.values()})
    frame.attrs["machine"] = machine_line()
    total, computing = float(frame["ms"].sum()), request.compute_infer_ms
    serving = total - computing - request.tokenize_ms
    words = f"{number(computing)} ms in the model, {number(request.tokenize_ms)} ms tokenizing, {number(serving)} ms "
    ax = canvas(f"One request takes {number(total)} ms: {words}for being served", rows=len(frame))
    y = rows(ax, frame["span"])
    start = np.concatenate([[0.0], np.cumsum(frame["ms"].to_numpy())[:-1]])
    colors = [GREEN if span == "compute" else BLUE for span in frame["span"]]
    ax.barh(y, np.maximum(frame["ms"], total / 400), left=start, color=colors, height=0.62)
    for row, left, width in zip(y, start, frame["ms"], strict=True):
        label(ax, left + width, row, f"{number(width)} ms")
    ax.set_xlabel("milliseconds since the call (green: the model computes)")
    return finish(ax, frame, right=total * 1.14)


def batch_sizes(executions: pd.Series[Any]) -> Axes:
    """How often Triton ran each batch size.

    Parameters
    ----------
    executions
        Executions by batch size, the ``batch_sizes`` of a load run.
    """
    mean = float(np.average(executions.index, weights=executions))
    ax = canvas(f"Triton ran {number(mean)} requests at a time on average", rows=5)
    ax.bar(executions.index.to_numpy(), executions.to_numpy(), color=BLUE, width=0.8)
    ax.set_xlabel("requests run together (batch size)")
    ax.set_ylabel("executions")
    ax.locator_params(axis="x", integer=True)
    return finish(ax, executions)


def canvas(title: str, *, rows: int) -> Axes:
    """Axes with the finding as its figure's title, high enough for so many rows."""
    pyplot = require("matplotlib.pyplot", extra="notebook")
    figure, ax = pyplot.subplots(figsize=(_WIDTH_INCHES, 1.5 + 0.55 * rows), layout="constrained")
    glued = title.replace("≤ ", "≤\N{NO-BREAK SPACE}").replace(" × ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}")
    words = textwrap.fill(glued, _TITLE_LETTERS, break_on_hyphens=False)
    figure.suptitle(words, x=0.01, ha="left", fontsize=12, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=10)
    return cast("Axes", ax)


def rows(ax: Axes, names: Sequence[str] | pd.Series[str]) -> NDArray[np.int64]:
    """A row for each name, from the top; returns where they are."""
    y = np.arange(len(names))
    ax.set_yticks(y, [textwrap.fill(str(name), 24) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.invert_yaxis()
    return y


def label(ax: Axes, x: float, y: float, words: str) -> None:
    """Words to the right of a point."""
    ax.annotate(words, (x, y), (6, 0), textcoords="offset points", ha="left", va="center", fontsize=10)


def ends(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Distances from a value down and up to the ends of its interval, as matplotlib wants them."""
    value, low, high = (frame[name].to_numpy(dtype=float) for name in (column, f"{column}_low", f"{column}_high"))
    distances: NDArray[np.float64] = np.maximum(np.stack([value - low, high - value]), 0.0)
    return distances


def finish(ax: Axes, data: pd.DataFrame | pd.Series[Any], *, right: float | None = None) -> Axes:
    """Where it was measured as the caption, and where the x axis ends."""
    if right is not None:
        ax.set_xlim(0, right)
    where = data.attrs.get("recorded") or data.attrs.get("machine")
    if where:
        start = "recorded on" if "recorded" in data.attrs else "measured on"
        words = textwrap.fill(f"{start} {where}", _CAPTION_LETTERS)
        ax.figure.supxlabel(words, x=0.01, ha="left", fontsize=8, color=GREY)
    return ax
