"""What the figures of experiments say, computed from their tables."""

from __future__ import annotations

import pandas as pd

from accel_lib.formatting import number


def narrowing(course: pd.DataFrame) -> str:
    """When a difference showed for good, or how small one would have had to be to stay hidden.

    Parameters
    ----------
    course
        As `accel_lib.service.trial.narrowing` makes it.
    """
    last = course.iloc[-1]
    outside = ((course["anytime_low"] > 0) | (course["anytime_high"] < 0)).to_numpy()
    ends = f"{100 * last['anytime_low']:+.1f} to {100 * last['anytime_high']:+.1f} points"
    if not outside[-1]:
        return f"After {int(last['requests']):,} requests the difference may still be anything from {ends}"
    hidden = (~outside).nonzero()[0]
    first = course["requests"].iloc[hidden[-1] + 1 if len(hidden) else 0]
    better = "more" if last["difference"] > 0 else "fewer"
    return f"From {int(first):,} requests on it is sure: {better} right answers, by {ends}"


def needed(frame: pd.DataFrame) -> str:
    """How the requests grow as the gain shrinks.

    Parameters
    ----------
    frame
        ``gain``, from 0 to 1, ascending, and ``requests``.
    """
    small, large = frame.iloc[0], frame.iloc[-1]
    return (
        f"A gain of {100 * large['gain']:g} points shows after {int(large['requests']):,} requests, one of "
        f"{100 * small['gain']:g} after {int(small['requests']):,}: {large['gain'] / small['gain']:.3g} times smaller, "
        f"{number(small['requests'] / large['requests'])} times as many"
    )
