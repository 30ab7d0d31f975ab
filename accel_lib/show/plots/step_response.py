"""The figure of a step test: p95 window by window, with the controller's decisions and beside static settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accel_lib.formatting import listed, number
from accel_lib.show.plots.base import BLUE, GREEN, GREY, LIGHT, VERMILLION, canvas, finish
from accel_lib.tuning.results import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel_lib.tuning.step_response import StepTest

_COLORS = {"worst static": GREY, "best static": GREEN, "controller": BLUE}


def control(test: StepTest) -> Axes:
    """P95 of each window, with the controller and with the best and the worst static setting; its decisions as marks.

    Parameters
    ----------
    test
        What `accel_lib.tuning.step_response.step_test` returned; its first seed is shown.
    """
    ax = canvas(test.headline, rows=8)
    target = test.runs["controller"].p95_ms
    first = test.runs["controller"].frame
    window_s = float(first["start_s"].iloc[1] - first["start_s"].iloc[0]) if len(first) > 1 else 1.0
    end = float(first["start_s"].iloc[-1]) + window_s
    top, low = target, target
    for name, color in _COLORS.items():
        frame = test.runs[name].frame
        x = frame["start_s"].to_numpy() + window_s / 2
        y = frame["p95_ms"].to_numpy(dtype=float)
        ax.plot(x, y, color=color, linewidth=2.4 if name == "controller" else 1.6, marker="o", markersize=4.5, zorder=3)
        known = y[np.isfinite(y)]
        top, low = max(top, float(known.max())), min(low, float(known.min()))
        kept = f", {number(test.runs[name].goodput_per_s)}/s in time"
        ax.plot([], [], color=color, linewidth=2.4, label=f"{name}: {test.settings.get(name, 'adapts')}{kept}")
    busy = first["offered_per_s"] > first["offered_per_s"].mean()
    begin, over = (float(first.loc[busy, "start_s"].iloc[i]) for i in (0, -1))
    ax.axvspan(begin, over + window_s, color=LIGHT, alpha=0.45, zorder=0)
    middle, load = (begin + over + window_s) / 2, float(first.loc[busy, "offered_per_s"].mean())
    ax.annotate(f"{number(load)} requests/s", (middle, 0.97), xycoords=("data", "axes fraction"), ha="center",
                va="top", color=GREY, fontsize=9)  # fmt: skip
    ax.axhline(target, color=VERMILLION, linestyle="--", linewidth=1.4)
    ax.annotate(f"target {target:g} ms", (end, target), (0, 4), textcoords="offset points", ha="right",
                color=VERMILLION)  # fmt: skip
    _decisions(ax, test, window_s)
    ax.set_yscale("log")
    ax.set_ylim(low * 0.35, top * 2.2)
    ax.set_xlim(0, end)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("seconds (blue triangles: the controller sets another admission limit)")
    ax.set_ylabel("p95 of each window, ms")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9, ncols=1)
    return finish(ax, test.frame)


def _decisions(ax: Axes, test: StepTest, window_s: float) -> None:
    """The controller's slow decisions, at the end of the window that made it decide; admission as small ticks."""
    height = 0
    for window, decision in test.runs["controller"].log:
        at = (window + 1) * window_s
        if decision.action == "admission":
            ax.plot([at], [0.03], marker="v", markersize=5, color=BLUE, transform=ax.get_xaxis_transform(), zorder=4)
        elif decision.actuator:
            ax.axvline(at, color=BLUE, linewidth=1.0, linestyle=":")
            set_to = [SETTINGS[n](v) for n, v in decision.settings.items() if n != "max_queue_delay_us" or not v]
            back = "back to " if decision.action == "roll back" else ""
            ax.annotate(back + listed(set_to), (at, 0.08 + 0.05 * height), (4, 0), xycoords=("data", "axes fraction"),
                        textcoords="offset points", color=BLUE, fontsize=9)  # fmt: skip
            height = (height + 1) % 3
