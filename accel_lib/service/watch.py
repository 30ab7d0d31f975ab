"""Deadlines, metrics and the quota of one request to generate, from before its first token until after its last one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Generic, Protocol, TypeVar

from accel_lib.service.errors import Problem
from accel_lib.service.keys import Principal
from accel_lib.service.middleware import RequestContext
from accel_lib.service.services import Services

RETRY_S = 1.0
_LOOK_S = 0.5  # how often at least a waiting request looks whether the gateway ends
_SHORTEST_LOOK_S = 0.001
_Item = TypeVar("_Item")
_Given = TypeVar("_Given", covariant=True)

log = logging.getLogger("accel.gateway")


class Source(Protocol[_Given]):
    """Where the events of one choice come from."""

    def events(self) -> AsyncIterator[_Given | Problem]:
        """What comes, to the end; a failure is the last item."""

    def leave(self, reading: asyncio.Task[None]) -> None:
        """Ask for no more; `reading` is the task that runs `events`, and nobody needs what comes."""


class Watch(Generic[_Item]):
    """A context around one request; within it, `next` waits for `events`, and `tokens` and `finished` count.

    Parameters
    ----------
    model
        Whom it waits for.
    tokenize_s
        What the request had taken before it was sent.
    prompt_tokens
        Of the request; a caller that knows them only at the end sets them then, and `generated` too.
    """

    def __init__(
        self,
        services: Services,
        context: RequestContext,
        caller: Principal,
        model: str,
        *,
        tokenize_s: float = 0.0,
        prompt_tokens: int = 0,
    ) -> None:
        self._services, self._context, self._caller, self._model = services, context, caller, model
        self._tokenize_s = tokenize_s
        self.prompt_tokens = prompt_tokens
        self.generated = 0
        self._metrics = services.metrics.generation.of(model)
        self._deaths = services.supervisor.deaths[model]
        self.events: asyncio.Queue[tuple[int, _Item | Problem]] = asyncio.Queue()
        self._left_s = context.deadline.left_s
        self._look_s = min(_LOOK_S, max(self._left_s / 4, _SHORTEST_LOOK_S))
        self._until = math.inf  # while nobody waits
        self._timer: asyncio.TimerHandle | None = None
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        """Since it was sent."""
        return time.perf_counter() - self._began

    async def next(self) -> tuple[int, _Item]:
        """The next event of any choice; raises the `Problem` of one that failed, or 504."""
        self._until = time.perf_counter() + self._left_s
        choice, event = await self.events.get()
        self._until = math.inf
        if isinstance(event, Problem):
            raise event
        return choice, event

    def _look(self) -> None:
        """Look whether waiting has a sense, now and again; a timer for each event would take longer than the rest."""
        problem = self._hopeless()
        if problem is None:
            after_s = max(0.0, min(self._until - time.perf_counter(), self._look_s))
            self._timer = asyncio.get_running_loop().call_later(after_s, self._look)
        else:
            self.events.put_nowait((0, problem))

    def _hopeless(self) -> Problem | None:
        limits = self._services.limits
        if limits.draining and limits.drained_for_s >= self._services.settings.drain_s:
            return Problem(503, "The gateway is shutting down.", code="draining", retry_after_s=RETRY_S)
        if self._services.supervisor.deaths[self._model] != self._deaths:
            return engine_failed()
        if time.perf_counter() >= self._until:
            what = "first token" if self._first is None else "next token"
            return Problem(504, f"The deadline passed before the {what} was there.", code="deadline_exceeded")
        return None

    def tokens(self, choice: int, count: int) -> None:
        """Some tokens came."""
        if not count:
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = now
            self._metrics.first_token.observe(now - self._began + self._tokenize_s)
            self._metrics.waiting.dec()
            self._metrics.running.inc()
        if choice in self._last:
            each = (now - self._last[choice]) / count
            for _ in range(count):
                self._metrics.between_tokens.observe(each)
        self._last[choice] = now
        self.generated += count

    def finished(self, reason: str) -> None:
        """One choice came to its end; a reason that is no length is a stop to vLLM's metric."""
        self._metrics.success["length" if reason == "length" else "stop"].inc()

    def __enter__(self) -> None:
        self._metrics.waiting.inc()
        self._look()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        metrics, context, now = self._metrics, self._context, time.perf_counter()
        if self._timer is not None:
            self._timer.cancel()
        (metrics.waiting if self._first is None else metrics.running).dec()
        metrics.prompt_tokens.inc(self.prompt_tokens)
        metrics.generated_tokens.inc(self.generated)
        self._services.limits.spend(self._caller.id, self.generated)
        context.tokens = self.prompt_tokens + self.generated
        context.stages_s = {"tokenize": self._tokenize_s}
        if self._first is not None:
            context.stages_s |= {"first_token": self._first - self._began, "generation": now - self._first}
        if kind is None:
            metrics.duration.observe(now - self._began + self._tokenize_s)


def engine_failed() -> Problem:
    """The problem for a request whose engine died."""
    text = "The model's engine failed and is being started again; send the request again."
    return Problem(503, text, code="engine_failed", retry_after_s=RETRY_S)


@contextlib.asynccontextmanager
async def merged(sources: Sequence[Source[_Item]], watch: Watch[_Item]) -> AsyncIterator[None]:
    """Bring the events of all sources to a watch, until the context ends: then they are left."""

    async def pump(choice: int, source: Source[_Item]) -> None:
        try:
            async for event in source.events():
                watch.events.put_nowait((choice, event))
        except Exception:  # without an event, its client would wait until the deadline
            log.exception("a stream of events failed")
            problem = Problem(500, "The gateway failed on this request; its log has the cause.")
            watch.events.put_nowait((choice, problem))

    tasks = [asyncio.create_task(pump(choice, source)) for choice, source in enumerate(sources)]
    try:
        yield
    finally:
        for source, task in zip(sources, tasks, strict=True):
            source.leave(task)
        await asyncio.gather(*(task for task in tasks if task.cancelling()), return_exceptions=True)
