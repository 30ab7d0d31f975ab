"""TensorRT or TensorRT-RTX, whichever is installed: one small view of both, with their complaints collected.

Only calls that TensorRT 10, TensorRT 11 and TensorRT-RTX share are used anywhere in this library.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import subprocess
import sys
from types import ModuleType
from typing import Any

from accel_lib.artifact import Manifest
from accel_lib.errors import MissingDependencyError
from accel_lib.machine import Gpu

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}  # import name -> extra


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
    return [name for name in LIBRARIES if importlib.util.find_spec(name)]


def ensure_installed(requirement: str = "accel_lib[rtx]") -> None:
    """Install TensorRT-RTX with pip where no TensorRT is installed, and print which one is there.

    The build for CUDA 12 is taken: newer drivers run it too, and without a driver it builds engines all the same.

    Raises
    ------
    MissingDependencyError
        pip could not install it, or there is none for this system (it needs Linux on x86-64).
    """
    if not installed():
        print("installing TensorRT-RTX, once", flush=True)
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", requirement],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        importlib.invalidate_caches()
        if not installed():
            raise MissingDependencyError(
                "TensorRT-RTX could not be installed.",
                seen=pip.stderr.strip() or f"pip has none for {sys.platform} and this Python",
                fix="on Linux x86-64: python -m pip install 'accel_lib[rtx]'",
            )
    print("installed:", ", ".join(f"{name} {load_library(name).version}" for name in installed()))


def built_with(manifest: Manifest) -> str:
    """Import name of the library that built an engine."""
    return next((name for name in LIBRARIES if name in manifest.versions), "tensorrt")


def load_library(name: str) -> Library:
    """Import one of the two libraries, with a logger that prints nothing and keeps the errors.

    Raises
    ------
    MissingDependencyError
        It is not installed, or does not load here.
    """
    library = _import(name)
    library.complaints.clear()
    return library


@functools.cache  # TensorRT keeps the first logger it is given for as long as the process lives
def _import(name: str) -> Library:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a missing libnvinfer or driver library surfaces as whatever the loader raises
        raise MissingDependencyError(
            f"{name} is needed here and could not be imported.",
            seen=error,
            fix=f"python -m pip install 'accel_lib[{LIBRARIES[name]}]'",
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
