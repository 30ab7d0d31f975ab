"""What another way of batching gains, by how much the lengths of answers differ: measured, and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from accel_lib.formatting import times
from accel_lib.show.plots.style import BLUE, GREY, VERMILLION, canvas, finish, note, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
