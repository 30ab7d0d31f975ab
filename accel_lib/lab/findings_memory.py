"""What memory measurements say, computed from their table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from accel_lib.lab.words import number, percent

if TYPE_CHECKING:
    from accel_lib.lab.memory import MemoryModel


def memory(frame: pd.DataFrame, model: MemoryModel, free_bytes: int, largest: int) -> str:
    """What an instance needs, how well that predicts a larger batch, and the largest safe batch."""
    start = f"An instance needs {number(model.fixed_bytes / 1e6)} MB and {number(model.bytes_a_token / 1e3)} kB a token"
    fits = f"{largest:,} texts of {model.length} tokens are safe in the {number(free_bytes / 1e9)} GB that are free"
    checked = frame[frame["role"] == "checked"]
    if model.failed_tokens:
        return f"{start}; {model.failed_tokens:,} tokens ran out of memory, so {fits}"
    if checked.empty:
        return f"{start}; {fits}"
    row = checked.iloc[-1]
    off = abs(row["predicted_mb"] / row["measured_mb"] - 1)
    said = f"batch {row['batch_size']:.0f}, which it had not seen, needed {number(row['measured_mb'])} MB"
    return f"{start}; {said}, {percent(off)} from the prediction; {fits}"
