"""Figures of candidates in one process: speed, agreement, lengths of texts, where batching pays, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import Profile
from accel_lib.bench.batching import Batching
from accel_lib.bench.compare import Comparison
from accel_lib.bench.roofline import Crossover
from accel_lib.bench.speedup import SpeedupMap
from accel_lib.formatting import listed, number, percent, times
from accel_lib.show.plots.style import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WASTED,
    WHISKERS,
    canvas,
    ends,
    finish,
    log_axis,
    note,
    rows,
    stack,
    target,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.bench.memory import MemoryFit

_BINS = 40


def batching(frame: pd.DataFrame) -> Axes:
    """Tokens per second by batching strategy, as `accel_lib.bench.compare_batching` measures it; padding is hatched."""
    ax = canvas(Batching(frame=frame).headline, rows=len(frame))
    y, real = rows(ax, frame["strategy"]), frame["tokens_per_s"]
    end = stack(ax, y, [(real, {"color": BLUE}), (real * frame["padding"] / (1 - frame["padding"]), WASTED)])
    for row, rate, share, x in zip(y, frame["texts_per_s"], frame["padding"], end, strict=True):
        waste = f", {percent(share)} padding" if share > 0 else ""
        note(ax, f"{number(rate)} texts/s{waste}", (x, row))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("tokens computed per second (solid: text, hatched: padding)")
    return finish(ax, frame, right=end.max() * 1.5)


def comparison(frame: pd.DataFrame) -> Axes:
    """Texts per second step by step, as `accel_lib.compare` measures them, with size and agreement of each.

    A step counts from the fastest before it, so that none is credited with making up for another's loss.
    """
    ax = canvas(Comparison(frame=frame).headline, rows=len(frame))
    rate = frame["texts_per_s"].to_numpy()
    before = np.maximum.accumulate(np.concatenate([rate[:1], rate[:-1]]))
    y = rows(ax, frame["name"])
    gained, lost = np.maximum(rate - before, 0), np.maximum(before - rate, 0)
    stack(ax, y, [(np.minimum(rate, before), {"color": LIGHT}), (gained, {"color": GREEN}), (lost, WASTED)])
    ax.errorbar(rate, y, xerr=ends(frame, "texts_per_s"), **WHISKERS)
    reach = np.maximum(before, frame["texts_per_s_high"])
    for row, end, value, step in zip(y, reach, rate, rate / before, strict=True):
        note(ax, f"{number(value)}, step {times(step)}" if row else number(value), (end, row))
    column = "same_label" if "same_label" in frame else "top10_overlap"
    head = {"top10_overlap": "10 nearest kept", "same_label": "same label"}[column]
    size = [f"{number(size_mb)} MB" for size_mb in frame["size_mb"]]
    for at, cells in ((1.02, ["size", *size]), (1.15, [head, *frame[column].map(percent)])):
        for row, words in zip([-0.75, *y], cells, strict=True):
            ax.text(at, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=10, color=BLUE)
    ax.set_xlabel("texts/s (green: gained, hatched: lost; whiskers: interval of the median)")
    return finish(ax, frame, right=reach.max() * 1.38)


def agreement(frame: pd.DataFrame) -> Axes:
    """``cosine_mean`` to the reference beside ``top10_overlap``, the share of nearest neighbours kept, by ``name``."""
    ax = canvas(Comparison(frame=frame).agreement, rows=len(frame))
    y = rows(ax, frame["name"])
    cosine, kept = frame["cosine_mean"].to_numpy(), frame["top10_overlap"].to_numpy()
    ax.hlines(y, np.minimum(kept, cosine), np.maximum(kept, cosine), color=LIGHT, linewidth=3, zorder=1)
    ax.scatter(cosine, y, color=BLUE, s=140, zorder=2)  # seen around a diamond at the same place
    ax.scatter(kept, y, color=VERMILLION, s=70, zorder=3, marker="D")
    lowest = float(min(cosine.min(), kept.min()))
    if "top10_overlap_low" in frame:
        ax.errorbar(kept, y, xerr=ends(frame, "top10_overlap"), **WHISKERS)
        lowest = min(lowest, float(frame["top10_overlap_low"].min()))
    span = max(1 - lowest, 1e-6)
    for row, near, same in zip(y, cosine, kept, strict=True):
        for value, words, up, color in (
            (near, f"mean cosine {near:.3f}", 9, BLUE),
            (same, f"{percent(same)} of the 10 nearest kept", -17, VERMILLION),
        ):
            note(ax, words, (value, row), (0, up), ha="right" if value > 1 - span / 2 else "left", color=color)
    ax.set_ylim(len(y) - 0.4, -0.5)
    ax.set_xlim(lowest - 0.05 * span, 1 + 0.05 * span)
    ax.set_xlabel("agreement with the reference, 1 = identical (dot: cosine, diamond: share of neighbours)")
    return finish(ax, frame)


def speedup_map(frame: pd.DataFrame) -> Axes:
    """Speed-up over batch size and length, as a map that is white where nothing is gained.

    `frame` is that of a `SpeedupMap`; ``frame.attrs["recorded"]`` names where and when, if it was not measured now.
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
    """Time of one batch by its tokens, of a `SpeedupMap`: flat while launching is the work, then rising."""
    ax = canvas(SpeedupMap(frame=frame).floor, rows=5)
    work = frame["batch_size"] * frame["tokens"]
    for role, color, up in (("baseline", VERMILLION, 9), ("candidate", BLUE, -16)):
        times_ms = frame[f"{role}_ms"]
        ax.scatter(work, times_ms, color=color, s=28, alpha=0.6, linewidth=0)
        middle = times_ms.groupby(work).median()
        ax.plot(middle.index, middle, color=color, linewidth=1.6)
        note(ax, str(frame[role].iloc[0]), (middle.index[0], middle.iloc[0]), (0, up), color=color)
    log_axis(ax, "x", "{x:,.0f}", base=2)
    log_axis(ax, "y")
    ax.set_xlabel("tokens in one batch (texts × tokens of each)")
    ax.set_ylabel("time of one batch, ms")
    ax.margins(y=0.12)
    return finish(ax, frame)


