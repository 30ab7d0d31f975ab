"""The audit log: who changed what, when, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accel_lib.service.state import State

_BEGUN, _DONE = "begun", "done"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One action of an operator.

    Parameters
    ----------
    at_s
        When it was begun, seconds since 1970.
    request_id, who
        The request's ``x-request-id`` and the principal's id.
    action, target, detail
        What was asked, of what, with which values; never a text of a user, never a key.
    outcome
        ``"done"``, what went wrong, or ``"begun"`` if the gateway ended in between.
    """

    at_s: float
    request_id: str
    who: str
    action: str
    target: str
    detail: Mapping[str, Any]
    outcome: str


class Audit:
    """Writes an entry before an action and its outcome after it: what cannot be recorded is not done."""

    def __init__(self, state: State, now: Callable[[], float] = time.time) -> None:
        self._state, self._now = state, now

    @contextlib.contextmanager
    def action(self, who: str, action: str, target: str, *, request_id: str = "", **detail: Any) -> Iterator[None]:
        """Record what is done inside.

        Raises
        ------
        StateError
            The entry cannot be written, such as on a full disk: what is inside does not run.
        """
        values = (self._now(), request_id, who, action, target, json.dumps(detail, sort_keys=True), _BEGUN)
        with self._state.changing() as change:
            number = change.execute(
                "INSERT INTO audit (at_s, request_id, who, action, target, detail, outcome) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
        outcome = _DONE
        try:
            yield
        except BaseException as error:
            outcome = str(error).partition("\n")[0] or type(error).__name__
            raise
        finally:
            self._state.write("UPDATE audit SET outcome = ? WHERE number = ?", (outcome, number))

    def entries(self, limit: int = 100) -> list[Entry]:
        """The latest entries, newest first."""
        rows = self._state.read("SELECT * FROM audit ORDER BY number DESC LIMIT ?", (limit,))
        return [
            Entry(
                **{field.name: row[field.name] for field in dataclasses.fields(Entry) if field.name != "detail"},
                detail=json.loads(row["detail"]),
            )
            for row in rows
        ]
