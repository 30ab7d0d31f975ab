"""Find the setting of a served model that answers most within a latency target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accel_lib.triton.client import ServedModel
from accel_lib.tuning.sweep import Sweep, sweep

GRID: Mapping[str, Sequence[int]] = {
    "instance_count": (1, 2),
    "max_batch_tokens": (512, 2_048),
    "max_queue_delay_us": (0, 2_000),
}


def tune(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    concurrency: int = 16,
    seconds: float = 2,
    grid: Mapping[str, Sequence[int]] = GRID,
) -> Sweep:
    """Measure a small grid of settings under load, the best ones again, and say which to take.

    A short `accel_lib.tuning.sweep.sweep`: two rounds at most. The model's own setting is put back at the end, and
    after an error; ``.apply()`` takes the best one.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        What to send.
    p95_ms
        The latency target.
    concurrency
        Requests under way at any time.
    seconds
        How long to measure a setting, after up to a second of warm-up.
    grid
        Values to try, each at least one: see `accel_lib.tuning.sweep.sweep`.

    Returns
    -------
    Sweep

    Raises
    ------
    AccelError
        A target that is not above zero, or a grid that names something else.
    ServerError, RequestError
        No setting could be measured.

    Examples
    --------
    >>> accel.tune(mine, texts, p95_ms=50).apply()  # doctest: +SKIP
    """
    return sweep(served, texts, p95_ms=p95_ms, grid=grid, concurrency=concurrency, seconds=seconds, repeats=2)
