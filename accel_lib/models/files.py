"""Read a model folder's JSON files, or say which one cannot be honoured and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from accel_lib.errors import ModelError

T = TypeVar("T", dict[str, Any], list[Any])


def refused(folder: Path, what: str, *, fix: str | None = None) -> ModelError:
    """The error for something that is recognised and cannot be honoured exactly."""
    return ModelError(
        f"{folder.name} holds {what}, which this library does not convert.",
        fix=fix or "use a model of Transformer, Pooling, Dense and Normalize modules: accel models lists some",
    )


def read_json(path: Path, layout: type[T]) -> T:
    """Parse a settings file of that layout (``dict`` or ``list``), or raise a `ModelError` that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} in {path.parent.name} cannot be read.",
            seen=error.strerror if isinstance(error, OSError) else error,
            fix="fetch the model again: hf download <id> --local-dir <folder>",
        ) from error
    if not isinstance(content, layout):
        raise refused(path.parent, f"an unknown layout in {path.name}")
    return content


def optional_json(path: Path) -> dict[str, Any]:
    """A settings file as `read_json` reads it; empty where there is none."""
    return read_json(path, dict) if path.is_file() else {}
