"""What this code is running on: CPU, GPU, driver, memory, versions, and where files may be kept.

Nothing heavy is imported: packages are known by their metadata, GPUs by ``nvidia-smi``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Literal

import platformdirs
import psutil

from accel_lib.errors import MachineError

Place = Literal["colab", "kaggle", "wsl2", "linux", "mac", "other"]

PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "pandas", "onnx", "onnxscript"),
    *(
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "nncf",
        "tensorrt",
        "tensorrt-cu12",
        "tensorrt-cu13",
        "tensorrt-rtx-cu12",
    ),
    *("tensorrt-rtx-cu13", "tritonclient", "grpcio", "protobuf", "ipywidgets", "papermill"),
    *("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
)
# The oldest driver for each CUDA release: https://docs.nvidia.com/deploy/cuda-compatibility/
DRIVERS = {"13": 580, "12": 525}
# Linux's names of the instructions that decide how fast 8-bit and 32-bit arithmetic is, weakest first.
_ISA = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
    "asimddp": "NEON dot product",
    "i8mm": "I8MM",
}
BF16 = frozenset({"AVX-512 BF16", "AMX"})  # instructions that multiply BF16 numbers
_CGROUP = Path("/sys/fs/cgroup")


def cache_dir(*parts: str) -> Path:
    """Folder for downloads and built artifacts: ``$ACCEL_HOME``, or the user's cache folder."""
    home = os.environ.get("ACCEL_HOME") or platformdirs.user_cache_dir("accel_lib")
    return Path(home).joinpath(*parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; `compute_capability` as NVIDIA writes it, such as ``"7.5"``."""

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, {self.memory_bytes / 2**30:.0f} GiB)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine a result was measured on; its ``str`` is the caption of a plot or a table.

    Parameters
    ----------
    place
        Where this runs: a Colab or Kaggle machine, WSL2, or plain ``"linux"`` or ``"mac"``.
    system, python, libc
        Such as ``"Linux x86_64"``, ``"3.12.3"``, ``"glibc 2.36"`` (empty where there is no C library to name).
    cpu, cores, isa
        Processor name, cores that this process may use (affinity and container limit), its fast instructions.
    memory_bytes
        Memory that this process may use: the machine's, or the container's limit.
    gpus
        NVIDIA GPUs, empty where there is none.
    versions
        Installed version of each package that matters, by package name.
    libraries
        Shared libraries that were found: the running Python's own, and ``libnvinfer`` where a TensorRT brought it.
    """

    place: Place
    system: str
    python: str
    libc: str
    cpu: str
    cores: int
    isa: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]
    libraries: frozenset[str] = frozenset()

    @property
    def driver(self) -> int:
        """The driver's major version, 0 without a GPU."""
        return major(self.gpus[0].driver) if self.gpus else 0

    @property
    def torch_cuda(self) -> str:
        """The CUDA release that PyTorch was built for, ``"12"`` or ``"13"``; empty for a CPU build and without it."""
        local = self.versions.get("torch", "").partition("+")[2]
        if local or "torch" not in self.versions:
            return local[2:4] if local.startswith("cu") else ""
        names = {"12": "nvidia-cuda-runtime-cu12", "13": "nvidia-cuda-runtime"}  # what the build on PyPI brings along
        return next((release for release, name in names.items() if name in self.versions), "")

    @property
    def cuda(self) -> str:
        """The CUDA release to take TensorRT for: PyTorch's own, else the newest that the driver runs, else 12."""
        runs = next((release for release, oldest in DRIVERS.items() if self.driver >= oldest), "12")
        return self.torch_cuda or runs

    def __str__(self) -> str:
        fast = f" ({self.isa[-1]})" if self.isa else ""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        gpu = " + ".join(gpu.name for gpu in self.gpus) or "no GPU"
        torch = f" · torch {self.versions['torch']}" if "torch" in self.versions else ""
        return f"{cores} {self.cpu}{fast}, {gpu} · Python {self.python}{torch}"


