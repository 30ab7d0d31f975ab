"""Figures of what a step of generation takes: by its rows, by the tokens in it, and by the length of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel_lib.bench.generation_steps import GenerationSteps
from accel_lib.formatting import capital, number
from accel_lib.show.plots.style import BLUE, GREEN, GREY, LINE, ORANGE, VERMILLION, canvas, finish, log_axis, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (BLUE, ORANGE, GREEN)


def step_times(*runs: GenerationSteps) -> Axes:
    """Time of a step by its rows, as `accel_lib.bench.time_steps` measured it, and what reading the weights takes.

    With several runs, the title says how the last compares with the first.
    """
    ax = canvas(capital(runs[-1].against(runs[0]) if len(runs) > 1 else runs[0].headline), rows=6)
    for run, color in zip(runs, _COLORS, strict=False):
        steps = run.decode
        ax.plot(steps["rows"], steps["ms"], color=color, label=run.name, **LINE)
        reading = steps["reading_ms"].iloc[0]
        ax.axhline(reading, color=color, linestyle="--", linewidth=1.2)
        words = f"reading the weights once: {number(reading)} ms"
        note(ax, words, (steps["rows"].max(), reading), (0, 4), ha="right", color=color)
    ax.legend(edgecolor="none", fontsize=10, loc="upper left")
    log_axis(ax, "x", "{x:g}", base=2)
    ax.set_ylim(0)
    ax.set_xlabel("rows that generate in a step")
    ax.set_ylabel("time of a step, ms")
    return finish(ax, runs[0].frame)


def roofline(steps: GenerationSteps) -> Axes:
    """Tokens per second by the rows of a step and the tokens of a prompt, below the machine's two limits."""
    frame = steps.frame
    ax = canvas(_bound(steps), rows=7)
    for kind, color, marker, words in (
        ("decode", BLUE, "o", "generating: a token a row"),
        ("prefill", VERMILLION, "D", "a prompt: all its tokens"),
    ):
        part = frame[frame["kind"] == kind]
        ax.scatter(part["tokens"], part["tokens_per_s"], color=color, marker=marker, s=60, zorder=3, label=words)
    tokens = np.geomspace(frame["tokens"].min(), frame["tokens"].max(), 100)
    reading_s = frame["reading_ms"].iloc[0] / 1e3
    each_s = (frame["multiplying_ms"] / frame["tokens"]).iloc[0] / 1e3
    ax.plot(tokens, tokens / reading_s, color=GREY, linestyle="--", linewidth=1.4, label="limit: reading the weights")
    if np.isfinite(each_s):
        ax.plot(tokens, np.full_like(tokens, 1 / each_s), color=GREY, linestyle=":", linewidth=1.8,
                label="limit: multiplying them")  # fmt: skip
    ax.legend(edgecolor="none", fontsize=10, loc="lower right")
    log_axis(ax, "x", "{x:,.0f}", base=2)
    log_axis(ax, "y", "{x:,.0f}")
    ax.set_ylim(frame["tokens_per_s"].min() / 2, 3 * max(frame["tokens_per_s"].max(), np.nan_to_num(1 / each_s)))
    ax.set_xlabel("rows of a step, or tokens of a prompt (a long one is read in pieces)")
    ax.set_ylabel("tokens per second")
    return finish(ax, frame)


def _bound(steps: GenerationSteps) -> str:
    """Where the two limits meet, and how near to them the ends are."""
    frame = steps.frame
    limit = frame[["reading_ms", "multiplying_ms"]].max(axis=1)
    one, long = steps.decode.index[0], steps.prefill.index[-1]
    ends = (
        f"one row reaches {limit[one] / frame['ms'][one]:.0%} of its limit, "
        f"a prompt of {frame['tokens'][long]:,.0f} tokens {limit[long] / frame['ms'][long]:.0%}"
    )
    meet = frame["reading_ms"].iloc[0] / (frame["multiplying_ms"] / frame["tokens"]).iloc[0]
    return f"The two limits meet at {number(meet)} tokens: {ends}" if np.isfinite(meet) else capital(ends)


def first_token(steps: GenerationSteps) -> Axes:
    """Time to the first token by the length of the prompt."""
    ax = canvas(steps.first_token, rows=5)
    part = steps.prefill
    ax.plot(part["tokens"], part["ms"], color=VERMILLION, **LINE)
    for tokens, ms in zip(part["tokens"], part["ms"], strict=True):
        note(ax, f"{number(ms)} ms", (tokens, ms), (0, 9), ha="center", color=VERMILLION)
    alone = steps.decode["ms"].iloc[0]
    ax.axhline(alone, color=BLUE, linestyle="--", linewidth=1.2)
    note(ax, "one token generated alone", (part["tokens"].max(), alone), (0, -13), ha="right", color=BLUE)
    log_axis(ax, "x", "{x:,.0f}", base=2)
    log_axis(ax, "y", "{x:,.0f}")
    ax.margins(y=0.15)
    ax.set_xlabel("tokens of the prompt")
    ax.set_ylabel("time to the first token, ms")
    return finish(ax, steps.frame)
