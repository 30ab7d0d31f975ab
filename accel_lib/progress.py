"""A progress line that says what is being waited for, and for how long."""

from __future__ import annotations

import os
import sys
import time


def live_notebook() -> bool:
    """Whether this is a kernel with a reader: not a headless run, nor a process that only imported ipykernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") and os.environ.get("ACCEL_HEADLESS") != "1"


def watched() -> bool:
    """Whether a line that is rewritten in place can be seen: in a live notebook or a terminal."""
    return live_notebook() or sys.stdout.isatty()


class Progress:
    """A line rewritten in place while something starts, and one plain line at its end.

    Only a terminal or a live notebook sees the seconds count; a file, a pipe or a headless notebook run gets the last
    line alone.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._shown = ""
        self._live = watched()

    def tick(self, step: str) -> None:
        """Show the present step and the seconds so far."""
        line = f"{self._what}: {step}, {time.monotonic() - self._started:.0f} s"
        if self._live and line != self._shown:
            self._write(line)

    def done(self, result: str) -> None:
        """Replace the line by what came of it, with the seconds it took."""
        self._write(f"{self._what}: {result} in {time.monotonic() - self._started:.1f} s")
        print()

    def clear(self) -> None:
        """Take the line back, before an error is raised."""
        if self._shown:
            self._write("")

    def _write(self, line: str) -> None:
        back = "\r" if self._shown else ""
        print(f"{back}{line:<{len(self._shown)}}", end="\r" if not line else "", flush=True)
        self._shown = line
