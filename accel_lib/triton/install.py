"""Installs the Triton Inference Server from NVIDIA's ``nvidia-pytriton`` wheel into the user's cache.

The wheel holds ``tritonserver`` with its Python backend and response cache. pip fetches and hash-checks it, and it is
unpacked into a folder of its own, so nothing in the Python environment changes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

from accel_lib.atomic import atomic_directory, locked
from accel_lib.errors import MachineError, ServerError
from accel_lib.machine import cache_dir, thread_environment
from accel_lib.wheels import Wheel

TRITON_VERSION = "2.51.0"
_WHEEL = Wheel(
    what="Triton",
    requirement="nvidia-pytriton==0.7.0",
    digest="21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    variable="ACCEL_TRITON_WHEEL",
    error=ServerError,
)
_PYTHONS = ("3.11", "3.12", "3.13")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_GLIBC = (2, 35)
_RECORD = "installed.json"
_SERVER = Path("pytriton", "tritonserver")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TritonInstall:
    """The paths of an installed Triton.

    Parameters
    ----------
    version
        Version of the server.
    binary
        The ``tritonserver`` executable.
    backends, caches
        Folders for ``--backend-directory`` (with the stub of the running Python) and ``--cache-directory``.
    library_path
        Folders that must come first on ``LD_LIBRARY_PATH``: the stub has to load the running Python's own library.
    """

    version: str
    binary: Path
    backends: Path
    caches: Path
    library_path: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """Environment variables with which Triton's stubs run this Python with its packages."""
        packages = [p for p in sys.path if p and Path(p).is_dir()]
        first = {
            "LD_LIBRARY_PATH": [str(p) for p in self.library_path],
            "PATH": [str(Path(sys.executable).parent)],
            "PYTHONPATH": [*packages, str(Path(__file__).parents[2])],
        }
        inherited = {name: [os.environ[name]] if os.environ.get(name) else [] for name in first}
        return (
            thread_environment() | os.environ | {name: os.pathsep.join(first[name] + inherited[name]) for name in first}
        )


def ensure_tritonserver() -> TritonInstall:
    """Install Triton into the cache on first use, and check it cheaply on every later one.

    Set ``ACCEL_TRITON_WHEEL`` to the wheel's path on a machine that cannot reach a package index.

    Raises
    ------
    MachineError
        Not Linux on x86-64, a glibc or Python the wheel has no build for, or a Python without its shared library.
    ServerError
        The wheel could not be fetched, or is not the one this version was tested with.
    """
    _check_machine()
    root = cache_dir("triton", TRITON_VERSION)
    if not _whole(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent):
            if not _whole(root):
                _install(root)
    libraries = Path(sysconfig.get_config_var("LIBDIR") or "")
    install = TritonInstall(
        version=TRITON_VERSION,
        binary=root / _SERVER / "bin" / "tritonserver",
        backends=root / _SERVER / f"backends-{_PYTHON}",
        caches=root / _SERVER / "caches",
        library_path=(libraries,) if libraries.is_absolute() and libraries.is_dir() else (),
    )
    _check_stub(install)
    return install


def _check_machine() -> None:
    elsewhere = "use Linux on x86-64: Colab, Kaggle, any Ubuntu 22.04 or newer, or WSL2 on Windows"
    system = f"{platform.system()} on {platform.machine()}"
    if system != "Linux on x86_64":
        raise MachineError("Triton's wheel runs on Linux on x86-64 only.", seen=system, fix=elsewhere)
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < _GLIBC:
        wanted = ".".join(map(str, _GLIBC))
        raise MachineError(
            f"Triton needs glibc {wanted} or newer.", seen=f"{name or 'no glibc'} {version}", fix=elsewhere
        )
    if _PYTHON not in _PYTHONS:
        raise MachineError(
            f"Triton's Python backend has no stub for this Python; it has {', '.join(_PYTHONS)}.",
            seen=f"Python {platform.python_version()}",
            fix="make the environment with one of these: python3.12 -m venv .venv",
        )


def _whole(root: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((root / _RECORD).read_text(encoding="utf-8"))
        return all((root / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _install(root: Path) -> None:
    started = time.monotonic()
    print(f"Triton {TRITON_VERSION}: into the cache, once, from {_WHEEL.source} (55 MB) …", end=" ", flush=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=root.parent) as folder, atomic_directory(root) as draft:
        wheel = _WHEEL.fetch(Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(draft)
        except OSError as error:
            raise ServerError(
                "Triton could not be unpacked into the cache.",
                seen=error,
                fix="free 200 MB there, or choose another folder: export ACCEL_HOME=<folder>",
            ) from error
        _arrange(draft)
        sizes = {str(f.relative_to(draft)): f.stat().st_size for f in sorted(draft.rglob("*")) if f.is_file()}
        (draft / _RECORD).write_text(json.dumps(sizes), encoding="utf-8")
    print(f"{sum(sizes.values()) / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")


def _arrange(draft: Path) -> None:
    """A backend folder with the matching stub for each Python, as deep as the wheel's, so that its rpath holds."""
    server = draft / _SERVER
    for python in _PYTHONS:
        backend = shutil.copytree(server / "backends" / "python", server / f"backends-{python}" / "python")
        stub = shutil.copy2(server / "python_backend_stubs" / python / "triton_python_backend_stub", backend)
        Path(stub).chmod(0o755)
    (server / "bin" / "tritonserver").chmod(0o755)


def _check_stub(install: TritonInstall) -> None:
    stub = install.backends / "python" / "triton_python_backend_stub"
    done = subprocess.run([stub], env=install.environment(), capture_output=True, text=True, check=False, timeout=60)
    if "error while loading shared libraries" in done.stderr:
        raise MachineError(
            "Triton's Python backend cannot load this Python's shared library.",
            seen=done.stderr.strip().removeprefix(f"{stub}: "),
            fix=f"install it (apt-get install libpython{_PYTHON}), or use a Python built with --enable-shared",
        )
