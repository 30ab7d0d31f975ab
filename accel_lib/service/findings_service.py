"""What measurements of a gateway say, computed from their tables."""

from __future__ import annotations

import pandas as pd

from accel_lib.formatting import number, percent

_SMALL, _LITTLE = 0.5, 0.05


def waterfall(frame: pd.DataFrame) -> str:
    """The model's share of the first kind of request, and what the last kind saves over the one before it.

    Parameters
    ----------
    frame
        One row a kind of request: ``request``, ``compute_infer_ms``, ``total_ms``.
    """
    first = frame.iloc[0]
    share = first["compute_infer_ms"] / first["total_ms"]
    only = "only " if share < _SMALL else ""
    said = f"Of {number(first['total_ms'])} ms for {first['request']} the model takes {only}{percent(share)}"
    if len(frame) < 3:
        return said
    plain, packed = frame.iloc[-2], frame.iloc[-1]
    saved = 1 - packed["total_ms"] / plain["total_ms"]
    if saved > _LITTLE:
        return f"{said}; {packed['request']} is {percent(saved)} faster than {_tail(plain)}"
    if saved < -_LITTLE:
        return f"{said}; {packed['request']} is {percent(-saved)} slower than {_tail(plain)}"
    return f"{said}; {packed['request']} takes as long as {_tail(plain)}"


def payload(frame: pd.DataFrame) -> str:
    """What the second way to ask saves over the first, and what the last one costs.

    Parameters
    ----------
    frame
        One row a way: ``request``, ``bytes_each``, ``top10_overlap``; the first is the reference.
    """
    first, second, last = frame.iloc[0], frame.iloc[1], frame.iloc[-1]
    said = f"{second['request']}: {percent(second['bytes_each'] / first['bytes_each'])} of the bytes"
    said += f" and {percent(second['top10_overlap'])} of the ten nearest neighbours"
    if len(frame) < 3:
        return said
    return (
        f"{said}; {last['request']}: {percent(last['bytes_each'] / first['bytes_each'])} of the bytes, "
        f"{percent(last['top10_overlap'])} of the neighbours"
    )


def _tail(row: pd.Series) -> str:  # type: ignore[type-arg]
    return str(row["request"]).rpartition(", ")[2]
