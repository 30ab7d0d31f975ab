"""uvicorn's server for the gateway: its sockets, and the drain when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from accel_lib.errors import ServerError
from accel_lib.service.connection import Connection
from accel_lib.service.services import Services

_BACKLOG = 4096
_KEEP_ALIVE_S = 75  # longer than a load balancer's
_LAST_ANSWERS_S = 10  # for responses that are being written when everything else has ended
_LAST_TICKS = 10  # tenths of a second for requests that clients send before they see that their connection is closing


class GatewayServer(uvicorn.Server):
    """On SIGTERM, new requests are refused with 503 until those in flight are finished; then it ends."""

    def __init__(
        self, app: FastAPI, sockets: Sequence[socket.socket], on_ready: Callable[[], None] | None = None
    ) -> None:
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
        self._services: Services = app.state.services
        self._sockets = list(sockets)
        self._on_ready = on_ready
        self._draining_since: float | None = None
        self._closed_ticks = 0  # not a time: while the whole machine stands still, no client can send

    def listen(self) -> None:
        """Serve until told to end; raises what kept Triton from starting."""
        self.run(sockets=self._sockets)
        if self._services.supervisor.failed is not None:
            raise self._services.supervisor.failed

    def drain(self) -> None:
        """Finish what is in flight, and end; a second call ends at once."""
        if self._draining_since is not None:
            self.should_exit = True
        self._draining_since = time.monotonic()
        self._services.limits.drain()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What uvicorn calls on SIGTERM and SIGINT."""
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn calls ten times per second."""
        services = self._services
        if self._on_ready is not None and services.catalog.versions:
            self._on_ready()
            self._on_ready = None
        if self._draining_since is not None:
            over = time.monotonic() - self._draining_since > services.settings.drain_s
            finished = over or not services.limits.in_flight
            self.should_exit = self.should_exit or (finished and await self._all_closed())
        self.should_exit = self.should_exit or services.supervisor.failed is not None
        return await super().on_tick(counter)

    async def _all_closed(self) -> bool:
        """Accept no more connections; whether the open ones were closed with a response, or have been idle."""
        if not self._closed_ticks:
            await self._accept_the_last()
            for server in self.servers:
                server.close()
        self._closed_ticks += 1
        return not self.server_state.connections or self._closed_ticks > _LAST_TICKS

    async def _accept_the_last(self) -> None:
        """Connections that wait to be accepted would be reset, with the requests that they bring."""
        made = functools.partial(
            Connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        for listening in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted, _ = listening.accept()
                    accepted.setblocking(False)
                    await asyncio.get_running_loop().connect_accepted_socket(made, accepted)


def bind(host: str, port: int, variable: str = "ACCEL_PORT") -> socket.socket:
    """A socket that listens; port 0 takes a free one. `variable` is the setting that the port comes from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only where the protocol is named
        return opened
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            fix = f"end what listens there, or take a free port: {variable}=0"
        elif number == errno.EACCES:
            fix = f"take a port above 1023: {variable}=0 takes a free one"
        else:
            fix = "an address of this machine: ACCEL_HOST=127.0.0.1, or 0.0.0.0 for all of them"
        seen = getattr(error, "strerror", None) or error
        raise ServerError(f"The gateway cannot listen on {host}:{port}.", seen=seen, fix=fix) from error
