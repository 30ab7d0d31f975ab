"""Server-sent events: a response whose status is open until the first event, and whose later errors are events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from accel_lib.service.errors import Problem

_COMMENT_S = 15.0  # proxies cut a connection on which nothing comes, many after 60 s
_COMMENT = b": nothing yet\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the second for nginx

log = logging.getLogger("accel.gateway")


def event(value: Any) -> bytes:
    """One server-sent event with a JSON value."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class EventStream(Response):
    """Sends what an iterator gives, and ends it when the client has gone.

    Use `opened`, which waits for the first event: an error before it still has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], first: asyncio.Task[bytes], headers: dict[str, str], comment_s: float
    ) -> None:
        super().__init__(headers=_HEADERS | headers)
        del self.headers["content-length"]
        self._events, self._first, self._comment_s = events, first, comment_s
        self._silent = True

    @classmethod
    async def opened(
        cls, events: AsyncIterator[bytes], headers: dict[str, str], *, comment_s: float = _COMMENT_S
    ) -> EventStream:
        """The response, once the first event is there or a client has waited long; raises what comes instead of it."""
        first = asyncio.ensure_future(_next(events))
        try:
            await asyncio.wait((first,), timeout=comment_s)
            if first.done():
                first.result()
        except BaseException:
            await _end(events, first)
            raise
        return cls(events, first, headers, comment_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send everything; `GatewayMiddleware` cancels this when the client has gone."""
        comments: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            comments = asyncio.create_task(self._comment(send))
            async for content in self._contents():
                self._silent = False
                await send({"type": "http.response.body", "body": content, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            if comments is not None:
                comments.cancel()
            await _end(self._events, self._first)

    async def _comment(self, send: Send) -> None:
        """Say something whenever nothing was said for a while; a timer for each event would cost more than it."""
        while True:
            self._silent = True
            await asyncio.sleep(self._comment_s)
            if self._silent:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    async def _contents(self) -> AsyncIterator[bytes]:
        try:
            yield await self._first
            async for content in self._events:
                yield content
        except StopAsyncIteration:
            pass
        except Problem as problem:
            yield event(problem.body())
        except Exception:
            log.exception("a stream failed")
            yield event(Problem(500, "The gateway failed on this request; its log has the cause.").body())
        yield _DONE


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


async def _end(events: AsyncIterator[bytes], pending: asyncio.Task[bytes]) -> None:
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await events.aclose()  # type: ignore[attr-defined]
