"""Errors of the libraries that read model folders, as this library's own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from accel_lib.errors import AccelError, ModelError
from accel_lib.models.checks import first_line

_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)


@contextlib.contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever another library raises inside the block into a `ModelError` that names the folder."""
    try:
        yield
    except AccelError:
        raise
    except Exception as error:  # three libraries read here, each with errors of its own
        fix = "fetch the model again: hf download <id> --local-dir <folder>"
        if isinstance(error, ImportError):
            fix = "install what it names, with python -m pip install"
        elif isinstance(error, _UNREADABLE) and not isinstance(error, json.JSONDecodeError | UnicodeError):
            fix = "update transformers (python -m pip install -U transformers), which does not read it; or pick another"
        raise ModelError(
            f"The {what} in {folder.name} cannot be loaded.", seen=first_line(error, folder), fix=fix
        ) from error
