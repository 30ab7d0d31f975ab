"""Pin the load generator and the server to different CPU cores, so that neither slows the other down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from accel_lib.triton.client import ServedModel


@contextlib.contextmanager
def apart(served: ServedModel, *others: int) -> Iterator[str]:
    """Give this process the last core, Triton and `others` the rest, until the context ends; yields that in words.

    The model is loaded again, with as many threads as it has cores. With one core nothing changes.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield "client and server share one core"
        return
    server = [pid for owner in (served.server.pid, *others) for pid in _family(owner)]
    try:
        _pin(server, cores[:-1])
        _pin([os.getpid()], cores[-1:])
        config = served.config
        served.server.load(served.name)  # from its files, since Triton would leave a model as it is that is unchanged
        served.server.load(served.name, config)
        yield f"client on 1 core, server on {len(cores) - 1}"
    finally:
        _pin([os.getpid(), *_family(served.server.pid), *others], cores)


@contextlib.contextmanager
def neighbours(served: ServedModel) -> Iterator[list[float]]:
    """Measure which share of the CPU other processes take until the context ends; yields a list that then holds it."""
    cores, found = sorted(os.sched_getaffinity(0)), list[float]()
    cores = sorted({*cores, *(core for pid in _family(served.server.pid) for core in os.sched_getaffinity(pid))})
    began, all_s, own_s = time.perf_counter(), _all_s(cores), _own_s(served)
    yield found
    spent = _all_s(cores) - all_s - (_own_s(served) - own_s)
    found.append(min(max(spent / len(cores) / max(time.perf_counter() - began, 1e-9), 0.0), 1.0))


def _all_s(cores: Sequence[int]) -> float:
    """Seconds that these cores have been busy."""
    every = psutil.cpu_times(percpu=True)
    return float(sum(sum(every[core]) - every[core].idle - every[core].iowait for core in cores if core < len(every)))


def _own_s(served: ServedModel) -> float:
    """CPU seconds of this process and the server, with those of the processes that a reload has ended."""
    total = 0.0
    for pid in {os.getpid(), *_family(served.server.pid)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = psutil.Process(pid).cpu_times()
            total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def _family(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _pin(processes: Sequence[int], cores: Sequence[int]) -> None:
    for pid in processes:
        with contextlib.suppress(FileNotFoundError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)
