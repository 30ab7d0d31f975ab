"""The web UI's look: plain functions from values to HTML and SVG, and one style sheet for light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_lib.formatting import number

STYLE = (Path(__file__).parents[2] / "data" / "dashboard.css").read_text(encoding="utf-8")
_STAGES = {"tokenize": "#e69f00", "queue": "#cc79a7", "inference": "#0072b2", "rest": "#8a949e"}
_COLOURS = ("var(--accent)", "var(--warm)", "#009e73", "#cc79a7", "#8a949e", "#b8860b", "#7a6ff0", "#a0522d")
_WIDE, _HIGH, _LEFT, _BOTTOM = 320.0, 110.0, 44.0, 18.0


def loading(what: str) -> str:
    """A thing that is on its way."""
    return f'<div class="note" role="status">{html.escape(what)} …</div>'


def empty(what: str) -> str:
    """Nothing there yet, and what would change that."""
    return f'<div class="note">{html.escape(what)}</div>'


def done(what: str) -> str:
    """An action that worked."""
    return f'<div class="note ok" role="status">{html.escape(what)}</div>'


def failure(cause: str, fix: str) -> str:
    """What went wrong, and what to do."""
    return f'<div class="note bad" role="alert"><b>{html.escape(cause)}</b><br>{html.escape(fix)}</div>'


def heading(title: str) -> str:
    """A section."""
    return f"<h2>{html.escape(title)}</h2>"


def cards(values: Sequence[tuple[str, float | str, str]]) -> str:
    """Name, value and unit of each."""
    return f'<div class="cards">{"".join(_card(*each) for each in values)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table without the columns that no row fills; numbers are on the right, and `Raw` cells are HTML already."""
    filled = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    head = "".join(f'<th scope="col">{html.escape(columns[i])}</th>' for i in filled)
    body = "".join(f"<tr>{''.join(_cell(row[i]) for i in filled)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Raw(str):
    """HTML that is shown as it is."""


def state(word: str, kind: str) -> Raw:
    """A coloured dot and a word, so that colour is not all that tells; kind is ok, warn or bad."""
    return Raw(f'<span class="state"><span class="dot {kind}"></span>{html.escape(word)}</span>')


def grid(parts: Sequence[str]) -> str:
    """Parts side by side where there is room."""
    return f'<div class="grid">{"".join(parts)}</div>'


def stages(times_ms: Mapping[str, float]) -> str:
    """One bar of a request's time by stage."""
    total = times_ms.get("total", sum(times_ms.values()))
    known = {name: value for name, value in times_ms.items() if name != "total"}
    parts = {**known, "rest": max(0.0, total - sum(known.values()))}
    spans = "".join(
        f'<span style="width:{100 * value / max(total, 1e-9):.2f}%;background:{_STAGES[name]}"></span>'
        for name, value in parts.items()
    )
    legend = "".join(
        f'<span><i style="background:{_STAGES[name]}"></i>{name} {number(value)} ms</span>'
        for name, value in parts.items()
    )
    label = f"{number(total)} ms in all: " + ", ".join(f"{name} {number(value)} ms" for name, value in parts.items())
    return f'<div class="bar" role="img" aria-label="{label}">{spans}</div><div class="legend">{legend}</div>'


def lines(title: str, unit: str, series: Mapping[str, Sequence[float]], seconds: int) -> str:
    """Time series in one small chart: newest at the right, zero at the bottom, the last value in the legend."""
    values = [value for points in series.values() for value in points if not math.isnan(value)]
    top = _nice(max(values, default=0.0))
    marks = "".join(_gridline(share, top) for share in (0.0, 0.5, 1.0))
    paths = "".join(_path(*each, top, seconds) for each in zip(series.values(), _COLOURS, strict=False))
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)} <b>{_last(points)}</b></span>'
        for (name, points), colour in zip(series.items(), _COLOURS, strict=False)
    )
    axis = f'<text x="{_LEFT}" y="{_HIGH - 3}" fill="var(--soft)">{seconds} s ago</text>'
    axis += f'<text x="{_WIDE - 4}" y="{_HIGH - 3}" text-anchor="end" fill="var(--soft)">now</text>'
    label = f"{title}, {unit}: " + ", ".join(f"{name} {_last(points)}" for name, points in series.items())
    return _chart(f"{title}, {unit}", label, marks + paths + axis, legend)


