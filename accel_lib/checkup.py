"""Checks what this machine can do, what it cannot, and which command fixes that."""

from __future__ import annotations

import dataclasses
import html
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accel_lib.engines.select import choices
from accel_lib.machine import BF16, DRIVERS, Machine, cache_dir, inspect_machine, libpython, major

if TYPE_CHECKING:
    import pandas as pd

State = Literal["ok", "warn", "fail"]

MARKS: dict[State, str] = {"ok": "✓", "warn": "!", "fail": "✗"}
_GLIBC = (2, 35)
_OLDEST_CAPABILITY = (7, 5)  # what the builds of PyTorch for CUDA 12.8 and newer, and TensorRT, still support
# How to attach a GPU, on machines that come with and without one.
_ATTACH = {
    "colab": "Runtime, Change runtime type, T4 GPU; then run the first cell again",
    "kaggle": "Settings, Accelerator, GPU T4 x2; then run the first cell again",
    "wsl2": "install NVIDIA's driver on Windows; it brings nvidia-smi into WSL2",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was checked, what was seen, and a fix where that is not enough: ``"fail"``, or ``"warn"``."""

    what: str
    seen: str
    state: State = "ok"
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Checkup:
    """Everything `doctor` found; a table in a notebook."""

    machine: Machine
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return all(finding.state != "fail" for finding in self.findings)

    def to_frame(self) -> pd.DataFrame:
        """One row a finding: what, seen, state, fix."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(finding) for finding in self.findings])

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """Mark, what was checked, what was seen, and the fix, of each finding."""
        return [(MARKS[finding.state], finding.what, finding.seen, finding.fix) for finding in self.findings]

    def __repr__(self) -> str:
        wide = max(len(finding.what) for finding in self.findings)
        lines = [
            f"{mark} {what:<{wide}}  {seen}" + (f"  → {fix}" if fix else "") for mark, what, seen, fix in self.rows
        ]
        return "\n".join([str(self.machine), *lines])

    def _repr_html_(self) -> str:
        table = [_html_row("th", ("", "what", "seen", "what to do")), *(_html_row("td", row) for row in self.rows)]
        return f"<p>{html.escape(str(self.machine))}</p><table>{''.join(table)}</table>"


def doctor(machine: Machine | None = None) -> Checkup:
    """Check a machine from the C library to the ports, in under a second, importing nothing heavy.

    Parameters
    ----------
    machine
        What `inspect_machine` saw; None looks now.

    Examples
    --------
    >>> doctor().ok
    True
    """
    machine = machine or inspect_machine()
    checks = (
        _python,
        _system,
        _libpython,
        _processor,
        _memory,
        _gpu,
        _torch,
        _packages,
        _openvino,
        _tensorrt,
        _engines,
    )
    findings = [finding for check in checks for finding in check(machine)]
    return Checkup(machine, (*findings, _triton(), _ports()))


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _finding(what: str, seen: str, *, warn: str = "", fail: str = "") -> Finding:
    """A finding with the fix of a warning or of a failure; without a fix all is well."""
    return Finding(what, seen, "fail" if fail else "warn" if warn else "ok", fail or warn)


def _python(machine: Machine) -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "use Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.12"
    yield _finding("Python", machine.python, fail="" if supported else fix)


def _system(machine: Machine) -> Iterator[Finding]:
    name, _, version = machine.libc.partition(" ")
    enough = name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= _GLIBC
    serves = machine.system == "Linux x86_64" and enough
    fix = "serving needs Linux x86-64 with glibc 2.35 (Colab, Kaggle, Ubuntu 22.04, WSL2); converting works here"
    seen = f"{machine.system}, {machine.libc or 'no glibc'} ({machine.place})"
    yield _finding("System", seen, warn="" if serves else fix)


def _libpython(machine: Machine) -> Iterator[Finding]:
    if sys.version_info >= (3, 13) or not machine.system.startswith("Linux"):
        return  # Triton's stub for Python 3.13 needs no shared library
    if libpython() in machine.libraries:
        yield _finding("Python library", libpython())
    else:
        fix = f"Triton's Python backend loads it: apt-get install libpython3.{sys.version_info.minor}"
        yield _finding("Python library", f"no {libpython()}", warn=fix)


def _processor(machine: Machine) -> Iterator[Finding]:
    seen = f"{machine.cores} cores of {machine.cpu}, {', '.join(machine.isa) or 'no fast instructions known'}"
    slow = machine.system == "Linux x86_64" and not machine.isa
    yield _finding("CPU", seen, warn="everything runs, several times slower than with AVX2" if slow else "")


def _memory(machine: Machine) -> Iterator[Finding]:
    gibibytes = machine.memory_bytes / 2**30
    fix = "close other programs: the course needs about 4 GiB" if gibibytes < 4 else ""
    yield _finding("Memory", f"{gibibytes:.1f} GiB", warn=fix)
    shared = Path("/dev/shm")  # noqa: S108 (shared memory, which Triton needs)
    if shared.is_dir():
        mebibytes = shutil.disk_usage(shared).total / 2**20
        fix = "Triton passes tensors through it: docker run --shm-size=1g" if mebibytes < 256 else ""
        yield _finding("Shared memory", f"{mebibytes:,.0f} MiB in /dev/shm", warn=fix)


def _gpu(machine: Machine) -> Iterator[Finding]:
    if not machine.gpus and shutil.which("nvidia-smi") and machine.place not in ("colab", "kaggle"):
        yield _finding("GPU", "nvidia-smi is here and shows no GPU", warn="run nvidia-smi and read what it says")
    elif not machine.gpus and machine.place in _ATTACH:
        yield _finding("GPU", "none attached: CPU engines", warn=_ATTACH[machine.place])
    elif not machine.gpus:
        yield _finding("GPU", "none: CPU engines")
    for gpu in machine.gpus:
        old = tuple(map(int, gpu.compute_capability.split("."))) < _OLDEST_CAPABILITY
        fix = "PyTorch and TensorRT no longer support it: choose a T4 or newer" if old else ""
        yield _finding("GPU", str(gpu), fail=fix)
    if machine.gpus:
        driver = machine.gpus[0].driver
        cuda = next((cuda for cuda, oldest in DRIVERS.items() if machine.driver >= oldest), None)
        fix = "" if cuda else f"install driver {DRIVERS['12']} or newer"
        yield _finding("Driver", f"{driver}: CUDA {cuda}" if cuda else driver, fail=fix)


def _torch(machine: Machine) -> Iterator[Finding]:
    version = machine.versions.get("torch")
    if version is None:
        yield _finding("torch", "not installed", fail="python -m pip install 'accel_lib[models]'")
    elif machine.gpus and version.endswith("+cpu"):
        fix = "python -m pip uninstall -y torch, then python -m pip install torch"
        yield _finding("torch", f"{version}: it cannot see the GPU", warn=fix)
    elif machine.gpus and machine.torch_cuda and machine.driver < DRIVERS[machine.torch_cuda]:
        seen = f"{version}: built for CUDA {machine.torch_cuda}, the driver is {machine.gpus[0].driver}"
        fix = f"install driver {DRIVERS[machine.torch_cuda]} or newer, or a torch built for CUDA 12"
        yield _finding("torch", seen, fail=fix)
    else:
        yield _finding("torch", version)


def _packages(machine: Machine) -> Iterator[Finding]:
    versions = machine.versions
    numpy = versions["numpy"]
    yield _finding("numpy", numpy, fail="python -m pip install 'numpy>=2'" if major(numpy) < 2 else "")
    extras = {"transformers": "models", "sentence-transformers": "models", "onnx": "convert", "tritonclient": "triton"}
    for package, extra in extras.items():
        fix = "" if package in versions else f"python -m pip install 'accel_lib[{extra}]'"
        yield _finding(package, versions.get(package, "not installed"), fail=fix)
    runtimes = [f"{name} {versions[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in versions]
    fix = "" if runtimes else "python -m pip install 'accel_lib[convert]'"
    if len(runtimes) > 1:
        fix = "they overwrite each other: uninstall both, then install one"
    yield _finding("ONNX Runtime", " and ".join(runtimes) or "not installed", fail=fix)


def _openvino(machine: Machine) -> Iterator[Finding]:
    if not machine.system.endswith("x86_64"):
        return
    version = machine.versions.get("openvino")
    if version is None:
        yield Finding(
            "OpenVINO", "not installed: ONNX Runtime serves", fix="python -m pip install 'accel_lib[openvino]'"
        )
    else:
        computes = "FP32, BF16 and INT8" if BF16 & set(machine.isa) else "FP32 and INT8; this CPU has no BF16"
        yield Finding("OpenVINO", f"{version}: {computes}")


def _tensorrt(machine: Machine) -> Iterator[Finding]:
    found = {name: version for name, version in machine.versions.items() if name.startswith("tensorrt")}
    seen = ", ".join(f"{name} {version}" for name, version in found.items())
    builds = {build for build in DRIVERS for name in found if name.endswith(f"cu{build}")}
    full = [name for name in found if "rtx" not in name]
    if not found:
        yield Finding("TensorRT", "not installed: ONNX Runtime serves", fix="python -m pip install 'accel_lib[rtx]'")
    elif len(builds) > 1:
        fix = f"keep the build for CUDA {machine.cuda}: python -m pip uninstall the other one"
        yield _finding("TensorRT", f"{seen}: builds for two CUDA releases", fail=fix)
    elif machine.gpus and builds and machine.driver < DRIVERS[min(builds)]:
        fix = f"it needs driver {DRIVERS[min(builds)]} or newer; or install the cu12 build"
        yield _finding("TensorRT", f"{seen}: the driver is {machine.gpus[0].driver}", fail=fix)
    elif machine.torch_cuda and builds and builds != {machine.torch_cuda}:
        fix = f"python -m pip install the cu{machine.torch_cuda} build instead"
        yield _finding("TensorRT", f"{seen}: torch is built for CUDA {machine.torch_cuda}", warn=fix)
    elif full and "libnvinfer" not in machine.libraries:
        fix = f"python -m pip install --force-reinstall {full[0]}: its libraries come from NVIDIA's own index"
        yield _finding("TensorRT", f"{seen}: libnvinfer is missing", fail=fix)
    elif not full and any(gpu.compute_capability == "9.0" for gpu in machine.gpus):
        fix = "python -m pip install 'accel_lib[tensorrt]'"
        yield _finding("TensorRT", f"{seen}: TensorRT-RTX does not run on Hopper", warn=fix)
    elif not full and any(gpu.compute_capability == "7.5" for gpu in machine.gpus):
        fix = 'accel.to_onnx(model, precision="fp16")'
        yield Finding("TensorRT", f"{seen}: on Turing it runs FP16, and refuses FP32", "ok", fix)
    else:
        yield Finding("TensorRT", seen if machine.gpus else f"{seen}: builds engines, runs none without a GPU")


def _engines(machine: Machine) -> Iterator[Finding]:
    yield Finding("Engines", ", then ".join(map(str, choices(machine))))


def _triton() -> Finding:
    installed = sorted(record.parent.name for record in cache_dir("triton").glob("*/installed.json"))
    return Finding("Triton", ", ".join(installed) or "fetched on the first accel.serve(...), 55 MB")


def _ports() -> Finding:
    taken = [str(port) for port in (8000, 8001, 8002) if not _free(port)]
    return Finding("Ports", f"{', '.join(taken)} taken: serve() takes free ones" if taken else "8000, 8001, 8002 free")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
