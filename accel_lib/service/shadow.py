"""Shadows: a copy of a request goes to the candidate after the answer has left, and is only compared with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from accel_lib.ragged import Ragged
from accel_lib.service.experiments import Experiments
from accel_lib.service.limits import Deadline
from accel_lib.service.path import InferencePath
from accel_lib.service.problems import Problem
from accel_lib.service.routing import Route
from accel_lib.service.served import Catalogue, ServedVersion

_AT_ONCE, _WAITING = 2, 64  # what is more is left out, so that a slow candidate holds up nobody
_PATIENCE_S = 30.0


class Shadows:
    """The shadow requests of one gateway; used from its event loop only."""

    def __init__(
        self, path: InferencePath, catalogue: Catalogue, experiments: Experiments, clock: Callable[[], float]
    ) -> None:
        self._path, self._catalogue, self._experiments, self._clock = path, catalogue, experiments, clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)

    def send(
        self, route: Route, sent: NDArray[np.float32], tokenize: Callable[[ServedVersion], Awaitable[Ragged]]
    ) -> None:
        """Have the shadow compute a request too.

        Parameters
        ----------
        route
            Of the request.
        sent
            What was answered, ``[n, dimension]``.
        tokenize
            Makes the rows of a version from the request's texts: the shadow may have another tokenizer.
        """
        if not route.shadow or len(self._tasks) >= _WAITING:
            return
        task = asyncio.create_task(self._compare(route, sent, tokenize))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(
        self, route: Route, sent: NDArray[np.float32], tokenize: Callable[[ServedVersion], Awaitable[Ragged]]
    ) -> None:
        async with self._places:
            copy, began = None, time.perf_counter()
            try:
                served = self._catalogue.find(route.model, route.shadow)
                rows, began = await tokenize(served), time.perf_counter()
                deadline = Deadline(self._clock() + _PATIENCE_S, self._clock)
                lowest = served.config.priority_levels
                copy = await self._path.infer(served, rows, deadline=deadline, priority=lowest)
            except Problem:
                pass  # counted as a failure of the shadow
            self._experiments.shadowed(route, sent, copy, compute_ms=(time.perf_counter() - began) * 1e3)
