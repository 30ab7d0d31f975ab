"""What a watched model's time series say, computed from their table."""

from __future__ import annotations

import pandas as pd

from accel_lib.formatting import number, percent

_NOTABLE = 0.02  # share of the time from which on the delay's cost is worth a word


def watching(frame: pd.DataFrame, max_batch_size: int) -> str:
    """When requests waited longest, how full the batches were, what the delay cost, and whether a reload was in it.

    Parameters
    ----------
    frame
        One row an interval, as `accel_lib.load.monitor.Watched` describes it.
    max_batch_size
        Rows that a batch could have had.
    """
    active = frame[frame["requests_per_s"] > 0]
    if active.empty:
        return "Nothing was asked while it was watched"
    worst = active.iloc[int(active["queue_ms"].to_numpy().argmax())]
    waited = worst["queue_ms"]
    if waited > active["model_ms"].median():
        said = f"Requests waited longest {number(worst['time_s'])} s in, {number(waited)} ms each"
    else:
        said = f"Requests never waited longer than the model took: {number(waited)} ms at most"
    sizes = active["sentences_per_s"] * active["seconds"]
    executions = sizes / active["mean_batch_size"].clip(lower=1e-9)
    mean = float(sizes.sum() / max(executions[active["mean_batch_size"] > 0].sum(), 1e-9))
    said += f"; {number(mean)} rows a batch on average, {percent(mean / max(max_batch_size, 1))} of what it may hold"
    lost = float((active["delay_loss"] * active["seconds"]).sum() / active["seconds"].sum())
    if lost > _NOTABLE:
        said += f"; waiting for fuller batches cost at most {percent(lost)} of the time"
    resets = int(frame["reset"].sum())
    if resets:
        said += f". Loaded anew {'once' if resets == 1 else f'{resets} times'} meanwhile, which set the counts back"
    return said
