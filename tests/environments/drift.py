"""What breaks with the newest and with the lowest allowed dependencies: for a schedule, not for every change.

    python tests/environments/drift.py [newest|lowest] [--resolve-only] [pytest's arguments]

For each end of what pyproject.toml allows, a fresh environment is resolved and made, and the unit tests run in it.
torch, which is several GB from a package index, is resolved too, but taken from this environment.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tests.environments.check import call

ROOT = Path(__file__).parents[2]
RESOLUTIONS = {"newest": "highest", "lowest": "lowest-direct"}
EXTRAS = ("course", "rtx", "test")
LENT = re.compile(r"(torch|torchgen|functorch)(-.*\.dist-info)?$")  # what the package torch installs
WITH_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")


def resolve(end: str, folder: Path) -> dict[str, str]:
    """Versions of every package at one end of what is allowed."""
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--resolution", RESOLUTIONS[end], *(f"--extra={extra}" for extra in EXTRAS)]
    options += ["--python-version", f"3.{sys.version_info.minor}", "--python-platform", "x86_64-manylinux_2_35"]
    text = call(uv, "pip", "compile", *options, ROOT / "pyproject.toml")
    lines = [line.partition(" ")[0] for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    (folder / "resolved.txt").write_text("\n".join(line for line in lines if not WITH_TORCH.match(line)) + "\n")
    return dict(line.split("==", 1) for line in lines)


def make(folder: Path) -> Path:
    """An environment with the resolved packages and this environment's torch; returns its Python."""
    python = folder / "venv" / "bin" / "python"
    call(sys.executable, "-m", "venv", folder / "venv")
    uv = Path(sys.executable).with_name("uv")
    call(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, "-r", folder / "resolved.txt")
    call(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, "--editable", ROOT)
    inside = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if LENT.match(path.name):
            (Path(inside) / path.name).symlink_to(path)
    return python


def try_out(end: str, words: list[str], *, resolve_only: bool) -> bool:
    """Resolve, make and test one end; prints what broke, and returns whether nothing did."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"accel-{end}-") as name:
        try:
            resolved = resolve(end, Path(name))
            moved = {p: v for p, v in resolved.items() if _here(p) not in (v, None)}
            print(f"{end}: {len(resolved)} packages, {len(moved)} other than here", flush=True)
            if resolve_only:
                print("  " + ", ".join(f"{package} {_here(package)} → {version}" for package, version in moved.items()))
                return True
            python = make(Path(name))
        except subprocess.CalledProcessError as error:
            print(f"{end}: no environment:\n{error.output}")
            return False
        tests = ["-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *(words or ["tests/unit"])]
        wide = os.environ | {"COLUMNS": "200"}  # else pytest cuts the reasons off
        done = subprocess.run([python, *tests], cwd=ROOT, env=wide, capture_output=True, text=True, check=False)
    broken = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    print("\n".join(f"  {line}" for line in broken))
    said = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
    print(
        f"{end}: {'passed' if not done.returncode else 'broke'}: {' '.join(said)}; {time.monotonic() - started:.0f} s"
    )
    return not done.returncode


def _here(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("end", nargs="?", choices=sorted(RESOLUTIONS), help="default: both")
    parser.add_argument("--resolve-only", action="store_true", help="no environment, no tests")
    asked, rest = parser.parse_known_args()
    ends = [asked.end] if asked.end else list(RESOLUTIONS)
    passed = {end: try_out(end, rest, resolve_only=asked.resolve_only) for end in ends}
    print("drift:", ", ".join(f"{end} {'passed' if good else 'broke'}" for end, good in passed.items()))
    sys.exit(not all(passed.values()))
