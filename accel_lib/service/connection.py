"""One HTTP/1.1 connection of the gateway: uvicorn's, with bounds on what a client may send, hold open and leave unread.

A client that connects has shown no key yet: a request's head has a size and a time, a body's framing is not larger than
the body, few requests are pipelined, and a response that is not read is given up. A request to upgrade to another
protocol is answered in HTTP/1.1, as RFC 9110 (section 7.8) allows.
"""

from __future__ import annotations

import logging
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from accel_lib.service.errors import Problem

MOST_CONNECTIONS = 8192
ON_LOST = "on_lost"  # in a request's state: functions that are called when its client is gone
_MOST_HEAD_BYTES = 16_384  # request line, headers and trailers of one request
_MOST_URL_BYTES = 8_192
_MOST_HEADERS = 100
_MOST_PIPELINED = 16
_FRAMING_BYTES = 65_536  # chunk sizes and their extensions, beside eight bytes for each byte of the body
_FRAMING_RATIO = 8
_HEAD_S = 10  # for a whole request head to arrive
_UNREAD_S = 60  # a response that the client does not read is given up then
_LINGER_S = 2  # what a refused client still sends is read and dropped for this long, so that it reads the response
_HEAD_TOO_LARGE = Problem(
    431, f"A head has at most {_MOST_HEAD_BYTES:,} bytes and {_MOST_HEADERS} fields.", code="head_too_large"
)
_URL_TOO_LONG = Problem(414, f"A URL has at most {_MOST_URL_BYTES:,} bytes.", code="url_too_long")
_PIPELINED = Problem(400, f"At most {_MOST_PIPELINED} requests wait on one connection.", code="too_many_pipelined")
_FRAMING = Problem(400, "The body's chunks have more framing than content.", code="invalid_chunks")
_SLOW = Problem(408, f"The head did not arrive within {_HEAD_S} s.", code="head_too_slow")
_NO_HTTP = Problem(400, "That is no valid HTTP/1.1 request.", code="invalid_http")
_NO_TUNNEL = Problem(405, "CONNECT is for proxies.", code="method_not_allowed", headers={"allow": "GET, POST, PUT"})

log = logging.getLogger("accel.gateway")


class Connection(HttpToolsProtocol):
    """uvicorn's connection, bounded; `most` is how many may be open."""

    most = MOST_CONNECTIONS

    def connection_made(self, transport: Any) -> None:
        """Take a new connection, or refuse it where too many are open."""
        super().connection_made(transport)
        self._in_head = self._began = self._refused = False
        self._found: Problem | None = None
        self._fields = self._head_bytes = self._content_bytes = self._framing_bytes = 0
        self.on_lost: set[Callable[[], object]] = set()
        self._unread: TimerHandle | None = None
        self._late: TimerHandle | None = self.loop.call_later(_HEAD_S, self._head_is_late)
        if len(self.connections) > self.most:
            problem = Problem(503, "Too many connections are open.", code="too_many_connections", retry_after_s=1)
            transport.write(_written(problem))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers, and tell the requests whose client is gone."""
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._tell_lost()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; a request beyond the bounds is refused and its connection closed."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._began, content_before = False, self._content_bytes
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._found or _NO_HTTP)
            return
        if not self._began:  # what came before a head that begins in this data is no longer to be counted
            self._framing_bytes += len(data) - (self._content_bytes - content_before)
        if self._in_head and self._framing_bytes > _MOST_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._framing_bytes > _MOST_HEAD_BYTES + _FRAMING_BYTES + _FRAMING_RATIO * self._content_bytes:
            self._refuse(_FRAMING)
        elif self._late is None and (self._in_head or self._idle):
            self._late = self.loop.call_later(_HEAD_S, self._head_is_late)

    def on_message_begin(self) -> None:
        """Count from zero: a head begins."""
        super().on_message_begin()
        self.scope["state"][ON_LOST] = self.on_lost
        self._in_head = self._began = True
        self._fields = self._head_bytes = self._content_bytes = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        super().on_url(url)
        if len(self.url) > _MOST_URL_BYTES:
            self._stop(_URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head, or drop a trailer; both count."""
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > _MOST_HEADERS or self._head_bytes + len(self.url) > _MOST_HEAD_BYTES:
            self._stop(_HEAD_TOO_LARGE)
        if self._in_head:  # a trailer says nothing here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head is to be parsed again."""
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._stop(_PIPELINED)
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._content_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read: give the response up after a while."""
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _tell_lost(self) -> None:
        for tell in list(self.on_lost):
            tell()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]

    def _head_without_upgrade(self) -> bytes:
        """The head that asked for an upgrade, to be parsed again: the parser has skipped the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._stop(_NO_TUNNEL)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(fields))

    def _stop(self, problem: Problem) -> NoReturn:
        """Make the parser stop in the middle of what it has been given."""
        self._found = problem
        raise httptools.HttpParserError

    def _head_is_late(self) -> None:
        self._late = None
        if not self._idle:  # a head behind a request that is being answered has time until then
            self._late = self.loop.call_later(_HEAD_S, self._head_is_late)
        elif self._in_head:
            self._refuse(_SLOW)
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer, if no answer to an earlier request would be mistaken for it, and close."""
        self._refused = True
        if self._late is not None:
            self._late.cancel()
        log.warning("refused", extra={"status": problem.status, "code": problem.code})
        app: Any = self.config.app
        app.state.services.metrics.requests.labels("none", "", "", str(problem.status)).inc()
        mine = self._idle or (not self._in_head and not self.cycle.response_started and not self.pipeline)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._tell_lost()
        if not mine or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write(_written(problem))
        self.transport.write_eof()
        self.flow.resume_reading()
        self._late = self.loop.call_later(_LINGER_S, self.transport.close)


def _written(problem: Problem) -> bytes:
    answer = problem.response()
    head = b"".join(b"%s: %s\r\n" % pair for pair in [*answer.raw_headers, (b"connection", b"close")])
    return STATUS_LINE[problem.status] + head + b"\r\n" + bytes(answer.body)
