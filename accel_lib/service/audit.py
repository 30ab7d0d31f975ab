"""The audit log: who changed what, when, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field

from accel_lib.service.database import Database


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One action of an operator; `detail` never holds a user's text or a key."""

    at: Annotated[float, Field(description="Seconds since 1970.")]
    request_id: str
    who: str
    action: str
    target: str
    detail: dict[str, Any]
    outcome: Annotated[str, Field(description="done, what went wrong, or begun if the gateway ended in between.")]


class Audit:
    """Writes an entry before an action and its outcome after it: what cannot be recorded is not done."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    @contextlib.contextmanager
    def action(self, who: str, action: str, target: str, *, request_id: str = "", **detail: Any) -> Iterator[None]:
        """Record what is done inside; raises `StateError` before it runs if that is not possible."""
        values = (self._now(), request_id, who, action, target, json.dumps(detail, sort_keys=True), "begun")
        with self._database.changing() as change:
            number = change.execute(
                "INSERT INTO audit (at_s, request_id, who, action, target, detail, outcome) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
        outcome = "done"
        try:
            yield
        except BaseException as error:
            outcome = str(error).partition("\n")[0] or type(error).__name__
            raise
        finally:
            self._database.write("UPDATE audit SET outcome = ? WHERE number = ?", (outcome, number))

    def entries(self, limit: int = 100) -> list[AuditEntry]:
        """The latest entries, newest first."""
        rows = self._database.read(
            "SELECT at_s AS at, request_id, who, action, target, detail, outcome FROM audit "
            "ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return [AuditEntry(**{**row, "detail": json.loads(row["detail"])}) for row in rows]
