"""Admission above any engine: by rows and by tokens of the cache, first come, first served within a priority.

No engine bounds both safely by itself: one kills its other requests when the cache is full, one ignores its limit of
rows. A request is handed on when a row is free and the cache has room for its prompt and its longest answer, so an
admitted request always finishes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from accel_lib.errors import EngineError, RequestError
from accel_lib.generate import Event, GenerationEngine, Sampling, Stats
from accel_lib.generate.requests import cache_tokens, check_request

Policy = Literal["continuous", "static"]


@dataclasses.dataclass(frozen=True)
class _Waiting:
    prompt_ids: tuple[int, ...]
    sampling: Sampling


class Scheduler:
    """An engine that holds more requests than run at once.

    Parameters
    ----------
    engine
        What generates; it is closed with this.
    max_waiting
        Requests that wait at most; `add` refuses more. None: any number.
    policy
        ``"continuous"``: a request joins as soon as it has room. ``"static"``: only when everything that ran has ended,
        as a batch that nobody joins; rows that end early are not computed on, as padded ones would be.

    Raises
    ------
    EngineError
        There is no such policy.
    """

    def __init__(
        self, engine: GenerationEngine, *, max_waiting: int | None = None, policy: Policy = "continuous"
    ) -> None:
        if policy not in get_args(Policy):
            known = ", ".join(get_args(Policy))
            raise EngineError("There is no such policy of admission.", seen=repr(policy), fix=f"one of: {known}")
        self.policy = policy
        self.engine = engine
        self.max_waiting = max_waiting
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.limits, self.stop_ids = engine.limits, engine.stop_ids
        self._waiting: collections.OrderedDict[str, _Waiting] = collections.OrderedDict()
        self._reserved: dict[str, int] = {}
        self._events: list[Event] = []

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request; raises `RequestError` for a bad one, a key that is live, and a full queue."""
        check_request(self.limits, prompt_ids, sampling)
        if key in self._waiting or key in self._reserved:
            raise RequestError("A request of that key is live.", seen=key, fix="give each request a key of its own")
        if self.max_waiting is not None and len(self._waiting) >= self.max_waiting:
            raise RequestError("The queue is full.", seen=f"{len(self._waiting)} requests wait", fix="try again later")
        self._waiting[key] = _Waiting(tuple(prompt_ids), sampling)

    def cancel(self, key: str) -> None:
        """End a request, running or waiting; its last event comes with the next step."""
        if self._waiting.pop(key, None):
            self._events.append(Event(key=key, finish="cancelled"))
        elif key in self._reserved:
            self.engine.cancel(key)

    def step(self) -> list[Event]:
        """Hand on what has room, and let the engine step."""
        self._admit()
        events, self._events = self._events, []
        if self._reserved:
            events += self.engine.step()
        for event in events:
            if event.ended:
                self._reserved.pop(event.key, None)
        return events

    def _admit(self) -> None:
        if self.policy == "static" and self._reserved:
            return
        while self._waiting and len(self._reserved) < self.limits.rows:
            key, request = min(self._waiting.items(), key=lambda waiting: waiting[1].sampling.priority)  # the first one
            needed = cache_tokens(self.limits, len(request.prompt_ids), request.sampling.max_tokens)
            if sum(self._reserved.values()) + needed > self.limits.cache_tokens:
                return  # the first in line waits for room, and nobody overtakes it
            del self._waiting[key]
            try:
                self.engine.add(key, request.prompt_ids, request.sampling)
            except RequestError as error:
                self._events.append(Event(key=key, error=str(error)))
            else:
                self._reserved[key] = needed

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits, or has an event to come."""
        return not (self._waiting or self._reserved or self._events)

    def stats(self) -> Stats:
        """The engine's, with what waits here, and the share of the cache that is promised."""
        theirs = self.engine.stats()
        return dataclasses.replace(
            theirs,
            running=len(self._reserved),
            waiting=len(self._waiting),
            cache_use=sum(self._reserved.values()) / self.limits.cache_tokens,
        )

    def close(self) -> None:
        """Close the engine; what still ran or waited gets no further event."""
        self._waiting.clear()
        self._reserved.clear()
        self.engine.close()
