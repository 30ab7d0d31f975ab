"""CPU time of a served model: of its own processes while it executes, and of Triton's for every request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from accel_lib.triton.client import ServedModel


@contextlib.contextmanager
def processor_time(served: ServedModel) -> Iterator[dict[str, float]]:
    """Measure CPU time until the context ends, over load and no reload; yields a dict that is then filled.

    ``cores`` is what an execution keeps busy: CPU seconds of the models' Python processes, over the seconds in which
    instances executed. ``request_cpu`` is what a request costs on top, in Triton's own process, which receives, batches
    and responds: milliseconds. It stays empty where Triton's processes are not on this machine.
    """
    found: dict[str, float] = {}
    pid = served.server.pid
    before, counted = cpu_seconds(pid), served.statistics()
    yield found
    after, done = cpu_seconds(pid), served.statistics() - counted
    if pid in before and pid in after and done.busy_s and done.requests:
        models_s = sum(after[other] - before[other] for other in before.keys() & after.keys() if other != pid)
        found |= {"cores": models_s / done.busy_s, "request_cpu": (after[pid] - before[pid]) / done.requests * 1e3}


def cpu_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of a process and of those below it, by process; without those that have ended."""
    spent: dict[int, float] = {}
    if not pid:
        return spent
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
    return spent
