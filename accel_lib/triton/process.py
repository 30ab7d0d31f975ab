"""One ``tritonserver`` process: its ports, its lock on the repository, its log, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from accel_lib.errors import ServerError
from accel_lib.progress import Progress
from accel_lib.triton import watchdog
from accel_lib.triton.error_messages import last_words
from accel_lib.triton.install import ensure_tritonserver

HOST = "127.0.0.1"
LOCK_FILE = ".accel.lock"
_ATTEMPTS = 3
_EXIT_S = 5  # how long Triton waits at its end for requests, and for stubs that no longer respond
_GRACE_S = 8.0
_READY = "Started Metrics Service"  # the last of the three services to come up
_ENDING = b"All models are stopped, unloading models"
_UNLOADED = b"Found 0 live models and 0 in-flight"  # what follows at its end is a second of waiting for its own threads
_TAIL_BYTES = 2048
_CACHE_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """The three ports of one server on the loopback interface; 0 asks for a free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class TritonProcess:
    """A running ``tritonserver`` with no model loaded yet; made by `start`."""

    host = HOST

    def __init__(
        self, command: subprocess.Popen[bytes], ports: Ports, folder: Path, prefix: str, *, traced: bool = False
    ) -> None:
        self._command = command
        self._folder = folder
        self._traced = traced
        self._owner = os.getpid()
        self._log = ""
        self.ports = ports
        self.prefix = prefix

    @classmethod
    def start(
        cls,
        repository: Path,
        ports: Ports,
        *,
        timeout_s: float,
        env: Mapping[str, str],
        progress: Progress,
        flags: Sequence[str] = (),
    ) -> TritonProcess:
        """Start Triton on a repository and wait until all three services are up.

        Raises
        ------
        ServerError
            Another process serves this repository, a port is taken, or Triton ended instead of starting.
        """
        watchdog.sweep_orphans()
        with _repository_lock(repository) as lock:
            for attempt in range(_ATTEMPTS):
                process = cls._launch(repository, free_ports(ports), lock, env, flags)
                try:
                    if process._wait_until_ready(time.monotonic() + timeout_s, progress):
                        return process
                except BaseException:
                    process.stop()
                    raise
                process.stop()
                lost_a_race = "already in use" in process.log and 0 in dataclasses.astuple(ports)
                if not lost_a_race or attempt + 1 == _ATTEMPTS:
                    break
        raise ServerError(
            "Triton ended instead of starting.",
            seen=last_words(process.log),
            fix="fix what its log names, then serve again",
        )

    @classmethod
    def _launch(
        cls, repository: Path, ports: Ports, lock: int, env: Mapping[str, str], flags: Sequence[str]
    ) -> TritonProcess:
        install = ensure_tritonserver()
        prefix, held = watchdog.claim_prefix()
        folder = _links(repository=repository, backends=install.backends)
        options = {
            "model-repository": folder / "repository",
            "model-control-mode": "explicit",
            "backend-directory": folder / "backends",
            "backend-config": f"python,shm-region-prefix-name={prefix}",
            "cache-directory": install.caches,
            "cache-config": f"local,size={_CACHE_BYTES}",
            "exit-timeout-secs": _EXIT_S,
            **{f"{service}-address": HOST for service in ("http", "grpc", "metrics")},
            **{f"{service}-port": port for service, port in dataclasses.asdict(ports).items()},
        }
        command_line = ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
        guard = [sys.executable, "-I", "-S", watchdog.__file__, str(os.getpid()), prefix, str(folder), str(_GRACE_S)]
        with (folder / "log").open("wb") as log:
            command = subprocess.Popen(
                [*guard, f"{lock},{held}", str(install.binary), *command_line, *flags],
                env=install.environment() | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock, held),
            )
        os.close(held)
        return cls(command, ports, folder, prefix, traced=any(flag.startswith("--trace") for flag in flags))

    @property
    def running(self) -> bool:
        """Whether Triton still runs."""
        return self._command.poll() is None

    @property
    def owned(self) -> bool:
        """Whether this process started it; a fork of that one did not."""
        return os.getpid() == self._owner

    @property
    def pid(self) -> int:
        """Process id of ``tritonserver``, 0 when it has ended."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self._command.pid).children()
            return next((child.pid for child in children if child.name() == "tritonserver"), 0)
        return 0

    @property
    def log(self) -> str:
        """All that Triton and the models' Python processes wrote."""
        with contextlib.suppress(OSError):
            self._log = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        return self._log

    def stop(self, *, unloaded: bool = False) -> None:
        """End Triton, gracefully if it can, and remove its log, shared memory and processes.

        With `unloaded`, its models are known to be gone.
        """
        if not self.owned:
            return
        try:
            if self.running:
                last = _ENDING if unloaded else _UNLOADED
                self._command.send_signal(signal.SIGTERM)
                if self._said(last, time.monotonic() + _GRACE_S) and not self._traced:  # it still sends its traces
                    self._command.send_signal(signal.SIGTERM)  # the second one ends it at once
                self._command.wait(_GRACE_S + _EXIT_S)
        except subprocess.TimeoutExpired:
            self._command.kill()
            self._command.wait()
        finally:
            self._log = self.log
            watchdog.sweep(self.prefix)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _said(self, words: bytes, until: float) -> bool:
        """Wait for words at the end of the log of Triton, which is ending; False if it has ended or time is up."""
        while self.running and time.monotonic() < until:
            with (self._folder / "log").open("rb") as log:
                log.seek(-min(_TAIL_BYTES, log.seek(0, os.SEEK_END)), os.SEEK_END)
                if words in log.read():
                    return True
            time.sleep(0.02)
        return False

    def _wait_until_ready(self, until: float, progress: Progress) -> bool:
        while self.running:
            if _READY in self.log:
                return True
            if time.monotonic() > until:
                raise ServerError(
                    "Triton was not ready in time.", seen=last_words(self.log), fix="serve(..., timeout_s=300)"
                )
            progress.tick("starting")
            time.sleep(0.05)
        return False


