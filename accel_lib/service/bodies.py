"""Reads the body of a request: whole, unzipped, within its deadline, and never more than the gateway has memory for."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from accel_lib.service.errors import Problem
from accel_lib.service.limits import Deadline

_DISCARDED = 4  # times the largest body is read so that the client gets its response
_TOGETHER = 16  # times the largest body is held by all requests together
_RETRY_S = 1.0
_CLOSING = {"connection": "close"}
_ACCEPTED = {"accept-encoding": "gzip, identity"}
_GZIP = 31  # zlib's number for it, with the largest window


class ClientGoneError(Exception):
    """The client closed its connection before the response."""


class Bodies:
    """The bodies of the requests that one gateway has, of at most `limit` bytes each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @contextlib.asynccontextmanager
    async def reading(
        self, receive: Receive, headers: Headers, deadline: Deadline, *, keep: bool
    ) -> AsyncIterator[bytes]:
        """The whole body, held until the context ends; empty if it is not to be kept.

        A body that is refused is read to its end all the same, within bounds: a client reads no response while it still
        sends, and a connection that is closed on unread bytes loses the response.

        Raises
        ------
        Problem
            400, 413 or 415: it is no gzip, too large, or in another encoding. 429: all bodies together are too large.
            504: the deadline passed.
        ClientGoneError
            The connection was closed.
        """
        body = _Body(self._limit, headers, keep=keep)
        held = 0
        try:
            try:
                async with asyncio.timeout(deadline.left_s):
                    while body.more:
                        body.add(await receive())
                        self._held += len(body.content) - held
                        held = len(body.content)
                        if self._held > _TOGETHER * self._limit:
                            body.refuse(429, "The bodies of all requests together are too large.", "queue_full")
            except TimeoutError as error:
                text = "The deadline passed before the request was there."
                raise Problem(504, text, code="deadline_exceeded", headers=_CLOSING) from error
            yield body.whole()
        finally:
            self._held -= held


class _Body:
    """What has arrived of one body."""

    def __init__(self, limit: int, headers: Headers, *, keep: bool) -> None:
        self.content = bytearray()
        self.more = True
        self._limit, self._keep = limit, keep
        self._received = 0
        self._problem: Problem | None = None
        coding = headers.get("content-encoding", "identity").strip().lower()
        self._unzip = zlib.decompressobj(_GZIP) if coding in ("gzip", "x-gzip") else None
        if self._unzip is None and coding != "identity":
            self.refuse(415, "A body is sent as it is, or with content-encoding gzip.", "unsupported_encoding")
        with contextlib.suppress(ValueError):
            if int(headers.get("content-length", "0")) > _DISCARDED * limit:
                self._too_large()
                self.more = False

    def add(self, message: Message) -> None:
        """The next part, as ASGI gives it."""
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        self._received += len(part)
        self.more = message.get("more_body", False)
        if self._received > self._limit:
            self._too_large()
            self.more = self.more and self._received <= _DISCARDED * self._limit
        elif self._keep and self._problem is None:
            self._append(part)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Keep nothing, and respond with this once all is read; the first refusal counts."""
        self.content.clear()
        retry_s = _RETRY_S if status == 429 else None
        headers = _CLOSING if status == 413 else _ACCEPTED
        self._problem = self._problem or Problem(status, message, code=code, retry_after_s=retry_s, headers=headers)

    def whole(self) -> bytes:
        """The body; raises the `Problem` of one that was refused."""
        if self._unzip is not None and not self._unzip.eof and self._received and self._keep:
            self.refuse(400, "The body ends in the middle of its gzip.", "invalid_gzip")
        if self._problem is not None:
            raise self._problem
        return bytes(self.content)

    def _append(self, part: bytes) -> None:
        if self._unzip is None:
            self.content += part
            return
        try:
            while part:
                if self._unzip.eof:  # gzip files may follow each other
                    self._unzip = zlib.decompressobj(_GZIP)
                self.content += self._unzip.decompress(part, self._limit - len(self.content) + 1)
                part = self._unzip.unused_data
                if len(self.content) > self._limit:
                    self._too_large()
                    return
        except zlib.error:
            self.refuse(400, "The body is no valid gzip.", "invalid_gzip")

    def _too_large(self) -> None:
        self.refuse(413, f"A body has at most {self._limit:,} bytes.", "body_too_large")