def crossover(frame: pd.DataFrame) -> Axes:
    """Time of one token by the tokens in its batch, of a `Crossover`: falls while a batch costs the same, then flat."""
    ax = canvas(Crossover(frame=frame).headline, rows=7)
    for color, (length, part) in zip(COLORS * len(frame), frame.groupby("tokens"), strict=False):
        part = part.sort_values("batch_tokens")
        words = f"texts of {length} tokens"
        ax.plot(part["batch_tokens"], part["token_ms"] * 1e3, color=color, label=words, **LINE)
    tokens = np.geomspace(frame["batch_tokens"].min(), frame["batch_tokens"].max(), 100)
    fixed, each = 1e3 * frame["batch_ms"].iloc[0], frame["token_us"].iloc[0]
    ax.plot(tokens, fixed / tokens + each, color=GREY, linestyle="--", linewidth=1.2, label="fixed part + tokens")
    if tokens[0] * each < fixed < tokens[-1] * each:
        ax.axvline(fixed / each, color=LIGHT, linewidth=1.4, zorder=0)
        side, away = ("left", 5) if fixed / each < float(np.sqrt(tokens[0] * tokens[-1])) else ("right", -5)
        words, where = f"{number(fixed / each)} tokens: half of the time is for tokens", ("data", "axes fraction")
        note(ax, words, (fixed / each, 1), (away, -10), xycoords=where, color=GREY, ha=side)
    ax.legend(edgecolor="none", framealpha=1, fontsize=10, loc="upper right", bbox_to_anchor=(1, 0.93))
    log_axis(ax, "x", "{x:,.0f}", base=2)
    log_axis(ax, "y")
    ax.set_xlabel("tokens in the batch (texts × tokens of each)")
    ax.set_ylabel("time of one token, µs")
    return finish(ax, frame)


def lengths(tokens: NDArray[np.int64], max_length: int) -> Axes:
    """Histogram of text lengths, int ``[n]`` as ``model.lengths(texts)`` gives them, with the model's limit."""
    median, most = (int(np.percentile(tokens, q, method="higher")) for q in (50, 99))
    cut = percent(float(np.mean(tokens >= max_length)))
    ax = canvas(f"Tokens per text: p50 {median}, p99 {most}; {cut} fill the model's {max_length}", rows=4)
    _histogram(ax, tokens, max_length)
    target(ax, f"median {median}", x=median, at=0.93, color=BLUE)
    target(ax, f"limit {max_length}", x=max_length, at=0.93, ha="right")
    return finish(ax, pd.DataFrame())


