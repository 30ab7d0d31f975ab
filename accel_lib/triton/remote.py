"""Client side of a Triton that is run elsewhere, such as in a container beside this one; it is never changed."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from accel_lib.errors import ServerError
from accel_lib.triton.client import Connection
from accel_lib.triton.process import Ports, TritonProcess
from accel_lib.triton.server import Server


class _RemoteProcess(TritonProcess):
    """Instead of a process of our own: nothing is known about it here and nothing done to it."""

    running = True  # who runs it also restarts it
    owned = False
    pid = 0
    log = ""

    def __init__(self, host: str, ports: Ports) -> None:
        self.host = host
        self.ports = ports

    def stop(self, *, unloaded: bool = False) -> None:
        pass


class RemoteServer(Server):
    """A `Server` that serves what its repository holds: to load, unload, add or remove a model is a `ServerError`."""

    def __init__(self, host: str, ports: Ports, repository: Path) -> None:
        super().__init__(_RemoteProcess(host, ports), repository)
        self.connection = Connection(grpc=self.grpc_url, http=f"{host}:{ports.http}")

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC service, a name that is looked up again whenever a connection ends."""
        return f"dns:///{self._process.host}:{self._process.ports.grpc}"

    def _refuse(self, name: str, *_: object, **__: object) -> NoReturn:
        raise ServerError(
            "This Triton is run elsewhere and serves what its repository holds.",
            seen=f"a change of {name}",
            fix="change the repository and roll the deployment: helm upgrade, or docker compose up --force-recreate",
        )

    load = unload = add = remove = _refuse


def attach(host: str, ports: Ports, repository: str | Path) -> RemoteServer:
    """A handle on a Triton that runs elsewhere, on a repository that this machine sees too.

    Parameters
    ----------
    host, ports
        Where it listens. A name with several addresses is several Tritons, over which requests are spread.
    repository
        For tokenizers and manifests.
    """
    return RemoteServer(host, ports, Path(repository).resolve())
