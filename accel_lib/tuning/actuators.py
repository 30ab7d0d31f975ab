"""What a controller may change, cheapest first: admission, number of instances, batching."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Mapping
from typing import Any, Protocol

from accel_lib.bench.memory import room_for
from accel_lib.errors import AccelError, ServerError
from accel_lib.triton.client import ServedModel


class Actuator(Protocol):
    """One way to change how a model is served; a change that fails raises `AccelError` and changes nothing."""

    def current(self) -> dict[str, int]:
        """Its settings and their values."""

    def apply(self, **settings: int) -> None:
        """Set some of them; returns once they are in force."""


class Admission:
    """Admits requests while fewer than `limit` are in flight, 0 for any number; takes effect at once.

    Further requests wait in turn, `timeout_ms` at most, and are rejected then. The event loop of the requests acquires
    and releases; another thread may `apply`.
    """

    def __init__(self, limit: int = 0, timeout_ms: int = 0) -> None:
        self.limit, self.timeout_ms, self.in_flight = limit, timeout_ms, 0
        self._waiting: collections.deque[asyncio.Future[bool]] = collections.deque()

    def try_acquire(self) -> bool:
        """Admit one more request, if that is possible without waiting."""
        free = not 0 < self.limit <= self.in_flight
        self.in_flight += free
        return free

    async def acquire(self) -> bool:
        """Whether one more request is admitted, as soon as that is known; it must `release` then."""
        if self.try_acquire():
            return True
        if not self.timeout_ms:
            return False
        loop = asyncio.get_running_loop()
        admitted = loop.create_future()
        self._waiting.append(admitted)
        timer = loop.call_later(self.timeout_ms / 1e3, _resolve, admitted, False)
        try:
            return bool(await admitted)
        finally:
            timer.cancel()

    def release(self) -> None:
        """A request is over: admit the one that waits longest."""
        self.in_flight -= 1
        while self._waiting and (self._waiting[0].done() or self.try_acquire()):
            _resolve(self._waiting.popleft(), True)

    def current(self) -> dict[str, int]:
        """``{"limit": …, "timeout_ms": …}``."""
        return {"limit": self.limit, "timeout_ms": self.timeout_ms}

    def apply(self, **settings: int) -> None:
        """Set limit and timeout, for requests to come."""
        self.limit, self.timeout_ms = settings["limit"], settings["timeout_ms"]


def _resolve(admitted: asyncio.Future[bool], value: bool) -> None:
    if not admitted.done():
        admitted.set_result(value)


class Instances:
    """The number of instances, which Triton changes in place: seconds, and the others continue."""

    names: tuple[str, ...] = ("instance_count",)

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def current(self) -> dict[str, int]:
        """Its settings as the model runs now."""
        return {name: int(getattr(self._served.config, name)) for name in self.names}

    def apply(self, **settings: int) -> None:
        """Change them on the running model."""
        running = self._served.config.instance_count
        copies = settings["instance_count"] - running if "instance_count" in settings else running
        reconfigure(self._served, settings, copies=max(copies, 0))


class Batching(Instances):
    """Largest batch and queue delay, which need a second copy of the model, loaded beside the one that responds."""

    names = ("max_batch_size", "max_queue_delay_us")


def reconfigure(served: ServedModel, settings: Mapping[str, Any], *, copies: int) -> None:
    """Configure a running model; `ServerError` if Triton refuses, or the memory lacks room for `copies` instances."""
    lack = room_for(served, copies)
    if lack:
        raise ServerError("The memory does not hold that.", seen=lack, fix="fewer instances, or a smaller model")
    served.configure(**settings)


def apply(actuator: Actuator, settings: Mapping[str, int]) -> str:
    """Apply settings; empty, or why that failed."""
    try:
        actuator.apply(**settings)
    except AccelError as error:
        return error.cause
    return ""
