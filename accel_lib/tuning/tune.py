"""One call for the best setting of a served model, whatever it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from accel_lib.load.lengths import Lengths
from accel_lib.triton.client import ServedModel
from accel_lib.tuning.generation import GenerationSweep, tune_generation
from accel_lib.tuning.grid import SMALL_GRID, Grid, sweep
from accel_lib.tuning.results import Sweep


@overload
def tune(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float,
    concurrency: int = 16,
    rate: float | None = None,
    seconds: float = 2,
    grid: Grid = SMALL_GRID,
) -> Sweep: ...
@overload
def tune(
    served: ServedModel,
    *,
    ttft_ms: float,
    itl_ms: float,
    prompt_tokens: Lengths = (32, 96),
    output_tokens: Lengths = "exponential:48:192",
    rate: float | None = None,
    seconds: float = 15,
    rounds: int = 3,
    calibrate_s: float = 10,
    grid: Mapping[str, Sequence[int]] = ...,
) -> GenerationSweep: ...
def tune(served: ServedModel, texts: Sequence[str] | None = None, **settings: Any) -> Sweep | GenerationSweep:
    """Find the setting with most throughput within a target; the simplest of those that cannot be told apart.

    With texts and `p95_ms`: a small `sweep`, two rounds at most. A model that generates has two targets instead of
    one, `ttft_ms` and `itl_ms`: its steps are timed, all settings are simulated, and the most promising ones measured
    in turns. The model's own setting is restored at the end; ``.apply()`` of the result takes the best one.

    Parameters
    ----------
    texts, p95_ms, concurrency
        The workload of an encoder, the target of its p95, and requests in flight, where no `rate` is given.
    ttft_ms, itl_ms
        Targets for each request of a model that generates: to its first token, and between its tokens on average.
    prompt_tokens, output_tokens
        Lengths of its requests, as `generation_load_test` takes them.
    rate
        Requests/s to tune for; None takes that at which a model that generates is predicted to have most goodput.
    seconds
        How long to measure a setting in one round.
    rounds
        How often each setting is measured.
    calibrate_s
        How long to time steps, for each number of threads.
    grid
        Values to try; for a model that generates: ``rows``, ``step_tokens`` and ``threads``.

    Raises
    ------
    AccelError
        A target that is not above zero, or a grid that names something else.

    Examples
    --------
    >>> accel.tune(mine, texts, p95_ms=50, rate=100).apply()  # doctest: +SKIP
    >>> accel.tune(server.model("generation"), ttft_ms=1_000, itl_ms=100).apply()  # doctest: +SKIP
    """
    if texts is None:
        return tune_generation(served, **settings)
    return sweep(served, texts, repeats=2, **{"grid": SMALL_GRID} | settings)
