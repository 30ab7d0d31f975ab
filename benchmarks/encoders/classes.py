"""Quality classes as the benchmark uses them: who takes part in a class, who wins it, and ratios within turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from accel_lib.stats import QualityClass

Row = dict[str, Any]

CLASSES: tuple[QualityClass, ...] = get_args(QualityClass)


def reaches(row: Row, wanted: str) -> bool:
    """Whether a row is in a class: in it or in a stricter one."""
    return row["class"] in CLASSES[: CLASSES.index(wanted) + 1]


def fastest(rows: Sequence[Row], wanted: str) -> Row | None:
    """The row with most texts a second, the median of the turns, of those in a class; None where none is."""
    return max((row for row in rows if reaches(row, wanted)), key=rate, default=None)


def rate(row: Row) -> float:
    """Texts a second, the median of the turns."""
    return float(np.median(row["rates"]))


def ratio(ours: Row, theirs: Row, column: str = "rates") -> float:
    """How many times as many texts as the other, the median of the ratios within each turn."""
    return float(np.median(np.array(ours[column]) / np.array(theirs[column])))


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Ours and theirs."""
    return [row for row in rows if row["ours"]], [row for row in rows if not row["ours"]]