def inspect_machine() -> Machine:
    """Look at the machine; takes well under a second.

    Examples
    --------
    >>> print(inspect_machine())  # doctest: +SKIP
    2 cores Intel Xeon (AVX2), Tesla T4 · Python 3.12.3 · torch 2.10.0
    """
    cpu, isa = _cpu()
    return Machine(
        place=_place(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip(),
        cpu=cpu,
        cores=cores(),
        isa=isa,
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
        versions=_versions(),
        libraries=_libraries(),
    )


def project_root() -> Path:
    """The checkout that holds the notebooks.

    Raises
    ------
    MachineError
        accel_lib is installed without them.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir():
        return root
    raise MachineError(
        "The course is not part of this installation of accel_lib.",
        seen="no notebooks folder beside the package",
        fix=f"git clone {repository_url()} && cd {repository_url().rpartition('/')[2]} && make course",
    )


def repository_url() -> str:
    """Address of the project's repository, from the installed package's metadata."""
    urls = dict(line.split(", ", 1) for line in importlib.metadata.metadata("accel_lib").get_all("Project-URL", []))
    return str(urls["Repository"])


def libpython() -> str:
    """File name of the running Python's shared library, which Triton's stub loads up to Python 3.12."""
    return f"libpython3.{sys.version_info.minor}.so.1.0"


def major(version: str) -> int:
    """First number of a version."""
    return int(version.partition(".")[0])


def _place() -> Place:
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    if sys.platform == "linux":
        return "wsl2" if "microsoft" in platform.release().lower() else "linux"
    return "mac" if sys.platform == "darwin" else "other"


def _cpu() -> tuple[str, tuple[str, ...]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), ()
    first = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    name = fields.get("model name", platform.machine())
    for noise in ("(R)", "(TM)", " CPU", " Processor"):
        name = name.replace(noise, "")
    return " ".join(name.split()), tuple(label for flag, label in _ISA.items() if flag in flags)


def thread_environment() -> dict[str, str]:
    """Variables that keep OpenMP, BLAS and tokenizers to `cores` threads, as far as they are unset.

    They know the machine's cores and no quota, and read them when a process starts: Triton and its stubs, and
    this one before NumPy is imported.
    """
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    return {name: str(cores()) for name in names if not os.environ.get(name)}


def cores() -> int:
    """Cores that this process may use: the machine's, its affinity and the quotas of its control groups, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for folder in _groups("cpu"):
        quota = _words(f"{folder}cpu.max") or [
            *_words(f"cpu/{folder}cpu.cfs_quota_us"),
            *_words(f"cpu/{folder}cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdigit():  # "max" and "-1" mean no limit
            allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def _memory_bytes() -> int:
    limits = [psutil.virtual_memory().total]
    for folder in _groups("memory"):
        words = [*_words(f"{folder}memory.max"), *_words(f"memory/{folder}memory.limit_in_bytes")]
        limits += [int(word) for word in words if word.isdigit()]
    return min(limits)


def _groups(controller: str) -> list[str]:
    """The control group of this process and those above it, as prefixes of a file's name; in a container the root."""
    file = Path("/proc/self/cgroup")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    paths = [
        path for _, names, path in (line.split(":", 2) for line in lines) if controller in names.split(",") or not names
    ]
    folders = {f"{folder}/".strip("/") for path in paths for folder in (Path(path), *Path(path).parents)}
    return [f"{folder}/" if folder else "" for folder in sorted(folders | {""})]


def free_memory_bytes() -> int:
    """Memory that this process may still take: what the machine has free, or its container's limit leaves."""
    free = [psutil.virtual_memory().available]
    for folder in _groups("memory"):
        for group, limit, used in (
            (folder, "memory.max", "memory.current"),
            (f"memory/{folder}", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            numbers = [*_words(f"{group}{limit}"), *_words(f"{group}{used}")]
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                free.append(int(numbers[0]) - int(numbers[1]) + _reclaimable_bytes(group))
    return max(0, min(free))


def _reclaimable_bytes(group: str) -> int:
    """File pages that a control group counts as used and gives back when asked."""
    words = _words(f"{group}memory.stat")
    counted = dict(zip(words[::2], words[1::2], strict=False))
    return int(counted.get("inactive_file", 0))


def _words(name: str) -> list[str]:
    """Words of a control-group file (version 2 or 1), none where it is not there."""
    file = _CGROUP / name
    return file.read_text(encoding="ascii").split() if file.is_file() else []


def _gpus() -> tuple[Gpu, ...]:
    command = [
        "nvidia-smi",
        "--query-gpu=name,compute_cap,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]
    if shutil.which(command[0]) is None or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return ()
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return ()  # the tool is there and no GPU answers: `doctor` says so
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    return tuple(
        Gpu(name=name, compute_capability=capability, memory_bytes=int(mebibytes) * 2**20, driver=driver)
        for name, capability, mebibytes, driver in rows
    )


def _libraries() -> frozenset[str]:
    folders = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    folders += [Path("/usr/lib", f"{platform.machine()}-linux-gnu")]
    found = {libpython()} if any((folder / libpython()).is_file() for folder in folders) else set()
    spec = importlib.util.find_spec("tensorrt_libs")  # where the wheels of full TensorRT put them
    folders += map(Path, (spec.submodule_search_locations or ()) if spec else ())
    nvinfer = any(next(folder.glob("libnvinfer.so*"), None) for folder in folders if folder.is_dir())
    return frozenset(found | {"libnvinfer"} if nvinfer else found)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
