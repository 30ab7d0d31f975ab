"""When requests are meant to be sent: seconds from the start of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError

Times = NDArray[np.float64]


def constant(rate: float, seconds: float) -> Times:
    """Evenly spaced arrivals, `rate` a second.

    >>> constant(4, 1).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    return steps([(rate, seconds)], even=True)


def poisson(rate: float, seconds: float, *, seed: int = 0) -> Times:
    """Arrivals of callers who know nothing of each other, `rate` a second on average."""
    return steps([(rate, seconds)], seed=seed)


def ramp(first: float, last: float, seconds: float, *, parts: int = 50, seed: int = 0) -> Times:
    """Poisson arrivals whose rate changes from `first` to `last` a second, in `parts` small steps."""
    rates = np.linspace(first, last, parts)
    return steps([(float(rate), seconds / parts) for rate in rates], seed=seed)


def steps(parts: Sequence[tuple[float, float]], *, even: bool = False, seed: int = 0) -> Times:
    """Arrivals at one rate after the other.

    Parameters
    ----------
    parts
        Pairs of requests a second and seconds.
    even
        Evenly spaced within a part; otherwise Poisson.
    seed
        Of the random numbers: the same seed gives the same arrivals.

    Returns
    -------
    float array
        Seconds from the start, in order.

    Raises
    ------
    AccelError
        A rate or a duration that is not above zero, or no arrival at all.
    """
    random, begin, times = np.random.default_rng(seed), 0.0, []
    for rate, seconds in parts:
        if not (np.isfinite([rate, seconds]).all() and rate > 0 and seconds > 0):
            raise AccelError(
                "Arrivals need a rate and a time.", seen=f"{rate:g} a second for {seconds:g} s", fix="both above 0"
            )
        count = max(1, round(rate * seconds)) if even else int(random.poisson(rate * seconds))
        # Given their number, the arrivals of a Poisson process are uniform.
        spots = np.arange(count) / rate if even else np.sort(random.uniform(0, seconds, count))
        times.append(begin + spots)
        begin += seconds
    joined = np.concatenate(times) if times else np.array([])
    if not len(joined):
        raise AccelError("Nothing arrives in this time.", seen=f"{parts}", fix="a higher rate or more seconds")
    return joined
