"""Bring the project onto an empty Colab or Kaggle machine: fetch it, install it, go to its notebooks.

Every notebook's first code cell runs this file where accel_lib is not installed. Only the standard library is used. The
torch, NumPy, protobuf and Jupyter packages that are already there stay as they are: pip gets them as constraints.

Set ACCEL_SOURCE to fetch from elsewhere: another address, or the path of a checkout.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = "https://github.com/yourusername/genai-accelerator"
EXTRAS = "models,convert,triton"
# Loaded by the running kernel or built for the machine's driver: another version would need a restart, or break it.
KEEP = (
    *("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas", "matplotlib", "pillow", "protobuf"),
    *("ipywidgets", "ipykernel", "ipython", "jupyter-client", "tornado", "pyzmq", "traitlets", "psutil"),
)
FOLDERS = {"colab": Path("/content"), "kaggle": Path("/kaggle/working")}


def place():
    """Say where this runs: "colab", "kaggle", or "elsewhere"."""
    if "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "elsewhere"


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


def bootstrap(dry_run=False):
    """Fetch, install and enter the project; returns its folder."""
    source = os.environ.get("ACCEL_SOURCE") or REPOSITORY
    project = FOLDERS.get(place(), Path.cwd()) / REPOSITORY.rpartition("/")[2]
    print(f"{place()}: {'would fetch' if dry_run else 'fetching'} {source} into {project.name}")
    if dry_run:
        print(constraints(), end="")
        return project
    if not project.is_dir():
        run("git", "clone", "--quiet", "--depth", "1", source, str(project))
    print(f"{place()}: installing {EXTRAS}, two minutes or so")
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "constraints.txt")
        pins.write_text(constraints(), encoding="utf-8")
        run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            str(pins),
            "--editable",
            f"{project}[{EXTRAS}]",
        )
    sys.path.insert(0, str(project))
    importlib.invalidate_caches()
    os.chdir(project / "notebooks")
    print(f"{place()}: ready, in {project.name}/notebooks")
    return project


if __name__ == "__main__":
    bootstrap(dry_run="--dry-run" in sys.argv)
