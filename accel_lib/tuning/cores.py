"""How many instances of a model, and how many threads each: measured, as no rule holds on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accel_lib.machine import inspect_machine
from accel_lib.triton.client import ServedModel
from accel_lib.tuning.sweep import Sweep, sweep

_INSTANCES = (1, 2, 4, 8)  # each holds the model and a Python process of its own


def core_settings(cores: int) -> list[dict[str, int]]:
    """Ways to share cores among instances, from one with all of them to many with few, and one with half of them.

    Half, as two threads of one core share its arithmetic, and as the clients need a core where they run here too.

    Examples
    --------
    >>> [tuple(one.values()) for one in core_settings(4)]
    [(1, 4), (2, 2), (4, 1), (1, 2)]
    """
    shared = [(count, cores // count) for count in _INSTANCES if count <= cores]
    pairs = dict.fromkeys([*shared, (1, max(1, cores // 2))])
    return [{"instance_count": count, "threads": threads} for count, threads in pairs]


def share_cores(
    served: ServedModel,
    texts: Sequence[str],
    *,
    p95_ms: float = math.inf,
    concurrency: int = 16,
    seconds: float = 2,
    repeats: int = 5,
) -> Sweep:
    """Measure how to share this machine's cores among instances of a served model and their threads.

    Without a choice there is one instance, and an instance's engine has its share of the cores.

    Parameters
    ----------
    served
        A model of a running server, on this machine's CPU.
    texts
        What to send.
    p95_ms
        The latency target; by default throughput alone decides.
    concurrency
        Requests under way at any time.
    seconds
        How long to measure a setting in one round.
    repeats
        Rounds at most, for those that may be the best.

    Returns
    -------
    Sweep
        ``.apply()`` sets the running model, ``.write()`` its ``config.pbtxt``; where no difference is significant it is
        the fewest instances and threads.

    Raises
    ------
    ServerError, RequestError
        No setting could be measured.

    Examples
    --------
    >>> share_cores(server.model("embedding"), texts).write()  # doctest: +SKIP
    """
    grid = core_settings(inspect_machine().cores)
    return sweep(served, texts, p95_ms=p95_ms, grid=grid, concurrency=concurrency, seconds=seconds, repeats=repeats)