def _links(**targets: Path) -> Path:
    """A temporary folder with links: Triton starts its stubs by a shell that cannot take every path."""
    plain = re.fullmatch(r"[\w./+-]+", tempfile.gettempdir(), re.ASCII)
    folder = Path(tempfile.mkdtemp(prefix="accel-triton-", dir=None if plain else "/tmp"))  # noqa: S108  (mkdtemp's own, 0700)
    for name, target in targets.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    return folder


@contextlib.contextmanager
def _repository_lock(repository: Path) -> Iterator[int]:
    """Lock the repository for one server; Triton inherits the lock, so it ends with the last of its processes."""
    import fcntl

    path = repository / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        fix = f"copy the repository to a folder you can write to: cp -r {repository.name} ~/{repository.name}"
        raise ServerError(f"{repository.name} cannot be locked.", seen=error.strerror, fix=fix) from error
    try:
        until = time.monotonic() + _GRACE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _check_holder(repository, path.read_text(encoding="utf-8").strip(), time.monotonic() > until)
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_holder(repository: Path, holder: str, late: bool) -> None:
    """Refuse if another process serves; after one that just died, or was ours, stubs may take a moment to end."""
    mine = holder == str(os.getpid())
    if not late and (mine or not _alive(holder)):
        return
    raise ServerError(
        f"{repository.name} is served by {'this' if mine else 'another'} process already.",
        seen=f"process {holder or 'unknown'}",
        fix="server.stop()" if mine else f"server.stop() in that notebook, or end that process: kill {holder}",
    )


def _alive(holder: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return holder.isdecimal() and psutil.Process(int(holder)).status() != psutil.STATUS_ZOMBIE
    return False


def free_ports(ports: Ports) -> Ports:
    """The requested ports if they are free, with free ones instead of 0."""
    numbers = {}
    with contextlib.ExitStack() as stack:
        for service, port in dataclasses.asdict(ports).items():
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError as error:
                fix = f"end that process, or let a free one be found: serve({service}_port=0)"
                raise ServerError(f"Port {port} is taken.", seen=_listener(port) or error.strerror, fix=fix) from error
            except OverflowError as error:
                raise ServerError("That is no port.", seen=port, fix=f"serve({service}_port=0)") from error
            numbers[service] = listener.getsockname()[1]
    return Ports(**numbers)


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                owner = psutil.Process(connection.pid).name() if connection.pid else "a process of another user"
                return f"{owner}, process {connection.pid}" if connection.pid else owner
    return ""