def length_profiles(lengths: NDArray[np.int64], profiles: Sequence[Profile]) -> Axes:
    """Histogram of text lengths, int ``[n]``, with the range that each optimization profile takes."""
    spans = sorted(profiles, key=lambda profile: profile.max[1])
    within = np.diff([0.0, *(float(np.mean(lengths <= profile.max[1])) for profile in spans)])
    parts = [f"{percent(share)} up to {profile.max[1]}" for share, profile in zip(within, spans, strict=True)]
    parts[0] = parts[0].replace("%", "% of the texts have", 1) + " tokens"
    if within.sum() < 1:
        parts.append(f"{percent(1 - within.sum())} more than any profile")
    ax = canvas(listed(parts), rows=5)
    top, left = _histogram(ax, lengths, max(spans[-1].max[1], int(lengths.max()))), 0
    colors = (GREEN, PURPLE, ORANGE, VERMILLION) * len(spans)
    for place, (profile, color) in enumerate(zip(spans, colors, strict=False), 1):
        limit, height = profile.max[1], top * (0.95 + 0.15 * place)
        ax.vlines(limit, 0, height, color=color, linestyle="--", linewidth=1.4)
        ax.annotate("", (limit, height), (left, height), arrowprops={"arrowstyle": "<->", "color": color})
        at, side = ((limit, height), "right") if place == len(spans) else ((left, height), "left")
        words = f" best at {profile.opt[0]} × {profile.opt[1]}, up to {profile.max[0]} × {limit} "
        note(ax, words, at, (0 if side == "right" else 8, 4), ha=side, color=color)
        left = limit
    ax.set_ylim(0, top * (1.1 + 0.15 * len(spans)))
    ax.set_xlabel("length, tokens (profiles: batch × tokens)")
    return finish(ax, pd.DataFrame())


def memory(fit: MemoryFit) -> Axes:
    """What a batch was predicted to need, what it needed, and where the memory ends."""
    ax = canvas(fit.headline, rows=6)
    frame, model = fit.frame, fit.model
    top = float(frame["tokens"].max()) * 1.15
    fixed_mb, most_mb = model.fixed_bytes / 1e6, model.bytes(int(top)) / 1e6
    ax.plot([0, top], [model.bytes(0) / 1e6, most_mb], color=SKY, linewidth=2, zorder=1)
    note(ax, "fit", (top, most_mb), (4, 0), color=BLUE)
    for role, color, marker, shift, side in (
        ("fitted", BLUE, "o", (9, -10), "left"),
        ("checked", VERMILLION, "D", (-9, 8), "right"),
    ):
        part = frame[frame["role"] == role]
        ax.scatter(part["tokens"], part["measured_mb"], color=color, marker=marker, s=60, zorder=2)
        for _, row in part.iterrows():
            words = f"{role}: {row['batch_size']:.0f} texts, {number(row['measured_mb'])} MB"
            note(ax, words, (row["tokens"], row["measured_mb"]), shift, ha=side, color=color)
    ax.axhline(fixed_mb, color=GREY, linestyle=":", linewidth=1.2)
    words = f"before the first batch: {number(fixed_mb)} MB ({number(model.weights_bytes / 1e6)} MB file)"
    note(ax, words, (top, fixed_mb), (0, -14), color=GREY, ha="right")
    ax.set_xlim(0, top * 1.06)
    ax.set_ylim(0, max(float(frame["measured_mb"].max()), most_mb) * 1.15)
    ax.set_xlabel("tokens in a batch, padding counted")
    ax.set_ylabel("memory of one instance, MB")
    return finish(ax, frame)


def _histogram(ax: Axes, tokens: NDArray[np.int64], right: int) -> float:
    """Texts by length up to `right`; returns the height of the highest bar."""
    bins = [right * step / _BINS for step in range(_BINS + 1)]
    counts, _, _ = ax.hist(tokens, bins=bins, color=SKY, edgecolor="white", linewidth=0.5)
    ax.set_xlim(0, right * 1.01)
    ax.set_xlabel("length, tokens")
    ax.set_ylabel("texts")
    return float(np.max(counts))
