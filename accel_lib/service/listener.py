"""The listening side of the gateway: how many connections, how long they may be silent, and the drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from accel_lib.errors import ServerError
from accel_lib.service.problems import Problem

MOST_CONNECTIONS = 8192
_BACKLOG = 4096
_HEAD_S = 10  # a connection that has not sent a whole request head by then is closed
_KEEP_ALIVE_S = 75  # longer than a load balancer's
_LAST_ANSWERS_S = 10  # for answers that are being written when everything else has ended
_LAST_REQUESTS_S = 1.0  # for requests that clients send on connections that they cannot know to be closing


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a bound on how many there are and on how long one may say nothing."""

    most = MOST_CONNECTIONS

    def connection_made(self, transport: Any) -> None:
        """Take a new connection, or refuse it where too many are open."""
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD_S, self._close_if_silent)
        if len(self.connections) > self.most:
            transport.write(_too_many())
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._late.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


def _too_many() -> bytes:
    problem = Problem(503, "Too many connections are open.", code="too_many_connections", retry_after_s=1).response()
    head = b"".join(b"%s: %s\r\n" % pair for pair in [*problem.raw_headers, (b"connection", b"close")])
    return b"HTTP/1.1 503 Service Unavailable\r\n" + head + b"\r\n" + bytes(problem.body)


class Listener(uvicorn.Server):
    """uvicorn's server: a SIGTERM lets it refuse what is new with 503 until what is old is finished, then end."""

    def __init__(self, app: FastAPI, listening: socket.socket, on_ready: Callable[[], None] | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
        super().__init__(config)
        self._app = app
        self._socket = listening
        self._on_ready = on_ready
        self._draining_since: float | None = None
        self._closed_since: float | None = None

    def listen(self) -> None:
        """Serve until told to end; raises what kept Triton from starting."""
        self.run(sockets=[self._socket])
        if self._app.state.failed is not None:
            raise self._app.state.failed

    def drain(self) -> None:
        """Finish what is under way, and end; a second call ends at once."""
        if self._draining_since is not None:
            self.should_exit = True
        self._draining_since = time.monotonic()
        self._app.state.limits.draining = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What uvicorn calls on SIGTERM and SIGINT."""
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn calls ten times a second."""
        state = self._app.state
        if self._on_ready is not None and state.catalogue.versions:
            self._on_ready()
            self._on_ready = None
        if self._draining_since is not None:
            over = time.monotonic() - self._draining_since > state.settings.drain_s
            self.should_exit = self.should_exit or over or (not state.limits.in_flight and await self._all_told())
        self.should_exit = self.should_exit or state.failed is not None
        return await super().on_tick(counter)

    async def _all_told(self) -> bool:
        """Take no more connections; whether those that are open were closed by an answer, or say nothing any more."""
        if self._closed_since is None:
            await self._accept_the_last()
            for server in self.servers:
                server.close()
            self._closed_since = time.monotonic()
        return not self.server_state.connections or time.monotonic() - self._closed_since > _LAST_REQUESTS_S

    async def _accept_the_last(self) -> None:
        """Connections that wait to be accepted would be reset, with the requests that they bring."""
        made = functools.partial(
            Connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = self._socket.accept()
                accepted.setblocking(False)
                await asyncio.get_running_loop().connect_accepted_socket(made, accepted)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises
    ------
    ServerError
        The port is taken, or this machine has no such address.
    """
    try:
        opened = socket.create_server((host, port), backlog=_BACKLOG)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only where the protocol is named
        return opened
    except OSError as error:
        fix = "end what listens there, or take a free port: ACCEL_PORT=0"
        raise ServerError(f"The gateway cannot listen on {host}:{port}.", seen=error.strerror, fix=fix) from error
