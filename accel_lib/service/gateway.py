"""A gateway in a thread that a notebook owns: started in one cell, there in the next ones, gone with the kernel."""

from __future__ import annotations

import atexit
import contextlib
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from accel_lib.errors import AccelError, ServerError
from accel_lib.progress import Progress
from accel_lib.service.app import create_app
from accel_lib.service.server import GatewayServer, bind
from accel_lib.service.services import Services
from accel_lib.service.settings import Settings
from accel_lib.triton.server import Server

_POLL_S = 0.02
_GATEWAYS: list[Gateway] = []


class Gateway:
    """A gateway in a thread of this process; made by `serve_gateway`, and a context manager."""

    def __init__(
        self, settings: Settings, triton: Server | None, *, folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._folder = folder
        opened = bind(settings.host, settings.port)
        self.app = create_app(settings, triton=triton)
        self.services: Services = self.app.state.services
        self._server = GatewayServer(self.app, [opened])
        self._thread = threading.Thread(target=self._listen, name="accel-gateway", daemon=True)
        self.url = f"http://{settings.host}:{opened.getsockname()[1]}"
        self.key = self.services.auth.keys.create("notebook", ["admin"])
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(AccelError):  # which `wait_until_ready` raises
            self._server.listen()

    @property
    def running(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client with the address and the key; `options` are httpx's."""
        headers = {"Authorization": f"Bearer {self.key}"} | dict(options.pop("headers", {}))
        return httpx.Client(base_url=self.url, headers=headers, timeout=options.pop("timeout", 60), **options)

    def stop(self) -> None:
        """Finish what is in flight and end; a Triton that it did not start runs on."""
        if self in _GATEWAYS:
            _GATEWAYS.remove(self)
        self._server.drain()
        self._thread.join(self.services.settings.drain_s + 30)
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"a gateway at {self.url}" if self.running else "a gateway, stopped"


def serve_gateway(triton: Server | None = None, **settings: Any) -> Gateway:
    """Start the HTTP gateway in front of a Triton and wait until it is ready.

    It lives across cells, in a thread of the kernel, and ends with it. A gateway that was started in front of the same
    server is replaced.

    Parameters
    ----------
    triton
        A running server; None starts one, which ends with the gateway.
    settings
        Fields of `accel_lib.service.Settings`. The port is a free one, and keys are kept in a temporary file, unless
        they say otherwise.

    Returns
    -------
    Gateway
        With ``.url`` and an admin's ``.key``; also a context manager.

    Raises
    ------
    ServerError
        The port is taken, or Triton or its models do not come up.

    Examples
    --------
    >>> gateway = accel.serve_gateway(server)  # doctest: +SKIP
    >>> client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key)  # doctest: +SKIP
    """
    if triton is not None:
        for old in [gateway for gateway in _GATEWAYS if gateway.services.supervisor.server is triton]:
            old.stop()
    folder = tempfile.TemporaryDirectory(prefix="accel-gateway-")
    chosen: dict[str, Any] = {"port": 0, "state_file": Path(folder.name) / "gateway.sqlite3"} | settings
    gateway = Gateway(Settings(**chosen), triton, folder=folder)
    _GATEWAYS.append(gateway)
    progress = Progress("gateway")
    try:
        wait_until_ready(gateway)
    except BaseException:
        gateway.stop()
        raise
    progress.done(f"ready at {gateway.url}")
    return gateway


def wait_until_ready(gateway: Gateway) -> None:
    """Return once the gateway says that it is ready; raises what kept Triton from starting."""
    with gateway.client() as client:
        while gateway.running:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/v1/health/ready").status_code == 200 and gateway.services.catalog.versions:
                    return
            time.sleep(_POLL_S)
    if gateway.services.supervisor.failed is not None:
        raise gateway.services.supervisor.failed
    raise ServerError("The gateway ended instead of starting.", fix="fix what was logged above, then start it again")


@atexit.register
def _stop_all() -> None:
    for gateway in _GATEWAYS:
        gateway.stop()
