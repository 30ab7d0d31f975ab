"""What a controlled run says, computed from its windows."""

from __future__ import annotations

import pandas as pd

from accel_lib.formatting import listed, number, percent, times


def live(frame: pd.DataFrame, p95_ms: float) -> str:
    """In how many settled windows the target was met, and what was shed or lost."""
    settled = frame[frame["settled"]]
    part = settled if len(settled) else frame
    met, shed = int(part["met"].sum()), float((frame["shed"] * frame["offered_per_s"]).sum())
    which = "settled windows" if len(settled) else "windows"
    said = f"{met} of {len(part)} {which} met a p95 of {p95_ms:g} ms"
    said += f", with {number(float(frame['goodput_per_s'].mean()))} requests/s in time over the whole run"
    share = shed / float(frame["offered_per_s"].sum())
    if share:
        said += f"; {percent(share)} were not let in"
    lost = int(frame["lost"].sum())
    return f"{said}; {lost:,} lost" if lost else said


def against(frame: pd.DataFrame) -> str:
    """How a controller fares beside the best and the worst static setting, over all workloads and seeds."""
    ratio = frame["over_best"].to_numpy(dtype=float)
    low, high = float(ratio.min()), float(ratio.max())
    if low >= 0.97:
        start = "A tie with the best static setting, without knowing the load"
    elif low >= 0.9:
        start = f"The controller gives {percent(low)} of the best static setting's goodput, without knowing the load"
    else:
        start = f"The controller gives up {percent(1 - low)} of the best static setting's goodput"
    worst = float(frame["over_worst"].min())
    beside = f"{times(worst)} the worst's" if worst > 1.05 else "no more than the worst's"
    spread = f" ({percent(low)} to {percent(high)} over {len(frame)} runs)" if len(frame) > 1 else ""
    return f"{start}{spread}; {beside}"


def verdict(met: int, windows: int, lost: int) -> str:
    """The share of windows under the target, and whether a request was lost."""
    share = percent(met / windows) if windows else "–"
    kept = "no accepted request was lost" if not lost else f"{lost:,} accepted requests were lost"
    return listed([f"windows under the target: {share} ({met} of {windows})", kept])
