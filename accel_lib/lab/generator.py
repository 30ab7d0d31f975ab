"""A closed loop of serialized requests: an event loop in its own thread that sends, receives and reads the clock."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from accel_lib.errors import require

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_PAUSE_S = 0.01  # after a refusal, so that a full queue is not asked without end
_DRAIN_S = 10.0  # how long requests that are under way at the end may take
# What Triton or gRPC says when no later request can succeed either.
_GONE = re.compile(r"unknown model|not ready|failed to connect|[Ss]ocket|[Cc]onnection|stopping|unavailable$")


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One request: its text's index, when it was sent and over (``time.perf_counter``), its answer or refusal."""

    index: int
    started_s: float
    ended_s: float
    answer: bytes | None
    refusal: str


class Generator:
    """Keeps `concurrency` requests under way from entering the context to leaving it.

    Parameters
    ----------
    url
        Address of Triton's gRPC service.
    payloads
        Serialized requests, sent in turn.
    concurrency
        Requests under way at any time.
    """

    def __init__(self, url: str, payloads: Sequence[bytes], concurrency: int) -> None:
        self._grpc = require("grpc.aio", extra="triton")
        self.replies: list[Reply] = []
        self.stopped = ""
        self._url, self._payloads, self._concurrency = url, payloads, concurrency
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ended = threading.Event()
        self._patience_s = _DRAIN_S
        self._thread = threading.Thread(target=self._run, name="accel-load", daemon=True)

    def wait(self, seconds: float) -> None:
        """Let it run; returns early when no further request can succeed."""
        self._ended.wait(seconds)  # not join: an interrupted join takes a running thread for an ended one (bpo-45274)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # an interrupt waits for nothing
            self._patience_s = 0.0
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        finally:
            self._ended.set()

    async def _main(self) -> None:
        async with self._grpc.insecure_channel(self._url, options=[("grpc.enable_http_proxy", 0)]) as channel:
            send, turns = channel.unary_unary(_METHOD), itertools.count()
            clients = [asyncio.create_task(self._client(send, turns)) for _ in range(self._concurrency)]
            await self._stop.wait()
            _, late = await asyncio.wait(clients, timeout=self._patience_s)
            for client in late:
                client.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _client(self, send: Any, turns: itertools.count[int]) -> None:
        while not self._stop.is_set():
            index = next(turns) % len(self._payloads)
            answer, refusal, started = None, "", time.perf_counter()
            try:
                answer = await send(self._payloads[index])
            except self._grpc.AioRpcError as error:
                refusal = error.details() or error.code().name
            self.replies.append(Reply(index, started, time.perf_counter(), answer, refusal))
            if refusal and _GONE.search(refusal):
                self.stopped = self.stopped or refusal
                self._stop.set()
            elif refusal:
                await asyncio.sleep(_PAUSE_S)
