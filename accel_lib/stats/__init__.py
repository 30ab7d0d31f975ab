"""Intervals, comparisons and agreement, in NumPy."""

from accel_lib.stats.intervals import (
    NEAREST,
    Verdict,
    compare_medians,
    cosine,
    kept,
    mean_interval,
    median_interval,
    nearest,
    overlap,
    percentile,
    percentile_interval,
    wilson,
)

__all__ = [
    "NEAREST",
    "Verdict",
    "compare_medians",
    "cosine",
    "kept",
    "mean_interval",
    "median_interval",
    "nearest",
    "overlap",
    "percentile",
    "percentile_interval",
    "wilson",
]
