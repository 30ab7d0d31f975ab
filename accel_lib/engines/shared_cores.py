"""Whether no other process of a model computes now, so that a batch may take the cores of all of them.

Triton's Python backend gives each instance a process of its own. Each holds a read lock on one file while it computes,
and asks who else does; the kernel takes the lock from a process that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_FLOCK = struct.Struct("hhlli4x")  # struct flock on 64-bit Linux: type, whence, start, length, process
_FOR_WRITING = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class SharedCores:
    """The cores that the processes on this machine share; there is one such object in a process.

    Parameters
    ----------
    file
        One that all of them can read.
    """

    def __init__(self, file: str | Path = __file__) -> None:
        self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def computing(self) -> Iterator[bool]:
        """Count this process among those that compute; yields whether no other was when it began."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            seen, *_ = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, _FOR_WRITING))
        except OSError:  # a file system without locks
            seen = None
        try:
            yield seen == fcntl.F_UNLCK
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
