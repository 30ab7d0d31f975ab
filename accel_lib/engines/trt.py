"""TensorRT or TensorRT-RTX, whichever is installed: one small view of both, with their complaints collected.

Only calls that TensorRT 10, TensorRT 11 and TensorRT-RTX share are used anywhere in this library.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from types import ModuleType
from typing import Any

from accel_lib.errors import MissingDependencyError
from accel_lib.machine import Gpu

_EXTRA = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


@dataclasses.dataclass(frozen=True)
class Library:
    """An imported TensorRT: its import name (``"tensorrt"`` or ``"tensorrt_rtx"``), module, logger and complaints."""

    name: str
    module: ModuleType
    logger: Any
    complaints: list[str]

    @property
    def version(self) -> str:
        """Version of the library itself, such as ``"10.13.3.9"``."""
        return str(self.module.__version__)

    def complaint(self) -> str:
        """What it last complained about, for an error message."""
        return self.complaints[-1] if self.complaints else "no reason given"


def installed() -> list[str]:
    """Import names of the TensorRT libraries that are installed, full TensorRT first."""
    return [name for name in _EXTRA if importlib.util.find_spec(name)]


def load_library(name: str) -> Library:
    """Import one of the two libraries, with a logger that keeps warnings and errors to itself.

    Raises
    ------
    MissingDependencyError
        It is not installed, or does not load here.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a missing libnvinfer or driver library surfaces as whatever the loader raises
        raise MissingDependencyError(
            f"{name} is needed here and could not be imported.",
            seen=error,
            fix=f"python -m pip install 'accel_lib[{_EXTRA[name]}]'",
        ) from error
    complaints: list[str] = []

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(message)

    return Library(name, module, Logger(), complaints)


def compute_target(gpu: Gpu) -> str:
    """A GPU as the name of an engine's target: compute capability 7.5 is ``"sm75"``."""
    return "sm" + gpu.compute_capability.replace(".", "")
