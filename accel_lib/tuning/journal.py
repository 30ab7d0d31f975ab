"""A sweep's measurements, kept line by line as they come, so that one that was cut off goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_lib.errors import AccelError
from accel_lib.measurement import machine_line

_Key = tuple[tuple[str, int], ...]


class Journal:
    """Rounds by setting; on disk too when there is a file, a line of JSON each, the first one saying what is measured.

    Parameters
    ----------
    file
        Made if it is not there; None keeps everything in memory.
    measured
        What every line has in common. A file that says something else is refused.

    Raises
    ------
    AccelError
        The file is of another sweep, or is no journal.
    """

    def __init__(self, file: str | Path | None, measured: Mapping[str, Any]) -> None:
        self._path = Path(file) if file else None
        self._runs: dict[_Key, list[dict[str, Any]]] = {}
        self._alone_ms = 0.0
        head = {"measured": dict(measured), "machine": machine_line()}
        if self._path is None:
            return
        if self._path.exists():
            self._read(self._path, head)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(head)

    @property
    def alone_ms(self) -> float:
        """Median latency of one request at a time; 0 before it was measured."""
        return self._alone_ms

    @alone_ms.setter
    def alone_ms(self, value: float) -> None:
        self._alone_ms = value
        self._write({"alone_ms": value})

    def runs(self, setting: Mapping[str, int]) -> list[dict[str, Any]]:
        """The rounds of a setting so far."""
        return self._runs.get(_key(setting), [])

    def add(self, setting: Mapping[str, int], run: Mapping[str, Any]) -> None:
        """Keep one more round of a setting."""
        plain = {name: getattr(value, "item", lambda value=value: value)() for name, value in run.items()}
        self._runs.setdefault(_key(setting), []).append(plain)
        self._write({"setting": dict(setting), "run": plain})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _read(self, path: Path, head: Mapping[str, Any]) -> None:
        try:
            whole, _, half = path.read_bytes().decode().rpartition("\n")
            lines = [json.loads(line) for line in whole.splitlines()]
            said = dict(lines[0])
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise AccelError("This file is no journal of a sweep.", seen=path.name, fix="name a new file") from error
        if said != head:
            differing = [name for name in head if said.get(name) != head[name]]
            raise AccelError(
                "The journal is of another sweep.",
                seen=", ".join(f"{name}: {said.get(name)} there, {head[name]} here" for name in differing),
                fix=f"name another file, or remove {path.name}",
            )
        if half:  # cut off while it was written
            os.truncate(path, len(whole.encode()) + 1)
        for line in lines[1:]:
            if "alone_ms" in line:
                self._alone_ms = line["alone_ms"]
            else:
                self._runs.setdefault(_key(line["setting"]), []).append(line["run"])


def _key(setting: Mapping[str, int]) -> _Key:
    return tuple(sorted(setting.items()))
