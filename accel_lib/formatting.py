"""Numbers and comparisons as a sentence says them."""

from __future__ import annotations

import abc
import html
import math
from collections.abc import Mapping
from typing import Any

UNCHANGED = "no significant difference"


class Summarized(abc.ABC):
    """What shows itself as its `summary`, a name and a value in each row."""

    @abc.abstractmethod
    def summary(self) -> dict[str, str]:
        """What a reader wants to know first."""

    def __repr__(self) -> str:
        return "\n".join(f"{key:>12}  {value}" for key, value in self.summary().items())

    def _repr_html_(self) -> str:
        cell = "style='text-align:left'"
        rows = self.summary().items()
        lines = (f"<tr><th {cell}>{key}</th><td {cell}>{html.escape(value)}</td></tr>" for key, value in rows)
        return f"<table>{''.join(lines)}</table>"


def number(value: float) -> str:
    """Two significant digits below ten, whole numbers with separators above.

    >>> number(0.04321), number(1.849), number(12.6), number(12_345.6)
    ('0.043', '1.8', '13', '12,346')
    """
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.{1 - math.floor(math.log10(abs(float(f'{value:.1e}'))))}f}"


def times(ratio: float, low: float = math.nan, high: float = math.nan) -> str:
    """A ratio with its interval: ``"2.1× (1.9–2.3×)"``; two significant digits, one decimal from ten on."""
    if math.isnan(low) or math.isnan(high):
        return f"{number(ratio)}×"
    ends = number(low), number(high)
    return f"{number(ratio)}× ({ends[0]}–{ends[1]}×)" if ends[0] != ends[1] else f"{number(ratio)}×"


def ratio(row: Mapping[Any, Any], column: str) -> str:
    """The ratio in a column of a table's row, with its interval from ``_low`` and ``_high``, as `times` writes it."""
    return times(row[column], row[f"{column}_low"], row[f"{column}_high"])


def differs(row: Mapping[Any, Any], column: str) -> bool:
    """Whether the interval of a ratio in a table's row leaves out 1."""
    return bool(row[f"{column}_low"] > 1 or row[f"{column}_high"] < 1)


def change(row: Mapping[Any, Any], column: str, what: str) -> str:
    """``"2.1× (1.9–2.3×) the throughput"``, or that there is no significant difference; `what` is the throughput."""
    return f"{ratio(row, column)} the {what}" if differs(row, column) else UNCHANGED


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage, never a false 0% or 100%: ``"88%"``, ``"99.7%"``, ``"0.4%"``; with `digits` at least."""
    if math.isnan(share):
        return "–"
    exact = round(100 * share, 9)
    while digits < 3 and round(exact, digits) in (0.0, 100.0) and exact not in (0.0, 100.0):
        digits += 1
    return f"{exact:.{digits}f}%"


def listed(items: list[str]) -> str:
    """Items as English lists them: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def capital(sentence: str) -> str:
    """The sentence with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]
