"""Bring the project onto an empty Colab or Kaggle machine: fetch it, install it, go to its notebooks, show the doctor.

Every notebook's first code cell runs this file where accel_lib is not installed; elsewhere than on Colab and Kaggle it
does nothing unless ACCEL_SOURCE is set. Only the standard library is used, and no restart is needed: what is already
there and loaded (torch, NumPy, protobuf, Jupyter) is frozen, for pip gets it as constraints, then and later.

ACCEL_SOURCE    where the project comes from: a repository, with @tag or @branch if wanted; the address or path
                of a .zip, on Drive say; the folder of a checkout. Default: an attached Kaggle dataset that holds the
                project, else the repository below.
ACCEL_TENSORRT  "rtx" (the default where there is a GPU), "full" (from NVIDIA's own index, over 1 GB) or "none".
ACCEL_EXTRAS    instead of the extras below.
"""

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from urllib.request import urlopen

REPOSITORY = "https://github.com/yourusername/genai-accelerator"
EXTRAS = "models,convert,openvino,generate,service"
# Loaded by the running kernel or built for the machine's driver: another version would need a restart, or break it.
KEEP = (
    *("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas", "matplotlib", "pillow", "protobuf", "grpcio"),
    *("ipywidgets", "ipykernel", "ipython", "jupyter-client", "tornado", "pyzmq", "traitlets", "psutil"),
)
# Triton's client without its own limits, which no version has that fit both protobuf 5 and a newer grpcio.
CLIENT = {5: "tritonclient>=2.57,<2.67", 6: "tritonclient>=2.67"}
CLIENT_NEEDS = ("protobuf", "python-rapidjson", "geventhttpclient>=2.3.3", "urllib3>=2.0.7", "packaging")
ROOT = Path(os.environ.get("ACCEL_ROOT", "/"))  # of the folders below; tests have one of their own
FOLDERS = {"colab": ROOT / "content", "kaggle": ROOT / "kaggle" / "working"}
DATASETS = ROOT / "kaggle" / "input"


def place():
    """Say where this runs: "colab", "kaggle", or "elsewhere"."""
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "elsewhere"


def source():
    """Say where the project comes from: ACCEL_SOURCE, an attached dataset, or the repository."""
    if os.environ.get("ACCEL_SOURCE"):
        return os.environ["ACCEL_SOURCE"]
    attached = [*DATASETS.glob("**/colab/bootstrap.py"), *DATASETS.glob(f"**/{project_name()}*.zip")]
    if not attached:
        return REPOSITORY
    first = sorted(attached, key=lambda path: len(path.parts))[0]
    return str(first if first.suffix == ".zip" else first.parents[1])


def project_name():
    """Name of the project's folder, the last word of its address."""
    return REPOSITORY.rpartition("/")[2]


def constraints():
    """Pin each package that must stay, at the version that is installed."""
    lines = []
    for name in KEEP:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def run(*command):
    """Run a command, or raise what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"This step failed:\n  {' '.join(command)}\n{done.stderr.strip() or done.stdout.strip()}")


def install(*requirements):
    """Install with pip, quietly."""
    run(sys.executable, "-m", "pip", "install", "--quiet", *requirements)


def fetch(origin, project):
    """Put the project into a folder, from a checkout, a .zip or a repository; whole, or not at all."""
    project.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.parent) as aside:
        draft = Path(aside, "draft")
        if Path(origin).is_dir():
            hidden = shutil.ignore_patterns(".git", ".venv", "artifact", "out", "build", "__pycache__")
            shutil.copytree(origin, draft, ignore=hidden, copy_function=shutil.copyfile)  # a dataset is read-only
        elif origin.endswith(".zip"):
            draft = unpack(origin, Path(aside))
        else:
            address, at, tag = origin.rpartition("@") if "@" in origin.rpartition("/")[2] else (origin, "", "")
            run("git", "clone", "--quiet", "--depth", "1", *(("--branch", tag) if at else ()), address, str(draft))
        if not (draft / "colab" / "bootstrap.py").is_file():
            raise RuntimeError(f"{origin} does not hold the project: no colab/bootstrap.py in it")
        draft.rename(project)


def unpack(origin, aside):
    """Unpack a .zip, from an address or a path, and return the folder inside that holds the project."""
    archive = Path(origin)
    if "://" in origin:
        archive = aside / "project.zip"
        with urlopen(origin) as answer, archive.open("wb") as file:
            shutil.copyfileobj(answer, file)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(aside / "unpacked")
    inside = sorted((aside / "unpacked").glob("**/colab/bootstrap.py"), key=lambda path: len(path.parts))
    return inside[0].parents[1] if inside else aside / "unpacked"


def client_needs(project):
    """What Triton's client needs, and what the project's own extra names beside it."""
    extras = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [*CLIENT_NEEDS, *(need for need in extras["triton"] if not need.startswith("tritonclient"))]


def install_project(project):
    """Install the project, Triton's client, the server out of its wheel and, with a GPU, TensorRT."""
    extras = os.environ.get("ACCEL_EXTRAS", EXTRAS)
    print(f"{place()}: installing {extras} and Triton, two minutes or so", flush=True)
    install(*client_needs(project), "--editable", f"{project}[{extras}]")
    protobuf = int(importlib.metadata.version("protobuf").partition(".")[0])
    install("--no-deps", CLIENT[min(max(protobuf, 5), 6)])
    sys.path.insert(0, str(project))
    importlib.invalidate_caches()
    from accel_lib.engines.tensorrt_runtime import ensure_installed, requirement
    from accel_lib.machine import inspect_machine
    from accel_lib.triton import ensure_tritonserver

    ensure_tritonserver()
    tensorrt = os.environ.get("ACCEL_TENSORRT", "rtx" if inspect_machine().gpus else "none")
    if tensorrt != "none":
        ensure_installed(requirement("tensorrt" if tensorrt == "full" else "tensorrt_rtx"))


def bootstrap(dry_run=False):
    """Fetch, install and enter the project; returns its folder, or None where there is nothing to do."""
    project = FOLDERS.get(place(), Path.cwd()) / project_name()
    if place() == "elsewhere" and "ACCEL_SOURCE" not in os.environ:
        print(f"Neither Colab nor Kaggle: nothing done. git clone {REPOSITORY} && cd {project.name} && make setup")
        return None
    origin, before = source(), constraints()
    print(f"{place()}: {'would fetch' if dry_run else 'fetching'} {origin} into {project.name}", flush=True)
    if dry_run:
        print(before, end="")
        return project
    if not project.is_dir():
        fetch(origin, project)
    pins = Path(tempfile.gettempdir(), f"{project.name}-constraints.txt")
    pins.write_text(before, encoding="utf-8")
    os.environ["PIP_CONSTRAINT"] = str(pins)  # also for what a notebook installs later
    install_project(project)
    if constraints() != before:
        raise RuntimeError(f"The set-up changed what must stay:\n{before}became\n{constraints()}")
    os.chdir(project / "notebooks")
    from accel_lib.checkup import doctor

    print(repr(doctor()))
    print(f"{place()}: ready, in {project.name}/notebooks")
    return project


if __name__ == "__main__":
    bootstrap(dry_run="--dry-run" in sys.argv)
