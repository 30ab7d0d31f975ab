"""Figures of requests to the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from accel_lib.formatting import number, percent
from accel_lib.service.waterfall import LatencyBreakdown, PayloadSizes
from accel_lib.show.plots.base import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, canvas, finish, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = {
    "client_ms": ("client and connection", GREY),
    "http_ms": ("HTTP, key, JSON", ORANGE),
    "tokenize_ms": ("tokenize", SKY),
    "queue_ms": ("queue", PURPLE),
    "compute_infer_ms": ("model", GREEN),
}
_NAMED_FROM = 0.09  # share of a bar from which there is room for its percentage


def latency_breakdown(frame: pd.DataFrame) -> Axes:
    """Each kind of request as one bar, cut into the parts that its time goes to.

    Parameters
    ----------
    frame
        One row a kind: ``request``, the milliseconds of each part, ``total_ms``.
    """
    ax = canvas(LatencyBreakdown(frame=frame).headline, rows=len(frame) + 1)
    y = np.arange(len(frame))
    left = np.zeros(len(frame))
    for column, (name, color) in _PARTS.items():
        share = frame[column].to_numpy() / frame["total_ms"].to_numpy()
        ax.barh(y, 100 * share, left=100 * left, color=color, height=0.62, label=name)
        for row, begin, width in zip(y.tolist(), left.tolist(), share.tolist(), strict=True):
            if width >= _NAMED_FROM:
                light = color in (GREY, GREEN, BLUE, PURPLE)
                words = {"ha": "center", "va": "center", "color": "white" if light else "black"}
                ax.text(100 * (begin + width / 2), row, percent(width), fontsize=10, fontdict=words)
        left += share
    for row, total in zip(y.tolist(), frame["total_ms"], strict=True):
        label(ax, 100, row, f"{number(total)} ms")
    ax.set_yticks(y, frame["request"].tolist())
    ax.invert_yaxis()
    ax.set_xlabel("share of the time until the client holds the vectors, %")
    look = {"ncols": len(_PARTS), "frameon": False, "handlelength": 1, "columnspacing": 1.2, "fontsize": 10}
    ax.legend(loc="upper right", bbox_to_anchor=(1.02, -0.2), **look)
    return finish(ax, frame, right=112)


def payload(frame: pd.DataFrame) -> Axes:
    """Bytes a vector against the share of nearest neighbours that stay, per way to ask.

    Parameters
    ----------
    frame
        One row a way: ``request``, ``bytes_each``, ``top10_overlap``.
    """
    ax = canvas(PayloadSizes(frame=frame).headline, rows=5)
    size, kept = frame["bytes_each"].to_numpy(), 100 * frame["top10_overlap"].to_numpy()
    whole = kept >= 99.5
    ax.plot(size, kept, color=GREY, linewidth=1, zorder=1)
    ax.scatter(size[whole], kept[whole], color=GREEN, s=80, zorder=2)
    ax.scatter(size[~whole], kept[~whole], color=VERMILLION, s=80, marker="D", zorder=2)
    for at, value, name in zip(size, kept, frame["request"], strict=True):
        ax.annotate(name, (at, value), (8, -13), textcoords="offset points", fontsize=10)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xticks(sorted({int(round(value, -2)) or int(value) for value in size}))
    ax.set_xlabel("bytes an answer has for each text (logarithmic)")
    ax.set_ylabel("of the 10 nearest kept, %")
    ax.set_ylim(kept.min() - 8, 104)
    ax.set_xlim(size.min() * 0.85, size.max() * 1.5)
    return finish(ax, frame)
