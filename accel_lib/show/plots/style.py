"""What every figure shares: canvas, bars, notes, targets, colours; the finding is the title, the machine the caption.

A table that knows the machine it was measured on (``frame.attrs["machine"]``) gets it as a caption.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers too (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY, LIGHT = "#595959", "#D9D9D9"
COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY)
WASTED: dict[str, Any] = {"color": "white", "edgecolor": VERMILLION, "hatch": "////", "linewidth": 0.8}
LINE: dict[str, Any] = {"marker": "o", "linewidth": 1.8}
WHISKERS: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 1.2, "capsize": 3}
_BAR = 0.62  # height of a bar, of its row's
_DECADES = 300  # range of a logarithmic axis up to which numbers between the powers of ten are written
_FEW = 3  # range up to which all of them are
_NUMBER = "{x:,.6g}"
_ACROSS, _UP = {1: "left", -1: "right", 0: "center"}, {1: "bottom", -1: "top", 0: "center"}  # sides of a point
_WORDS = (2, -2)  # pixels around words: more to their sides, less above and below, where letters leave room
_NEAR = 6  # pixels from words within which they touch a marker
_WIDTH_INCHES = 8.0
_TITLE_LETTERS = 74
_CAPTION_LETTERS = 110


def canvas(title: str, *, rows: int) -> Axes:
    """Axes with the finding as its figure's title, high enough for that many rows."""
    pyplot = require("matplotlib.pyplot", extra="notebook")
    figure, ax = pyplot.subplots(figsize=(_WIDTH_INCHES, 1.5 + 0.55 * rows), layout="constrained")
    glued = title.replace("≤ ", "≤\N{NO-BREAK SPACE}").replace(" × ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}")
    words = textwrap.fill(glued, _TITLE_LETTERS, break_on_hyphens=False)
    figure.suptitle(words, x=0.01, ha="left", fontsize=12, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=10)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(_NUMBER)
    return cast("Axes", ax)


def finish(ax: Axes, data: pd.DataFrame | pd.Series[Any], *, right: float | None = None) -> Axes:
    """Where it was measured as the caption, where the x axis ends, and notes moved from what they would cover."""
    if right is not None:
        ax.set_xlim(0, right)
    where = data.attrs.get("recorded") or data.attrs.get("machine")
    if where:
        start = "simulated from measurements on" if data.attrs.get("simulated") else "measured on"
        start = "recorded on" if "recorded" in data.attrs else start
        words = textwrap.fill(f"{start} {where}", _CAPTION_LETTERS)
        ax.figure.supxlabel(words, x=0.01, ha="left", fontsize=8, color=GREY)
    _clear(ax)
    return ax


def _clear(ax: Axes) -> None:
    """Move each note that lies on something to the place around its point where it covers least, the nearest such."""
    cast("Any", ax.figure).draw_without_rendering()
    boxes: dict[Any, Any] = {text: text.get_window_extent().padded(*_WORDS) for text in ax.texts if text.get_text()}
    drawn: list[Any] = [(line, line.get_path(), False) for line in ax.lines if line.get_linestyle() != "None"]
    drawn += [(patch, patch.get_path(), True) for patch in ax.patches]
    marked = [line for line in ax.lines if line.get_marker() not in ("None", "|", "_")]  # the last two end whiskers
    points = [line.get_transform().transform(line.get_xydata()) for line in marked]
    for group in ax.collections:
        if hasattr(group, "legend_elements"):  # a scatter
            points.append(group.get_offset_transform().transform(group.get_offsets()))
        else:
            drawn += [(group, path, len(group.get_facecolor()) > 0) for path in group.get_paths()]
    paths = [(part.get_transform().transform_path(path), filled, part.zorder) for part, path, filled in drawn]
    markers = np.concatenate([np.empty((0, 2)), *points])

    def covered(note: Any, place: tuple[Any, str, str]) -> int:
        note.xyann = place[0]
        note.set(ha=place[1], va=place[2])
        box = boxes[note] = note.get_window_extent().padded(*_WORDS)
        own = ax.transData.transform([note.xy]) if note.xycoords == "data" else box.get_points()
        away, least = (np.hypot(*np.maximum(0, np.maximum(box.min - at, at - box.max)).T) for at in (markers, own))
        touched = np.sum(away < _NEAR) + 2 * np.sum(away < least.min())  # the nearer ones they seem to belong to
        others = sum(box.overlaps(other) for text, other in boxes.items() if text is not note)
        lines = sum(1 + 2 * (height >= 2) for path, filled, height in paths if path.intersects_bbox(box, filled))
        return int(lines + 3 * (others + touched))

    for note in boxes:
        far = max(map(abs, getattr(note, "xyann", (0,))))
        place = (note.xyann, note.get_ha(), note.get_va()) if far else None
        if place and (least := covered(note, place)):
            for times, up, across in itertools.product((1, 2, 3), _UP, _ACROSS):
                other = ((times * far * across, times * far * up), _ACROSS[across], _UP[up])
                on = covered(note, other) + times - 1  # a far place has to be freer
                if on < least and (ax.bbox.min <= boxes[note].min).all() and (boxes[note].max <= ax.bbox.max).all():
                    place, least = other, on
            covered(note, place)


