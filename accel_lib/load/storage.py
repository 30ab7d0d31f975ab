"""A measurement on disk: its table, what else belongs to it, the machine and the versions, as JSON or Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from accel_lib.atomic import check_ours, writing_file
from accel_lib.errors import AccelError, require
from accel_lib.machine import inspect_machine

_FORMAT = "accel_lib run 1"
_KEY = "accel_lib"


def write(path: Path, frame: pd.DataFrame, facts: dict[str, Any]) -> Path:
    """Write a table with its facts; the suffix says the format.

    Raises
    ------
    AccelError
        The suffix is neither ``.json`` nor ``.parquet``, pyarrow is missing for the latter, or the file that is there
        holds no run.
    """
    about = {"format": _FORMAT, "facts": facts, "attrs": frame.attrs, "versions": inspect_machine().versions}
    if _suffix(path) == ".json":
        columns = json.loads(frame.to_json(orient="split", double_precision=15, index=False))
        with writing_file(path, ours=_holds_a_run) as draft:
            draft.write_text(json.dumps(about | {"table": columns}), encoding="utf-8")
    else:
        arrow, parquet = _arrow()
        table = arrow.Table.from_pandas(frame, preserve_index=False)
        metadata = {**(table.schema.metadata or {}), _KEY.encode(): json.dumps(about).encode()}
        with writing_file(path, ours=_holds_a_run) as draft:
            parquet.write_table(table.replace_schema_metadata(metadata), draft)
    return path


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the facts that `write` kept; the table's ``attrs`` name machine and versions.

    Raises
    ------
    AccelError
        There is no such file, or it holds something else.
    """
    suffix = _suffix(path)
    if not path.is_file():
        raise AccelError("There is no such run.", seen=path.name, fix="run.save(path) writes one")
    try:
        if suffix == ".json":
            about = json.loads(path.read_text(encoding="utf-8"))
            frame = pd.DataFrame(about["table"]["data"], columns=about["table"]["columns"])
        else:
            table = _arrow()[1].read_table(path)
            about = json.loads((table.schema.metadata or {})[_KEY.encode()])
            frame = table.to_pandas()
        if about["format"] != _FORMAT:
            raise KeyError(about["format"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise AccelError(
            "This file holds no run.", seen=f"{path.name}: {error}", fix="read what run.save wrote"
        ) from error
    frame.attrs.clear()
    frame.attrs |= about["attrs"] | {"versions": about["versions"]}
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


def _arrow() -> tuple[Any, Any]:
    return require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
