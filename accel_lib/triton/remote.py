"""A Triton that somebody else runs, such as containers beside this one: asked, never started, changed or ended."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from accel_lib.errors import ServerError
from accel_lib.triton.client import Connection
from accel_lib.triton.process import Ports, TritonProcess
from accel_lib.triton.server import Server


class RemoteProcess(TritonProcess):
    """Stands in for a process of our own; whether Triton answers is for those to find out who ask it."""

    def __init__(self, host: str, ports: Ports) -> None:
        self.host = host
        self.ports = ports

    @property
    def running(self) -> bool:
        """Always: who runs it also starts it again."""
        return True

    @property
    def pid(self) -> int:
        """0, as for a process that is not on this machine."""
        return 0

    @property
    def log(self) -> str:
        """Empty: its log is where it runs."""
        return ""

    def stop(self) -> None:
        """Leave it alone."""


class RemoteServer(Server):
    """What it serves is what its repository holds; there may be many behind one name, so none is changed through it."""

    def __init__(self, process: RemoteProcess, repository: Path) -> None:
        super().__init__(process, repository)
        self.connection = Connection(grpc=self.grpc_url, http=f"{process.host}:{process.ports.http}")

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC service, a name that is looked up again whenever a connection ends."""
        return f"dns:///{self._process.host}:{self._process.ports.grpc}"

    def load(self, name: str, *_: object, **__: object) -> NoReturn:
        """Refused."""
        _refuse(f"load {name}")

    def unload(self, name: str) -> NoReturn:
        """Refused."""
        _refuse(f"unload {name}")

    def add(self, name: str, *_: object, **__: object) -> NoReturn:
        """Refused."""
        _refuse(f"add {name}")

    def remove(self, name: str, *, version: int) -> NoReturn:
        """Refused."""
        _refuse(f"remove {name} version {version}")


def attach(host: str, ports: Ports, repository: str | Path) -> RemoteServer:
    """A handle on a Triton that runs elsewhere, on a repository that this machine sees too.

    Parameters
    ----------
    host, ports
        Where it listens. A name with several addresses is several Tritons, over which requests are spread.
    repository
        For tokenizers and manifests.

    Returns
    -------
    RemoteServer
        That neither starts nor changes nor stops anything.
    """
    return RemoteServer(RemoteProcess(host, ports), Path(repository).resolve())


def _refuse(what: str) -> NoReturn:
    raise ServerError(
        "This Triton is run elsewhere and serves what its repository holds.",
        seen=what,
        fix="change the repository and roll the deployment: helm upgrade, or docker compose up --force-recreate",
    )
