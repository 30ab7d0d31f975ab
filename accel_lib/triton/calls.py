"""gRPC calls to Triton that are left instead of cancelled: who stops waiting goes, and they end by themselves.

Triton before 25.04 crashes now and again where a cancellation meets a response, and a deadline of gRPC's cancels too.
https://github.com/triton-inference-server/server/issues/7368, https://github.com/triton-inference-server/server/issues/8034
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from accel_lib.errors import require

STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
LEAVE_S = 10.0  # a call that was left and has not ended by then hangs, and is cancelled after all
_kept: set[Any] = set()  # asyncio drops a task that nobody holds, and gRPC cancels such a call


def _keep(work: Any) -> None:
    _kept.add(work)
    work.add_done_callback(_kept.discard)


async def response(call: Any, timeout_s: float | None) -> bytes:
    """The response to a unary call of ``grpc.aio`` that was begun; raises `TimeoutError` and leaves the call."""
    done = asyncio.Event()
    _keep(call)
    call.add_done_callback(lambda _: done.set())
    async with asyncio.timeout(timeout_s):
        await done.wait()
    answer: bytes = await call
    return answer


class GenerationStream:
    """One request to generate on a stream of its own, over a channel of ``grpc.aio``.

    Parameters
    ----------
    request
        The serialized request.
    cancel
        The serialized request that ends it, sent on the same stream; None for a model that knows none: that is
        cancelled by gRPC after all.
    """

    def __init__(
        self, channel: Any, request: bytes, cancel: bytes | None, *, metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._request, self._cancel = request, cancel
        self._ended = self._cancelled = False
        self._said = asyncio.Event()
        self._call = channel.stream_stream(STREAM_METHOD)(self._messages(), metadata=tuple(metadata))

    async def contents(self) -> AsyncIterator[bytes]:
        """Serialized responses, until Triton has ended the stream; it does so only after `ended` or `cancel`."""
        eof = require("grpc.aio", extra="triton").EOF
        try:
            while (content := await self._call.read()) is not eof:
                yield content
        finally:
            self._said.set()

    def ended(self) -> None:
        """Tell it that the last response was read."""
        self._ended = True
        self._said.set()

    def cancel(self) -> None:
        """Ask for no more; nothing happens to one that has ended."""
        self._cancelled = not self._ended
        self._said.set()

    def leave(self, reading: asyncio.Task[Any]) -> None:
        """Cancel, and let the task that reads `contents` go on by itself to their end."""
        self.cancel()
        _keep(reading)
        wait_s = 0.0 if self._cancel is None and not self._ended else LEAVE_S
        late = asyncio.get_running_loop().call_later(wait_s, self._call.cancel)
        reading.add_done_callback(lambda _: late.cancel())

    async def _messages(self) -> AsyncIterator[bytes]:
        yield self._request
        await self._said.wait()
        if self._cancelled and self._cancel is not None:
            yield self._cancel
