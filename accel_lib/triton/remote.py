"""A Triton that somebody else runs, such as a container beside this one: asked, never started or ended."""

from __future__ import annotations

from pathlib import Path

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


def attach(host: str, ports: Ports, repository: str | Path) -> Server:
    """A handle on a Triton that runs elsewhere, on a repository that this machine sees too.

    Parameters
    ----------
    host, ports
        Where it listens.
    repository
        For tokenizers and manifests.

    Returns
    -------
    Server
        That neither starts nor stops anything.
    """
    return Server(RemoteProcess(host, ports), Path(repository).resolve())
