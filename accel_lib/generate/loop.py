"""Runs an engine for requests that come from any thread: one thread steps it, another hands out what it generated.

A client that has gone is noticed within a step. An engine that fails takes down the requests that it held, not the
ones that come later: it is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from accel_lib.errors import AccelError
from accel_lib.generate import Event, GenerationEngine, Sampling, Stats

_ASK_S = 0.02  # how often at least every receiver is asked whether its client has gone
_STATS_S = 0.5
_SENDING_SHARE = 0.1  # of the time of a step: how long at most the next one waits for what this one gave to be sent
_JOIN_S = 10.0
_Item = TypeVar("_Item")

log = logging.getLogger("accel.generate")


class Receiver(Protocol):
    """Where the events of one request go; used by one thread only."""

    def send(self, event: Event) -> None:
        """Pass an event on; the last one has ``event.ended``."""

    def cancelled(self) -> bool:
        """Whether nobody waits any longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine is asked for, and who waits."""

    key: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    receiver: Receiver


class EngineLoop:
    """The two threads around an engine.

    Parameters
    ----------
    make
        Makes the engine, in the thread that then owns it; called again after the engine failed.
    watchdog_s
        A step that takes longer is hopeless: its requests are failed and `give_up` is called.
    give_up
        Called when the engine hangs or cannot be made again, as a thread cannot be ended from outside.
    on_stats
        Gets the engine's counts after steps, at most twice per second.
    """

    def __init__(
        self,
        make: Callable[[], GenerationEngine],
        *,
        watchdog_s: float,
        give_up: Callable[[], None],
        on_stats: Callable[[Stats], None] = lambda _: None,
    ) -> None:
        self._make, self._watchdog_s, self._give_up, self._on_stats = make, watchdog_s, give_up, on_stats
        self._inbox: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()  # a text is a key to cancel
        self._outbox: queue.SimpleQueue[Sequence[Event] | None] = queue.SimpleQueue()
        self._receivers: dict[str, Receiver] = {}
        self._asked_to_cancel: set[str] = set()
        self._step_began_s: float | None = None
        self._sent = threading.Event()
        self._stats: Stats | None = None
        self.restarts = 0
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._step, args=(opened,), name="accel-engine", daemon=True),
            threading.Thread(target=self._send, name="accel-sender", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        failure = opened.get()
        if failure is not None:
            self._outbox.put(None)
            raise failure

    def add(self, request: Request) -> None:
        """Take a request; a refusal reaches its receiver as an event with an error."""
        self._inbox.put(request)

    def close(self) -> None:
        """End both threads and the engine; what still ran gets an error."""
        self._inbox.put(None)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _step(self, opened: queue.SimpleQueue[BaseException | None]) -> None:
        """The engine's thread."""
        try:
            engine = self._make()
        except BaseException as error:
            opened.put(error)
            return
        opened.put(None)
        running: set[str] = set()
        closed = False
        while not closed:
            try:
                closed = self._turn(engine, running)
            except Exception as error:
                log.exception("the engine failed")
                self._outbox.put([Event(key=key, error=_failure(error)) for key in running])
                running.clear()
                try:
                    engine = self._made_again(engine)
                except Exception:
                    log.exception("the engine could not be made again")
                    self._outbox.put(None)
                    self._give_up()
                    return
        self._outbox.put([Event(key=key, error="The model is being unloaded.") for key in running])
        self._outbox.put(None)
        engine.close()

    def _turn(self, engine: GenerationEngine, running: set[str]) -> bool:
        """What came in, and one step; whether it is the end. Without a request that runs it waits for one."""
        for item in _waiting(self._inbox, block=not running):
            if item is None:
                return True
            if isinstance(item, str):
                if item in running:
                    engine.cancel(item)
                continue
            self._receivers[item.key] = item.receiver
            self._outbox.put([])  # wakes the sender, which then looks after this one
            running.add(item.key)
            try:
                engine.add(item.key, item.prompt_ids, item.sampling)
            except AccelError as error:
                running.remove(item.key)
                self._outbox.put([Event(key=item.key, error=str(error))])
        if running:
            began_s = self._step_began_s = time.monotonic()
            events = engine.step()
            self._step_began_s = None
            self._stats = engine.stats()
            running.difference_update(event.key for event in events if event.ended)
            self._sent.clear()
            self._outbox.put(events)
            if events:  # an engine that holds Python's lock as it steps would keep the sender from sending until then
                self._sent.wait(_SENDING_SHARE * (time.monotonic() - began_s))
        return False

    def _made_again(self, engine: GenerationEngine) -> GenerationEngine:
        self._step_began_s = None
        try:
            engine.close()
        except Exception:
            log.exception("the failed engine did not close")
        self.restarts += 1
        return self._make()

    def _send(self) -> None:
        """The sender's thread; without it nobody would hear of anything, so its end is the end of all."""
        try:
            self._send_until_closed()
        except Exception:
            log.exception("the sender failed")
            self._give_up()

    def _send_until_closed(self) -> None:
        shown_s = 0.0
        while True:
            batches = _waiting(self._outbox, timeout_s=_ASK_S if self._receivers or self._stats else None)
            for event in merged(event for batch in batches if batch is not None for event in batch):
                self._pass_on(event)
            self._sent.set()
            if None in batches:
                return
            self._look_for_cancelled()
            if self._hangs():
                for key in tuple(self._receivers):
                    self._pass_on(Event(key=key, error=f"The engine took more than {self._watchdog_s:g} s for a step."))
                self._give_up()
                return
            if self._stats is not None and time.monotonic() - shown_s > _STATS_S:
                self._on_stats(self._stats)
                self._stats, shown_s = None, time.monotonic()

    def _pass_on(self, event: Event) -> None:
        receiver = self._receivers.get(event.key)
        if receiver is None:
            return
        if event.ended:
            del self._receivers[event.key]
            self._asked_to_cancel.discard(event.key)
        try:
            receiver.send(event)
        except Exception:  # this one's client has gone; the others must not notice
            log.exception("an event could not be sent")

    def _look_for_cancelled(self) -> None:
        for key, receiver in tuple(self._receivers.items()):
            if key not in self._asked_to_cancel and receiver.cancelled():
                self._asked_to_cancel.add(key)
                self._inbox.put(key)

    def _hangs(self) -> bool:
        began_s = self._step_began_s
        return began_s is not None and time.monotonic() - began_s > self._watchdog_s


def _waiting(source: queue.SimpleQueue[_Item], *, block: bool = True, timeout_s: float | None = None) -> list[_Item]:
    """What is in a queue by now; where it may wait, it waits for the first."""
    found: list[_Item] = []
    with contextlib.suppress(queue.Empty):
        found.append(source.get(block, timeout_s))
        while True:
            found.append(source.get_nowait())
    return found


def _failure(error: Exception) -> str:
    return f"The engine failed and is being started again ({type(error).__name__}); send the request again."


def merged(events: Iterable[Event]) -> list[Event]:
    """One event a request: those of several steps together, where sending takes longer than a step."""
    found: dict[str, Event] = {}
    for event in events:
        before = found.get(event.key)
        if before is not None:
            event = dataclasses.replace(
                event,
                token_ids=before.token_ids + event.token_ids,
                logprobs=before.logprobs + event.logprobs,
                finish=before.finish or event.finish,
                error=before.error or event.error,
            )
        found[event.key] = event
    return list(found.values())
