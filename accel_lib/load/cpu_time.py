"""What a served model takes of the processor: its own processes while it executes, Triton's for every request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from accel_lib.triton.client import ServedModel


@contextlib.contextmanager
def processor_time(served: ServedModel) -> Iterator[dict[str, float]]:
    """Measure the processor until the context ends, over load and no reload; yields a table that is then filled.

    ``cores`` is what an execution keeps busy: processor seconds of the models' Python processes, over the seconds in
    which instances executed. ``request_cpu`` is what a request costs beside that, in Triton's own process, which
    receives, batches and answers: milliseconds. It stays empty where Triton's processes are not on this machine.
    """
    found: dict[str, float] = {}
    pid = served._server.pid
    before, counted = _seconds(pid), served.statistics()
    yield found
    after, done = _seconds(pid), served.statistics() - counted
    if pid in before and pid in after and done.busy_s and done.requests:
        models_s = sum(after[other] - before[other] for other in before.keys() & after.keys() if other != pid)
        found |= {"cores": models_s / done.busy_s, "request_cpu": (after[pid] - before[pid]) / done.requests * 1e3}


def _seconds(pid: int) -> dict[int, float]:
    """Seconds that a process and those below it have computed, by process."""
    spent: dict[int, float] = {}
    if not pid:
        return spent
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
    return spent
