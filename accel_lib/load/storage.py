"""A measurement on disk as JSON or Parquet: its table, its other fields, the machine and the versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.atomic import atomic_file, check_ours
from accel_lib.errors import AccelError, require
from accel_lib.machine import inspect_machine

_FORMAT = "accel_lib run 1"


def write(path: Path, frame: pd.DataFrame, facts: dict[str, Any]) -> Path:
    """Write a table with its facts as ``.json`` or ``.parquet``, over nothing that holds no run."""
    about: dict[Any, Any] = {
        "format": _FORMAT,
        "facts": facts,
        "versions": inspect_machine().versions,
        "attrs": frame.attrs,
    }
    if _suffix(path) == ".json":
        columns = json.loads(frame.to_json(orient="split", double_precision=15, index=False))
        with atomic_file(path, ours=_holds_a_run) as draft:
            draft.write_text(json.dumps(about | {"table": columns}), encoding="utf-8")
    else:
        require("pyarrow", extra="parquet")
        kept = frame.copy()
        kept.attrs = about  # pandas writes them into the file
        with atomic_file(path, ours=_holds_a_run) as draft:
            kept.to_parquet(draft, index=False)
    return path


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the facts that `write` kept; the table's ``attrs`` name machine and versions."""
    suffix = _suffix(path)
    if not path.is_file():
        raise AccelError("There is no such run.", seen=path.name, fix="run.save(path) writes one")
    try:
        if suffix == ".json":
            about = json.loads(path.read_text(encoding="utf-8"))
            frame = pd.DataFrame(about["table"]["data"], columns=about["table"]["columns"])
        else:
            require("pyarrow", extra="parquet")
            frame = pd.read_parquet(path)
            about = frame.attrs
        if about["format"] != _FORMAT:
            raise KeyError(about["format"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise AccelError(
            "This file holds no run.", seen=f"{path.name}: {error}", fix="read what run.save wrote"
        ) from error
    frame.attrs = about["attrs"] | {"versions": about["versions"]}
    return frame, about["facts"]


def check_target(path: Path) -> None:
    """Refuse a file that `write` would refuse, before anything is measured."""
    _suffix(path)
    check_ours(path, _holds_a_run)


def _holds_a_run(path: Path) -> bool:
    try:
        read(path)
    except AccelError:
        return False
    return True


def _suffix(path: Path) -> str:
    if path.suffix not in (".json", ".parquet"):
        raise AccelError("A run is kept as JSON or Parquet.", seen=path.name, fix='run.save("run.json")')
    return path.suffix
