"""What a controller may turn, cheapest first: who is let in, how many instances, how batches are made."""

from __future__ import annotations

import threading
from typing import Protocol

from accel_lib.errors import AccelError, ServerError
from accel_lib.lab.memory import room_for
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
    """Lets requests in while fewer than `limit` are under way; takes effect at once. A limit of 0 lets all in."""

    name = "admission"

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.under_way = limit, 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Whether one more may go in; it must `leave` then."""
        with self._lock:
            if 0 < self.limit <= self.under_way:
                return False
            self.under_way += 1
            return True

    def leave(self) -> None:
        """One is answered, or lost."""
        with self._lock:
            self.under_way -= 1

    def current(self) -> dict[str, int]:
        """``{"limit": …}``."""
        return {"limit": self.limit}

    def apply(self, **settings: int) -> None:
        """Set the limit; those that are in stay in."""
        self.limit = settings["limit"]


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
