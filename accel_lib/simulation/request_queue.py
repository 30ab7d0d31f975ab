"""Triton's queue of one model: priority levels, queue size, timeouts, and what becomes of late requests.

A request's own timeout counts only where the configuration allows it, and only as far as it shortens the default. A
late request is noticed when the batcher looks at its place in the queue, and not before; it is rejected, or delayed:
served once nothing in time is left of its level.

Source: scheduler_utils.cc of triton-inference-server/core, release 24.10.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from accel_lib.triton.config import ModelConfig

QUEUE_FULL = "The model's queue is full."
TIMED_OUT = "The request waited longer than the queue's timeout."
_NEVER = float("inf")


class _Level:
    """Requests of one priority: those in time, in their order, and behind them the delayed ones."""

    __slots__ = ("delayed", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.delayed: deque[int] = deque()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)


class RequestQueue:
    """The queue of one model; `refuse` is called with a request's number, the time in seconds, and the reason."""

    def __init__(self, config: ModelConfig, refuse: Callable[[int, float, str], None]) -> None:
        self.size = 0
        self._room = config.max_queue_size or _NEVER
        self._default = config.default_priority_level or 1
        self._levels = [_Level() for _ in range(max(1, config.priority_levels))]
        self._timeout_us = config.queue_timeout_us
        self._override = config.allow_timeout_override
        self._delays = config.timeout_action == "delay"
        self._refuse = refuse
        self._arrived: dict[int, float] = {}
        self._until: dict[int, float] = {}

    def add(self, request: int, now: float, priority: int, timeout_us: int) -> None:
        """Queue a request, or refuse it where the queue is full."""
        level = self._levels[min(priority or self._default, len(self._levels)) - 1]
        if len(level.waiting) + len(level.delayed) >= self._room:
            self._refuse(request, now, QUEUE_FULL)
            return
        level.waiting.append(request)
        self.size += 1
        self._arrived[request] = now
        if self._timeout_us:
            own = self._override and 0 < timeout_us < self._timeout_us
            self._until[request] = now + (timeout_us if own else self._timeout_us) / 1e6

    def oldest(self, count: int) -> float:
        """When the oldest of the first `count` requests arrived."""
        arrived, found = self._arrived, []
        for level in self._levels:
            if level.waiting and count > 0:
                found.append(arrived[level.waiting[0]])
                count -= len(level.waiting)
            if level.delayed and count > 0:
                found += [arrived[request] for request in islice(level.delayed, count)]
                count -= len(level.delayed)
        return min(found)

    def closest(self, count: int) -> float:
        """When the first of the first `count` requests will be late; infinity if none will."""
        if not self._timeout_us:
            return _NEVER
        found = [_NEVER]
        for level in self._levels:
            found += [self._until[request] for request in islice(level.waiting, max(count, 0))]
            count -= len(level)
        return min(found)

    def expire(self, now: float, room: int) -> None:
        """Refuse or delay what is late, as far as the batcher looks: not behind what fills a batch."""
        if not self._timeout_us:
            return
        for level in self._levels:
            place = 0
            while place < len(level.waiting) and place <= room:
                request = level.waiting[place]
                if now <= self._until[request]:
                    place += 1
                    continue
                del level.waiting[place]
                if self._delays:
                    level.delayed.append(request)
                    continue
                self._forget(request)
                self._refuse(request, now, TIMED_OUT)
            room -= len(level)
            if room < 0:
                return

    def take(self, count: int) -> list[int]:
        """Remove the first `count` requests and return them."""
        taken: list[int] = []
        for level in self._levels:
            for requests in (level.waiting, level.delayed):
                while requests and len(taken) < count:
                    taken.append(requests.popleft())
        for request in taken:
            self._forget(request)
        return taken

    def _forget(self, request: int) -> None:
        self.size -= 1
        del self._arrived[request]
        self._until.pop(request, None)