def bars(title: str, axis: str, measured: Mapping[int, float], predicted: Mapping[int, float] | None = None) -> str:
    """Shares by batch size: measured ones solid, the simulator's beside them in outline."""
    sizes = sorted({*measured, *(predicted or {})})
    if not sizes:
        return empty("No batch yet: send some requests.")
    top = _nice(max([*measured.values(), *(predicted or {}).values()]))
    step = (_WIDE - _LEFT - 6) / len(sizes)
    width = min(26.0, step * (0.38 if predicted else 0.7))
    drawn = ""
    for place, size in enumerate(sizes):
        middle = _LEFT + step * (place + 0.5)
        drawn += _bar(
            middle - (width if predicted else width / 2), width, measured.get(size, 0.0), top, "var(--accent)"
        )
        if predicted:
            drawn += _bar(middle, width, predicted.get(size, 0.0), top, "var(--warm)")
        if len(sizes) <= 16 or place % 4 == 0:
            drawn += f'<text x="{middle:.1f}" y="{_HIGH - 4}" text-anchor="middle" fill="var(--soft)">{size}</text>'
    marks = "".join(_gridline(share, top) for share in (0.0, 0.5, 1.0))
    legend = '<span><i style="background:var(--accent)"></i>measured</span>'
    legend += '<span><i style="background:var(--warm)"></i>simulated</span>' if predicted else ""
    return _chart(f"{title}, {axis}", title, marks + drawn, legend)


def _card(name: str, value: float | str, unit: str) -> str:
    shown = value if isinstance(value, str) else number(value)
    return (
        f'<div class="card"><div class="name">{html.escape(name)}</div><div class="value">{html.escape(shown)}'
        f'<span class="unit">{html.escape(unit)}</span></div></div>'
    )


def _chart(title: str, label: str, drawn: str, legend: str) -> str:
    view = f'viewBox="0 0 {_WIDE:.0f} {_HIGH:.0f}"'
    return (
        f'<div class="card"><div class="name">{html.escape(title)}</div>'
        f'<svg {view} role="img" aria-label="{html.escape(label)}">{drawn}</svg>'
        f'<div class="legend">{legend}</div></div>'
    )


def _cell(value: Any) -> str:
    if isinstance(value, Raw):
        return f"<td>{value}</td>"
    if isinstance(value, int | float):
        return f'<td class="num">{number(value)}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _y(value: float, top: float) -> float:
    return 6 + (_HIGH - _BOTTOM - 6) * (1 - value / top)


def _gridline(share: float, top: float) -> str:
    y = _y(share * top, top)
    line = f'<line x1="{_LEFT}" x2="{_WIDE - 4}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
    return (
        f'{line}<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="var(--soft)">{_short(share * top)}</text>'
    )


def _path(points: Sequence[float], colour: str, top: float, seconds: int) -> str:
    step = (_WIDE - _LEFT - 4) / max(seconds - 1, 1)
    placed = [(_WIDE - 4 - step * back, value) for back, value in enumerate(reversed(points))]
    pieces: list[list[str]] = [[]]
    for x, value in placed:
        if math.isnan(value):
            pieces.append([])
        else:
            pieces[-1].append(f"{x:.1f},{_y(value, top):.1f}")
    drawn = ""
    for piece in pieces:
        if len(piece) > 1:
            drawn += f'<polyline points="{" ".join(piece)}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        elif piece:
            left, high = piece[0].split(",")
            drawn += f'<circle cx="{left}" cy="{high}" r="1.8" fill="{colour}"/>'
    return drawn


def _bar(x: float, width: float, value: float, top: float, colour: str) -> str:
    y, base = _y(value, top), _y(0.0, top)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, base - y):.1f}" rx="2" fill="{colour}"/>'
    )


def _last(points: Sequence[float]) -> str:
    return number(points[-1]) if points else "–"


def _nice(value: float) -> float:
    """The next round number, so that the axis keeps still while values move."""
    if value <= 0 or math.isnan(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if value <= step * power)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
