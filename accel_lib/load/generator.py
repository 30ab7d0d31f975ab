"""Load generator: sends serialized requests from an event loop in a thread of its own, and times every response."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
import selectors
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, Self

from accel_lib.errors import require
from accel_lib.triton.calls import response

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_PAUSE_S = 0.01  # after a refusal, so that a full queue is not asked without end
_DRAIN_S = 10.0
CLOSE_S = 1.0  # for calls that were left to end by themselves
# What Triton or gRPC says when no later request can succeed either.
_GONE = re.compile(
    r"unknown model|not ready|failed to connect|[Ss]ocket|[Cc]onnection|[Cc]onnect call|stopping|unavailable$"
)

SHED = "not admitted"

Send = Callable[[Any], Awaitable[tuple[Any, str]]]  # a payload -> its response, and the error if there is one
Connect = Callable[[str, float | None], AbstractAsyncContextManager[Send]]  # address and timeout in seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One request: its payload's index, when it was due, sent and over (``time.perf_counter``), response or error."""

    index: int
    due_s: float
    sent_s: float
    ended_s: float
    answer: Any
    refusal: str


class Gate(Protocol):
    """Admission control: a request that could `acquire` has to `release`, once it is over."""

    async def acquire(self) -> bool:
        """Whether one more request is admitted."""

    def release(self) -> None:
        """A request is over."""


class Generator:
    """Sends from entering the context to leaving it: a closed loop, or an open one when a schedule is given.

    Parameters
    ----------
    url
        Address of Triton's gRPC service, or of its HTTP service.
    payloads
        Serialized requests, sent in turn: messages for gRPC; pairs of path with headers and body for HTTP.
    concurrency
        Closed loop: requests in flight at any time.
    schedule_s
        Open loop: when each request is to be sent, in seconds from the start, whatever has become of the others.
    connections
        Open loop: most requests in flight, as of a client that has that many connections; further ones are sent late.
        None sends every request when it is due.
    protocol
        How to send and receive; for what is neither, a function that connects.
    timeout_s
        How long a client waits for a response.
    requests
        Closed loop: send that many in all. None goes on until the context ends.
    drain_s
        How long requests that are in flight at the end may take.
    gate
        Open loop: asked before each request is sent; one that it rejects is over, refused as `SHED`.
    """

    def __init__(
        self,
        url: str,
        payloads: Sequence[Any],
        *,
        concurrency: int = 1,
        schedule_s: Iterable[float] | None = None,
        connections: int | None = None,
        protocol: Literal["grpc", "http"] | Connect = "grpc",
        timeout_s: float | None = None,
        requests: int | None = None,
        drain_s: float = _DRAIN_S,
        gate: Gate | None = None,
    ) -> None:
        self._gate = gate
        self.replies: list[Reply] = []
        self.stopped = ""
        self.busy_s = 0.0  # processor time of the loop's thread
        self.began_s = self.ended_s = self.stopped_s = 0.0
        self._url, self._payloads, self._concurrency = url, payloads, concurrency
        self._schedule_s, self._timeout_s, self._requests = schedule_s, timeout_s, requests
        self._connect: Connect = {"grpc": _grpc, "http": _http}[protocol] if isinstance(protocol, str) else protocol
        # select() wakes within microseconds, epoll() only on whole milliseconds
        self._free = asyncio.Semaphore(connections) if connections else contextlib.nullcontext()
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._stop = asyncio.Event()
        self._ended = threading.Event()
        self._abandon = asyncio.Event()
        self._drain_s = drain_s
        self._thread = threading.Thread(target=self._run, name="accel-load", daemon=True)

    def wait(self, seconds: float) -> bool:
        """Let it run; whether it has ended: the schedule is through, or no further request can succeed."""
        return self._ended.wait(seconds)  # not join: an interrupted join takes a running thread for an ended one

    def finish(self) -> None:
        """Wait for the end of the schedule, and for the requests that are still in flight."""
        self._ended.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
            if kind is not None:  # an interrupt waits for nothing
                self._loop.call_soon_threadsafe(self._abandon.set)
        self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        finally:
            self.ended_s, self.busy_s = time.perf_counter(), time.thread_time()
            self._ended.set()

    async def _main(self) -> None:
        async with self._connect(self._url, self._timeout_s) as send:
            self.began_s = time.perf_counter()
            if self._schedule_s is None:
                turns = iter(itertools.count() if self._requests is None else range(self._requests))
                in_flight = {asyncio.create_task(self._client(send, turns)) for _ in range(self._concurrency)}
                await _first(asyncio.wait(in_flight), self._stop.wait())
            else:
                in_flight = await self._pace(send, self._schedule_s)
            await self._drain(in_flight)

    async def _drain(self, in_flight: set[asyncio.Task[None]]) -> None:
        tasks = list(in_flight)
        if tasks:
            await _first(asyncio.wait(tasks), self._abandon.wait(), timeout_s=self._drain_s)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, send: Send, turns: Iterator[int]) -> None:
        for number in turns:
            if self._stop.is_set():
                return
            began_s = time.perf_counter()
            try:
                refusal = await self._ask(send, number)
            except asyncio.CancelledError:
                self._lost(number, began_s)
                raise
            if refusal:
                await asyncio.sleep(_PAUSE_S)

    async def _pace(self, send: Send, schedule_s: Iterable[float]) -> set[asyncio.Task[None]]:
        in_flight: set[asyncio.Task[None]] = set()
        for number, due_s in enumerate(schedule_s):
            due_s = self.began_s + due_s
            early_s = due_s - time.perf_counter()
            if early_s > 0:
                await asyncio.sleep(early_s)
            elif number % 64 == 0:  # behind the schedule: let responses in
                await asyncio.sleep(0)
            if self._stop.is_set():
                break
            task = asyncio.create_task(self._expect(send, number, due_s))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        return in_flight

    async def _expect(self, send: Send, number: int, due_s: float) -> None:
        """One request of a schedule."""
        index = number % len(self._payloads)
        try:
            if self._gate and not await self._gate.acquire():
                now = time.perf_counter()
                self.replies.append(Reply(index, due_s, now, now, None, SHED))
                return
            try:
                async with self._free:
                    if not self._stop.is_set():
                        await self._ask(send, number, due_s)
            finally:
                if self._gate:
                    self._gate.release()
        except asyncio.CancelledError:
            self._lost(number, due_s)
            raise

    def _lost(self, number: int, due_s: float) -> None:
        """A request that the drain did not wait for."""
        index = number % len(self._payloads)
        self.replies.append(Reply(index, due_s, due_s, time.perf_counter(), None, "DEADLINE_EXCEEDED"))

    async def _ask(self, send: Send, number: int, due_s: float | None = None) -> str:
        index, sent_s = number % len(self._payloads), time.perf_counter()
        answer, refusal = await send(self._payloads[index])
        self.replies.append(
            Reply(index, sent_s if due_s is None else due_s, sent_s, time.perf_counter(), answer, refusal)
        )
        if refusal and _GONE.search(refusal):
            if not self.stopped:
                self.stopped, self.stopped_s = refusal, time.perf_counter()
            self._stop.set()
        return refusal


