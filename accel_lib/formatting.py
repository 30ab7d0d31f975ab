"""Numbers as a sentence says them."""

from __future__ import annotations

import math


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


def percent(share: float) -> str:
    """A share as a percentage that never rounds to a false 0% or 100%: ``"88%"``, ``"99.7%"``, ``"0.4%"``."""
    if math.isnan(share):
        return "–"
    exact = 100 * share
    digits = 0
    while digits < 3 and round(exact, digits) in (0.0, 100.0) and exact not in (0.0, 100.0):
        digits += 1
    return f"{exact:.{digits}f}%"


def listed(items: list[str]) -> str:
    """Items as English lists them: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
