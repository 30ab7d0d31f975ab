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
from accel_lib.errors import MachineError, MissingDependencyError
from accel_lib.machine import DRIVERS, Gpu, Machine, inspect_machine

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


def requirement(library: str = "tensorrt_rtx", machine: Machine | None = None) -> str:
    """What pip installs for a library here: the build for the CUDA release of PyTorch, else for the driver's.

    Without a driver it is the build for CUDA 12, which builds engines all the same and runs with newer drivers too.

    Raises
    ------
    MachineError
        The driver is too old for that build.
    """
    machine = machine or inspect_machine()
    if machine.gpus and machine.driver < DRIVERS[machine.cuda]:
        raise MachineError(
            f"The driver is too old for CUDA {machine.cuda}, which PyTorch here was built for.",
            seen=f"driver {machine.gpus[0].driver}, torch {machine.versions.get('torch', 'not installed')}",
            fix=f"install driver {DRIVERS[machine.cuda]} or newer, or a PyTorch built for CUDA 12",
        )
    return {"tensorrt_rtx": "tensorrt-rtx-cu{}>=1.7", "tensorrt": "tensorrt-cu{}>=10.12"}[library].format(machine.cuda)


def ensure_installed(wanted: str = "") -> None:
    """Install TensorRT-RTX with pip where no TensorRT is installed, and print which one is there.

    Parameters
    ----------
    wanted
        What to install in its place: a requirement for pip.

    Raises
    ------
    MissingDependencyError
        pip could not install it, or there is none for this system (it needs Linux on x86-64).
    MachineError
        The driver is too old.
    """
    if not installed():
        wanted = wanted or requirement()
        print(f"installing {wanted}, once", flush=True)
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", wanted],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        importlib.invalidate_caches()
        if not installed():
            raise MissingDependencyError(
                "TensorRT could not be installed.",
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