async def _first(*waits: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
    """Wait until one of them is over."""
    tasks = [asyncio.create_task(each) for each in waits]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


@contextlib.asynccontextmanager
async def _grpc(url: str, timeout_s: float | None) -> Any:
    grpc = require("grpc.aio", extra="triton")
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    async with grpc.insecure_channel(url, options=options) as channel:
        call = channel.unary_unary(_METHOD)

        async def send(payload: bytes) -> tuple[bytes | None, str]:
            try:
                return await response(call(payload), timeout_s), ""
            except TimeoutError:
                return None, "Deadline Exceeded"
            except grpc.AioRpcError as error:
                return None, error.details() or error.code().name

        yield send
        await channel.close(CLOSE_S)


@contextlib.asynccontextmanager
async def _http(url: str, timeout_s: float | None) -> Any:
    aiohttp = require("aiohttp", extra="triton")
    limit = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(url, timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(payload: tuple[str, dict[str, str], bytes]) -> tuple[bytes | None, str]:
            path, headers, body = payload
            try:
                async with session.post(path, data=body, headers=headers) as response:
                    read = await response.read()
                    return (read, "") if response.status == 200 else (None, read.decode(errors="replace"))
            except TimeoutError:
                return None, "DEADLINE_EXCEEDED"
            except (aiohttp.ClientError, OSError) as error:
                return None, f"Connection: {error}"

        yield send
