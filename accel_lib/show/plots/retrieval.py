"""Figures of retrieval and of answers made from what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel_lib.formatting import percent
from accel_lib.show.plots.style import BLUE, GREY, LINE, canvas, draw_bars, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.bench.answers import AnswerComparison
    from accel_lib.bench.ranking import RankingComparison

_DEEPEST = 10  # passages


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