def rows(ax: Axes, names: Iterable[Any]) -> NDArray[np.int64]:
    """A row for each name, from the top; returns where they are."""
    filled = [textwrap.fill(str(name), 24) for name in names]
    y = np.arange(len(filled))
    ax.set_yticks(y, filled)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.invert_yaxis()
    return y


def draw_bars(
    frame: pd.DataFrame,
    column: str,
    *,
    title: str,
    names: Iterable[Any],
    labels: Iterable[str],
    colors: str | Sequence[str] = BLUE,
    room: float = 1.6,
) -> Axes:
    """Horizontal bars of a column, each with words behind it, and whiskers where it has ``_low`` and ``_high``.

    `room` is where the axis ends, as a multiple of the longest bar: the words need space.
    """
    ax = canvas(title, rows=len(frame))
    y, reach = rows(ax, names), frame[column].to_numpy(dtype=float)
    ax.barh(y, reach, color=colors, height=_BAR)
    if f"{column}_low" in frame:
        known = frame[[f"{column}_low", f"{column}_high"]].notna().all(axis=1).to_numpy()
        ax.errorbar(reach[known], y[known], xerr=ends(frame[known], column), **WHISKERS)
        reach = np.fmax(reach, frame[f"{column}_high"].to_numpy(dtype=float))
    over = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # where a line crosses the words
    for row, end, words in zip(y, reach, labels, strict=True):
        note(ax, words, (end, row), bbox=over)
    return finish(ax, frame, right=float(reach.max()) * room)


def stack(ax: Axes, y: ArrayLike, parts: Iterable[tuple[ArrayLike, Mapping[str, Any]]]) -> NDArray[np.float64]:
    """Bars end to end, each part with its look; a part of no length is not drawn. Returns where they end."""
    at = np.asarray(y)
    left = np.zeros(len(at))
    for lengths, look in parts:
        widths = np.asarray(lengths, dtype=float)
        drawn = widths > 0
        ax.barh(at[drawn], widths[drawn], left=left[drawn], height=_BAR, **look)
        left = left + widths
    return left


def note(ax: Axes, words: str, at: tuple[Any, Any], shift: tuple[float, float] = (6, 0), **look: Any) -> None:
    """Words beside a point, `shift` printer's points away; at its height unless they are shifted up or down."""
    usual = {"fontsize": 10, "va": "baseline" if shift[1] else "center"}
    ax.annotate(words, at, shift, textcoords="offset points", **(usual | look))


def target(ax: Axes, words: str, *, x: float | None = None, y: float | None = None, at: float, **look: Any) -> None:
    """A dashed line at a target, upright at `x` or across at `y`, named at a share of the line's length."""
    color = look.setdefault("color", VERMILLION)
    if y is not None:
        ax.axhline(y, color=color, linestyle="--", linewidth=1.4)
        side = {"ha": "right" if at > 0.5 else "left"}
        note(ax, words, (at, y), (0, 4), xycoords=("axes fraction", "data"), **(side | look))
    else:
        ax.axvline(cast("float", x), color=color, linestyle="--", linewidth=1.4)
        away = -5 if look.get("ha") == "right" else 5
        note(ax, words, (x, at), (away, 0), xycoords=("data", "axes fraction"), **look)


def key_below(ax: Axes, *, columns: int, **look: Any) -> None:
    """The legend below the axes, where it covers nothing."""
    usual: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False, "fontsize": 10}
    ax.legend(ncols=columns, **(usual | look))


def log_axis(ax: Axes, which: Literal["x", "y"], form: str = _NUMBER, *, base: int = 10) -> None:
    """Make an axis logarithmic and write its numbers, those between the powers too where few powers are in sight."""
    scale, limits = (ax.set_xscale, ax.get_xlim) if which == "x" else (ax.set_yscale, ax.get_ylim)
    scale("log", base=base)
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = limits()
    axis.set_major_formatter(form)
    if base == 10 and high < _DECADES * low:
        ticker = require("matplotlib.ticker", extra="notebook")
        steps = np.arange(1, 10) if high < _FEW * low else np.array([1, 2, 3, 5])
        axis.set_major_locator(ticker.LogLocator(subs=steps.tolist()))
        axis.set_minor_locator(ticker.LogLocator(subs=np.arange(1, 10).tolist()))
    axis.set_minor_formatter("")


def ends(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Distances from a value down and up to the ends of its interval, as matplotlib wants them."""
    value, low, high = (frame[name].to_numpy(dtype=float) for name in (column, f"{column}_low", f"{column}_high"))
    distances: NDArray[np.float64] = np.maximum(np.stack([value - low, high - value]), 0.0)
    return distances
