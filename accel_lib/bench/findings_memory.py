"""What memory measurements say, computed from their table."""

from __future__ import annotations

import pandas as pd

from accel_lib.formatting import number, percent


def memory(
    frame: pd.DataFrame,
    *,
    fixed_bytes: int,
    bytes_a_token: float,
    length: int,
    failed_tokens: int,
    free_bytes: int,
    largest: int,
) -> str:
    """What an instance needs, how well that predicts a larger batch, and the largest safe batch."""
    start = f"An instance needs {number(fixed_bytes / 1e6)} MB and {number(bytes_a_token / 1e3)} kB a token"
    fits = f"{largest:,} texts of {length} tokens are safe in the {number(free_bytes / 1e9)} GB that are free"
    checked = frame[frame["role"] == "checked"]
    if failed_tokens:
        return f"{start}; {failed_tokens:,} tokens ran out of memory, so {fits}"
    if checked.empty:
        return f"{start}; {fits}"
    row = checked.iloc[-1]
    off = abs(row["predicted_mb"] / row["measured_mb"] - 1)
    said = f"batch {row['batch_size']:.0f}, which it had not seen, needed {number(row['measured_mb'])} MB"
    return f"{start}; {said}, {percent(off)} from the prediction; {fits}"
