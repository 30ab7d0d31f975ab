"""Writes files and folders whole or not at all, and never over what this library did not write.

Everything is written into a draft folder beside its target and moved there in one step. A process locks its draft, so
that the next write recognizes the draft of a process that was killed, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accel_lib.errors import OutputError

_DRAFT = ".accel-"  # ".<name>.accel-<random>" is a draft of <name>
_OLD = ".replaced"  # in a draft: what was in its target's place
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # another process wrote the folder meanwhile
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES = 2**20  # a disk with less room than this counts as full, for libraries that lose the error's number
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>


def replaceable(folder: str | Path, foreign: Callable[[Path], Sequence[str]]) -> Path:
    """The folder itself, links followed, if it is absent, empty, or holds only what this library wrote.

    `foreign` gives the names of what it did not write. A file, the working directory and a folder with anything else
    are an `OutputError`.
    """
    found = Path(folder).resolve()
    if found == Path.cwd():
        raise OutputError("The folder that you are in is not replaced.", fix="name one inside it: model")
    if found.exists() and not found.is_dir():
        raise OutputError(f"{found.name} is a file, so it stays.", fix=f"name a folder: {found.name}-model")
    others = foreign(found) if found.is_dir() else ()
    if others:
        seen = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise OutputError(
            f"{found.name} holds what this library did not write, so it stays.",
            seen=seen,
            fix="move that elsewhere first, or name another folder",
        )
    return found


@contextlib.contextmanager
def atomic_directory(folder: str | Path, *, foreign: Callable[[Path], Sequence[str]] | None = None) -> Iterator[Path]:
    """Yield an empty draft folder that replaces `folder` on success and is removed on error.

    At every moment, also if this process is killed, the old folder exists or the new one. `foreign` is as for
    `replaceable`; None for a folder of the library's own cache. A folder that may not be replaced or cannot be written,
    and a full disk, are an `OutputError`.
    """
    folder = replaceable(folder, foreign) if foreign else Path(folder).resolve()
    with draft_beside(folder) as draft:
        new = draft / folder.name
        new.mkdir()
        yield new
        new.chmod(_permissions(folder, otherwise=0o755))
        put(new, folder)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield where to write a file that replaces `path` on success and is removed on error.

    Its folder is made; a link is followed. `ours` says whether this library wrote the file that exists (None: it did).
    If not, or if the disk is full or the file cannot be written, that is an `OutputError`.
    """
    path = check_ours(path, ours) if ours else Path(path).resolve()
    with draft_beside(path) as draft:
        yield draft / path.name
        (draft / path.name).chmod(_permissions(path, otherwise=(draft / path.name).stat().st_mode))
        (draft / path.name).replace(path)


def check_ours(path: str | Path, ours: Callable[[Path], bool]) -> Path:
    """The path itself, links followed; raises `OutputError` if there is something that this library did not write."""
    path = Path(path).resolve()
    if path.exists() and not (path.is_file() and ours(path)):
        raise OutputError(
            f"{path.name} was not written by this library, so it stays.", fix=f"name another file: new-{path.name}"
        )
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; raises `OutputError` as `atomic_file` does."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A folder on the disk of `target` that is removed afterwards, on error with the parents made for it.

    The `OSError` of a full disk, or of a file that cannot be written, becomes an `OutputError`.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        with contextlib.ExitStack() as stack:
            while True:  # until no other process took it for one of a killed process, between this line and the lock
                draft = Path(tempfile.mkdtemp(prefix=f".{target.name}{_DRAFT}", dir=target.parent))
                stack.callback(shutil.rmtree, draft, ignore_errors=True)
                with contextlib.suppress(OSError):  # the file system has no locks
                    stack.enter_context(locked(draft))
                if draft.exists():
                    break
            yield draft
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if refusal := _refusal(target, error):
            raise refusal from error
        raise


def put(new: Path, folder: Path) -> None:
    """Move a folder from a draft to its place, in one step where the system can; the draft keeps what was there."""
    while True:
        try:
            if not folder.exists() or not any(folder.iterdir()):
                new.replace(folder)
            elif not _exchange(new, folder):
                _put_in_two_steps(new, folder)
            return
        except OSError as error:
            if error.errno not in (*_TAKEN, errno.ENOENT) or not new.exists():
                raise


def _put_in_two_steps(new: Path, folder: Path) -> None:
    old = new.with_name(_OLD)  # `recover` finds it if this process is killed before the second step
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _TAKEN:
            shutil.rmtree(old)  # another process wrote the folder, after what is removed here
        else:
            old.rename(folder)
        raise


def recover(target: Path) -> None:
    """Remove the drafts of killed processes; what one had moved away and not yet replaced is restored."""
    for draft in target.parent.glob(f".{glob.escape(target.name)}{_DRAFT}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(draft, wait=False))
                dead = True
            except BlockingIOError:
                raise
            except OSError:  # the file system has no locks: what looks dead may be alive
                dead = False
            if (draft / _OLD).is_dir() and not target.exists():
                with contextlib.suppress(OSError):  # another process wrote the target meanwhile
                    (draft / _OLD).rename(target)
            if dead:
                shutil.rmtree(draft, ignore_errors=True)


def is_draft(name: str) -> bool:
    """Whether a file or folder of this name is a draft of something."""
    return name.startswith(".") and _DRAFT in name


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder for this process, at most until it ends; `OSError` where the file system has no locks.

    If another process holds it, wait, or raise `BlockingIOError`.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "no locks on folders")
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _permissions(path: Path, otherwise: int) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return otherwise


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the kernel or the file system has no such thing."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return renameat2 is not None and renameat2(*paths) == 0


def _refusal(target: Path, error: BaseException) -> OutputError | None:
    if isinstance(error, OutputError) or not isinstance(error, Exception):
        return None
    if _disk_is_full(target, error):
        return OutputError(
            f"The disk is full: {target.name} was not written, and nothing was lost.",
            seen=os.strerror(errno.ENOSPC),
            fix="make room on its disk (df -h shows how much there is) or name a folder on another, then run it again",
        )
    if isinstance(error, OSError) and _is_of(target, error):
        return OutputError(
            f"{target.name} cannot be written.",
            seen=error.strerror or type(error).__name__,
            fix="name a place in a folder that you may write to",
        )
    return None


def _is_of(target: Path, error: OSError) -> bool:
    """Whether an error is of writing here, and not of what was read or fetched meanwhile."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else Path()
    ours = any(is_draft(part) and part.startswith(f".{target.name}{_DRAFT}") for part in path.parts)
    return ours or path == target or path in target.parents


def _disk_is_full(target: Path, error: BaseException) -> bool:
    while True:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause
    with contextlib.suppress(OSError):
        return shutil.disk_usage(target.parent).free < _FULL_BYTES
    return False
