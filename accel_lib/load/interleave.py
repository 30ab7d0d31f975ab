"""Ways to serve under the same loads, in rounds that each start with another way: who is first does not decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from accel_lib.errors import AccelError
from accel_lib.load.runner import LoadRun
from accel_lib.progress import Progress

T = TypeVar("T")


def in_rounds(
    ways: Mapping[str, Callable[[], object]], loads: Mapping[str, Callable[[str, int], T]], *, repeats: int
) -> tuple[dict[tuple[str, str], list[T]], str]:
    """Measure every way at every load, `repeats` times.

    Parameters
    ----------
    ways
        What brings each about, by name, such as loading a model with another configuration.
    loads
        What measures at each load, from the way's name and the number of the round.
    repeats
        Rounds.

    Returns
    -------
    dict
        Measurements by way and load, as many as there were.
    str
        Why it ended early; empty if it did not.

    Raises
    ------
    AccelError
        Nothing to measure, or the first measurement failed.
    """
    if not ways or not loads or repeats < 1:
        fix = "name at least one way, one load and one round"
        raise AccelError("There is nothing to measure.", seen=f"{list(ways)}, {list(loads)}", fix=fix)
    measured: dict[tuple[str, str], list[T]] = {(way, load): [] for way in ways for load in loads}
    names, progress, stopped = list(ways), Progress("Experiment"), ""
    try:
        for turn in range(repeats):
            first = turn % len(names)
            for way in names[first:] + names[:first]:
                ways[way]()
                for load, measure in loads.items():
                    progress.tick(f"{way}, {load}, round {turn + 1} of {repeats}")
                    measured[way, load].append(measure(way, turn))
    except AccelError as error:
        if not any(measured.values()):
            raise
        stopped = f"{error.cause}{f' {error.seen}' if error.seen else ''}"
    finally:
        progress.clear()
    return {key: runs for key, runs in measured.items() if runs}, stopped


def whole(run: LoadRun) -> LoadRun:
    """A run that did not end early.

    Raises
    ------
    AccelError
        It did: with the reason.
    """
    if run.stopped:
        raise AccelError(run.stopped, fix="server.models() and server.log say more")
    return run
