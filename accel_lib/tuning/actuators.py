"""What a controller may turn, cheapest first: who is let in, how many instances, how batches are made."""

from __future__ import annotations

import asyncio
import collections
from typing import Protocol

from accel_lib.bench.memory import room_for
from accel_lib.errors import AccelError, ServerError
from accel_lib.triton.client import ServedModel


class Actuator(Protocol):
    """One way to change how a model is served.

    `current` tells its settings by name; `apply` changes some of them and returns once they are in force. A change
    that fails raises `AccelError` and leaves everything as it was.
    """

    name: str

    def current(self) -> dict[str, int]:
        """Its settings and their values."""

    def apply(self, **settings: int) -> None:
        """Set some of them."""


class Admission:
    """Lets requests in while fewer than `limit` are under way, 0 for any number; takes effect at once.

    One that finds no place waits for it in turn, `timeout_ms` at most, and is turned away then. The event loop of the
    requests enters and leaves; another thread may `apply`.
    """

    name = "admission"

    def __init__(self, limit: int = 0, timeout_ms: int = 0) -> None:
        self.limit, self.timeout_ms, self.under_way = limit, timeout_ms, 0
        self._waiting: collections.deque[asyncio.Future[bool]] = collections.deque()

    def try_acquire(self) -> bool:
        """Take a place, if one is free, without waiting."""
        free = not 0 < self.limit <= self.under_way
        self.under_way += free
        return free

    async def acquire(self) -> bool:
        """Whether one more may go in, as soon as that is known; it must `release` then."""
        if self.try_acquire():
            return True
        if not self.timeout_ms:
            return False
        loop = asyncio.get_running_loop()
        place = loop.create_future()
        self._waiting.append(place)
        timer = loop.call_later(self.timeout_ms / 1e3, _answer, place, False)
        try:
            return bool(await place)
        finally:
            timer.cancel()

    def release(self) -> None:
        """One is answered, or lost: who waits longest gets its place."""
        self.under_way -= 1
        while self._waiting and (self._waiting[0].done() or self.try_acquire()):
            _answer(self._waiting.popleft(), True)

    def current(self) -> dict[str, int]:
        """``{"limit": …, "timeout_ms": …}``."""
        return {"limit": self.limit, "timeout_ms": self.timeout_ms}

    def apply(self, **settings: int) -> None:
        """Set limit and timeout; those that are in stay in, those that wait keep their timeout."""
        self.limit, self.timeout_ms = settings["limit"], settings["timeout_ms"]


def _answer(place: asyncio.Future[bool], entered: bool) -> None:
    if not place.done():
        place.set_result(entered)


class Instances:
    """The number of instances, which Triton changes in place: seconds, and the others go on."""

    name = "instances"
    _names: tuple[str, ...] = ("instance_count",)

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def current(self) -> dict[str, int]:
        """Its settings as the model runs now."""
        config = self._served.config
        return {name: int(getattr(config, name)) for name in self._names}

    def apply(self, **settings: int) -> None:
        """Change them on the running model.

        Raises
        ------
        ServerError
            The memory does not hold the new instances beside what runs, or Triton refused.
        """
        lack = room_for(self._served, self._added(settings))
        if lack:
            raise ServerError("The memory does not hold that.", seen=lack, fix="fewer instances, or a smaller model")
        self._served.configure(**settings)

    def _added(self, settings: dict[str, int]) -> int:
        return max(0, settings["instance_count"] - self._served.config.instance_count)


class Batching(Instances):
    """Largest batch and queue delay, which need a second copy of the model, loaded beside the one that answers."""

    name = "batching"
    _names = ("max_batch_size", "max_queue_delay_us")

    def _added(self, settings: dict[str, int]) -> int:  # noqa: ARG002
        return self._served.config.instance_count


def apply(actuator: Actuator, settings: dict[str, int]) -> str:
    """Apply settings; empty, or why that failed."""
    try:
        actuator.apply(**settings)
    except AccelError as error:
        return error.cause
    return ""
