"""Asks an engine in this process, under the same two threads as in Triton."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from accel_lib.artifact import Artifact
from accel_lib.generate import Event, GenerationEngine, Sampling
from accel_lib.generate.loop import EngineLoop, Request
from accel_lib.generate.scheduler import Scheduler
from accel_lib.load.generator import Send
from accel_lib.load.prompts import LoadPrompt, RandomSource, TokenSource
from accel_lib.load.streams import TIMED_OUT, Tokens, of_events, text_source

_WATCHDOG_S = 60.0


class EngineTarget:
    """An engine in this process, under the same two threads as in Triton; it stays open."""

    url = ""

    def __init__(self, engine: GenerationEngine, artifact: Artifact | None) -> None:
        self.name = engine.name
        self._engine, self._artifact = engine, artifact

    def source(self) -> TokenSource:
        """The passages in the artifact's tokens; token ids by chance without one."""
        if self._artifact is None:
            return RandomSource(self._engine.limits.vocabulary, np.random.default_rng())
        return text_source(self._artifact)

    def payload(self, prompt: LoadPrompt, sampling: Sampling) -> Any:
        """Token ids and sampling."""
        return prompt.token_ids, sampling

    @contextlib.asynccontextmanager
    async def connect(self, url: str, timeout_s: float | None) -> AsyncIterator[Send]:  # noqa: ARG002
        """Put the engine under its threads."""
        engine, keys = _Lent(self._engine), itertools.count()
        loop = EngineLoop(lambda: engine, watchdog_s=_WATCHDOG_S, give_up=lambda: None)

        async def send(payload: tuple[Sequence[int], Sampling]) -> tuple[list[tuple[float, Event]], str]:
            receiver = _Receiver(asyncio.get_running_loop())
            prompt_ids, sampling = payload
            loop.add(Request(key=str(next(keys)), prompt_ids=prompt_ids, sampling=sampling, receiver=receiver))
            try:
                async with asyncio.timeout(timeout_s):
                    await receiver.ended.wait()
            except TimeoutError:
                return list(receiver.events), TIMED_OUT
            finally:
                receiver.gone = True
            return receiver.events, ""

        try:
            yield send
        finally:
            loop.close()

    def read(self, answer: Any, refusal: str) -> Tokens:
        """Events as they are."""
        return of_events(self.name, answer or (), refusal)


class _Receiver:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.events: list[tuple[float, Event]] = []
        self.ended = asyncio.Event()
        self.gone = False
        self._loop = loop

    def send(self, event: Event) -> None:
        self.events.append((time.perf_counter(), event))
        if event.ended and not self.gone:
            self._loop.call_soon_threadsafe(self.ended.set)

    def cancelled(self) -> bool:
        return self.gone


class _Lent:
    """Somebody else's engine, with admission above it: to close it is to end what runs in it."""

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine if isinstance(engine, Scheduler) else Scheduler(engine)
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.limits, self.stop_ids = engine.limits, engine.stop_ids
        self.stats, self.cancel = self._engine.stats, self._engine.cancel
        self._live: set[str] = set()

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self._engine.add(key, prompt_ids, sampling)
        self._live.add(key)

    def step(self) -> list[Event]:
        events = self._engine.step()
        self._live.difference_update(event.key for event in events if event.ended)
        return events

    def close(self) -> None:
        for key in self._live:
            self.cancel(key)
        while self._live:
            self.step()
