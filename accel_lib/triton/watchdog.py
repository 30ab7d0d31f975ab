"""Watchdog process that starts tritonserver and kills it when its owner dies.

It uses the standard library alone (``python -I -S watchdog.py``) and starts ``tritonserver`` in a process group of its
own. It watches the owner's process, not the thread that started it: PR_SET_PDEATHSIG alone would fire when that thread
ends. If the watchdog itself is killed, PR_SET_PDEATHSIG takes Triton along, and the next start removes what it left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_REAP_S = 5.0


def claim_prefix() -> tuple[str, int]:
    """A new shared-memory prefix, and its open lock, held for as long as the prefix is in use."""
    prefix = f"accel-{secrets.token_hex(4)}-"
    descriptor = os.open(_SHARED_MEMORY / f"{prefix}lock", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return prefix, descriptor


def sweep(prefix: str) -> None:
    """Remove the shared memory of one server."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def sweep_orphans() -> None:
    """Remove the shared memory of servers that are gone: of every prefix whose lock is free."""
    for lock in _SHARED_MEMORY.glob("accel-*-lock"):
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(lock.name.removesuffix("lock"))


def main(owner: int, prefix: str, folder: str, grace_s: float, descriptors: list[int], command: list[str]) -> int:
    """Run `command` until it ends, SIGTERM comes, or process `owner` is gone; leave nothing behind.

    After SIGTERM it has `grace_s` to end by itself, and after a second one no time. At the end the shared memory of
    `prefix` is removed, and `folder` if the owner no longer can. `descriptors` are locks to hold until the last process
    is gone.
    """
    terminated: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(time.monotonic()))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(
        command,
        process_group=0,
        pass_fds=descriptors,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    passed_on = False
    while server.poll() is None and os.getppid() == owner:
        if terminated and not passed_on:
            server.terminate()
            passed_on = True
        if len(terminated) > 1 or (terminated and time.monotonic() > terminated[0] + grace_s):
            break
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    code = server.wait()
    _reap(time.monotonic() + _REAP_S)
    sweep(prefix)
    if os.getppid() != owner:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _reap(until: float) -> None:
    """Wait for the killed stubs, which are this process's children now, so that they are gone when it ends."""
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(_POLL_S / 10)


if __name__ == "__main__":
    _owner, _prefix, _folder, _grace, _descriptors, *_command = sys.argv[1:]
    sys.exit(
        main(int(_owner), _prefix, _folder, float(_grace), [int(d) for d in _descriptors.split(",")], _command) & 255
    )
