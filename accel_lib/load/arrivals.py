"""When requests are due: seconds from the start of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError

Times = NDArray[np.float64]


def constant(rate: float, seconds: float) -> Times:
    """Evenly spaced arrivals, `rate` per second.

    >>> constant(4, 1).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    return steps([(rate, seconds)], even=True)


def poisson(rate: float, seconds: float, *, seed: int = 0) -> Times:
    """Arrivals of independent callers, `rate` per second on average."""
    return steps([(rate, seconds)], seed=seed)


def steps(parts: Sequence[tuple[float, float]], *, even: bool = False, seed: int = 0) -> Times:
    """Arrivals at one rate after the other.

    Parameters
    ----------
    parts
        Pairs of requests/s and seconds.
    even
        Evenly spaced within a part; otherwise Poisson.
    seed
        Of the random numbers: the same seed gives the same arrivals.
    """
    random, begin, times = np.random.default_rng(seed), 0.0, []
    for rate, seconds in parts:
        if not (np.isfinite([rate, seconds]).all() and rate > 0 and seconds > 0):
            seen = f"{rate:g} per second for {seconds:g} s"
            raise AccelError("Arrivals need a rate and a time.", seen=seen, fix="both above 0")
        count = max(1, round(rate * seconds)) if even else int(random.poisson(rate * seconds))
        # Given their number, the arrivals of a Poisson process are uniform.
        spots = np.arange(count) / rate if even else np.sort(random.uniform(0, seconds, count))
        times.append(begin + spots)
        begin += seconds
    joined = np.concatenate(times) if times else np.array([])
    if not len(joined):
        raise AccelError("Nothing arrives in this time.", seen=f"{parts}", fix="a higher rate or more seconds")
    return joined
