"""Shadow traffic: copies of requests go to a candidate version after the response left, and are compared with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from accel_lib.ragged import Ragged
from accel_lib.service.abtest.experiments import Experiments
from accel_lib.service.abtest.routing import Route
from accel_lib.service.catalog import Catalog, ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.limits import Deadline
from accel_lib.service.triton_client import TritonClient

_CONCURRENT = 2
_MOST_WAITING = 64  # more are left out, so that a slow candidate delays no response
_DEADLINE_S = 30.0

Tokenize = Callable[[ServedVersion], Awaitable[Ragged]]


class Shadows:
    """The shadow requests of one gateway; used from its event loop only."""

    def __init__(
        self, triton: TritonClient, catalog: Catalog, experiments: Experiments, clock: Callable[[], float]
    ) -> None:
        self._triton, self._catalog, self._experiments, self._clock = triton, catalog, experiments, clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_CONCURRENT)

    def send(self, route: Route, sent: NDArray[np.float32], tokenize: Tokenize) -> None:
        """Have the shadow compute a request too.

        Parameters
        ----------
        sent
            What was answered, ``[n, dimension]``.
        tokenize
            Makes the rows of a version from the request's texts: the shadow may have another tokenizer.
        """
        if not route.shadow or len(self._tasks) >= _MOST_WAITING:
            return
        task = asyncio.create_task(self._compare(route, sent, tokenize))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, route: Route, sent: NDArray[np.float32], tokenize: Tokenize) -> None:
        async with self._places:
            copy, began = None, time.perf_counter()
            try:
                served = self._catalog.find(route.model, route.shadow)
                rows, began = await tokenize(served), time.perf_counter()
                deadline = Deadline(self._clock() + _DEADLINE_S, self._clock)
                lowest = served.config.priority_levels
                copy = await self._triton.infer(served, rows, deadline=deadline, priority=lowest)
            except Problem:
                pass  # counted as a failure of the shadow
            self._experiments.shadowed(route, sent, copy, compute_ms=(time.perf_counter() - began) * 1e3)
