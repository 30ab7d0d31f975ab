"""Load with other people's libraries without their progress bars and load reports in the reader's cell."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import rich


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Show only errors of transformers and sentence-transformers inside the block, and restore what was set."""
    theirs: Any = importlib.import_module("transformers.utils.logging")  # untyped

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    sentence = logging.getLogger("sentence_transformers")
    level = sentence.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    sentence.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        sentence.setLevel(level)
        if bars:
            theirs.enable_progress_bar()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without NNCF's progress bars, which rich draws: in a notebook they leave an empty output each."""
    console = rich.get_console()
    before = console.is_jupyter, console.quiet
    console.is_jupyter, console.quiet = False, True
    try:
        yield
    finally:
        console.is_jupyter, console.quiet = before
