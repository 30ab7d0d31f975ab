"""The gateway's SQLite file for keys, experiments and the audit log; several processes may open it (write-ahead mode).

A change is on the disk when the call returns, or it is an error and not there: a full disk loses nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accel_lib.errors import StateError

_BUSY_MS = 5_000
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, digest BLOB NOT NULL,
    created_s REAL NOT NULL, revoked_s REAL
);
CREATE TABLE experiments (name TEXT PRIMARY KEY, model TEXT NOT NULL, status TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE live (model TEXT PRIMARY KEY, version TEXT NOT NULL, previous TEXT NOT NULL);
CREATE TABLE batching (model TEXT PRIMARY KEY, settings TEXT NOT NULL);
CREATE TABLE observations (
    number INTEGER PRIMARY KEY, experiment TEXT NOT NULL, version TEXT NOT NULL,
    latency_ms REAL, compute_ms REAL, texts INTEGER, failed INTEGER NOT NULL, agreement REAL
);
CREATE INDEX observed ON observations (experiment, number);
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, request_id TEXT NOT NULL, who TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL, outcome TEXT NOT NULL
);
"""


class Database:
    """An open state file; made with its folder if it is not there, readable by its owner only."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writing, self._reading = threading.RLock(), threading.Lock()
        self._closed = False
        with self._translated("opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            self._writer = self._connect()
            self._refuse_foreign()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")  # a commit is on the disk, also after a power cut
            self._prepare()
            self._reader = self._connect()  # so that who reads never waits for who writes

    def read(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Rows of a query; raises `StateError` when the file cannot be read."""
        with self._reading, self._translated("read"):
            return self._reader.execute(query, values).fetchall()

    def write(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Change one thing; returns the number of rows changed. Raises `StateError`, with nothing changed."""
        with self.changing() as change:
            return change.execute(statement, values).rowcount

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Several changes that are made together or not at all; raises `StateError` with everything as it was."""
        with self._writing, self._translated("written"):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself
                    self._writer.execute("ROLLBACK")
                raise

    def changes(self) -> int:
        """A mark that is another one after each change, by this process or another."""
        return int(self.read("PRAGMA data_version")[0][0])

    def close(self) -> None:
        """Close the file; later calls raise `StateError`."""
        with self._writing, self._reading:
            self._closed = True
            self._reader.close()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_MS / 1e3, check_same_thread=False, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _refuse_foreign(self) -> None:
        tables = {row[0] for row in self._writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not tables >= {"keys", "experiments", "live", "audit"}:
            raise StateError(
                "This file is another program's database.",
                seen=f"{self.path.name} with tables {', '.join(sorted(tables)[:3])}",
                fix="name a file of its own: export ACCEL_STATE_FILE=gateway.sqlite3",
            )

    def _prepare(self) -> None:
        with self.changing() as change:
            (version,) = change.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    change.execute(statement)
                change.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                raise StateError(
                    "The state was written by another version of this library.",
                    seen=f"{self.path.name} has schema {version}, this version reads {_SCHEMA_VERSION}",
                    fix=f"move it away: {self._set_aside}",
                )

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            cause = f"The gateway's state could not be {what}."
            if self._closed:
                fix = "open it again: Database(path)"
            elif getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                cause = "The gateway's state file is damaged, or no state file of this library."
                fix = f"put a copy of {self.path.name} in its place, or start without: {self._set_aside}"
            elif what == "opened":
                fix = "name a file that can be read and written, or a new one: ACCEL_STATE_FILE=gateway.sqlite3"
            else:
                fix = f"make room on the disk of {self.path.name}, and see that it can be written; nothing was lost"
            raise StateError(cause, seen=error, fix=fix) from error

    @property
    def _set_aside(self) -> str:
        return f"mv {self.path.name} {self.path.name}.old, which makes new keys and begins the audit log again"
