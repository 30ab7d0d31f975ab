"""Whether the set-up works on a machine of Colab's or Kaggle's shape, without one: its Python, its pinned packages.

    python -m tests.environments.check colab|kaggle [--light]

Both forms resolve the project against the pins, then make a fresh environment with them, run the real bootstrap there
and see that nothing pinned has changed; the doctor and a real Triton follow. The light form leaves out torch, and with
it the notebooks; the full one (several GB, ten minutes and more) runs notebooks 00 to 04 and 07 by the launchers.
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.notebooks import NOTEBOOKS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHONS = {"colab": "3.13", "kaggle": "3.12"}
MARKERS = {"colab": {"COLAB_RELEASE_TAG": "check"}, "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}}
HEAVY = ("torch", "transformers", "sentence-transformers", "scikit-learn", "scipy", "matplotlib", "tokenizers")
NUMBERS = ("00", "01", "02", "03", "04", "07")  # the first ones, and the sliders, which meet this place's ipywidgets
ECHO = """
import numpy, sys
from accel_lib import serve
with serve(sys.argv[1]) as server:
    answer = server.model("echo").infer(numpy.array([[7, 8, 9]]))
    assert answer.tolist() == [[7, 8, 9]], answer
print("echo answered through", numpy.__version__)
"""


class SkippedError(Exception):
    """A step that cannot be taken on this machine, and why."""


class Check:
    """The steps of one check, each reported in a line, and the verdict."""

    def __init__(self, place: str, *, light: bool, folder: Path) -> None:
        self.place, self.light, self.folder = place, light, folder
        self.bootstrap = runpy.run_path(str(ROOT / "colab" / "bootstrap.py"), run_name="bootstrap")
        lines = (HERE / f"{place}.txt").read_text().splitlines()
        self.pins = dict(line.split("==") for line in lines if not line.startswith("#"))
        self.python = folder / "venv" / "bin" / "python"
        self.counts = {"✓": 0, "✗": 0, "–": 0}

    def run(self) -> int:
        """Take every step; 0 if none failed."""
        started = time.monotonic()
        self._report(self.resolves)
        self._report(self.dry_run)
        for step in (self.environment, self.sets_up, self.serves, *(() if self.light else (self.notebooks,))):
            if not self._report(step):
                break  # what follows needs it
        told = ", ".join(f"{count} {word}" for mark, word in WORDS.items() if (count := self.counts[mark]))
        verdict = "failed" if self.counts["✗"] else "passed"
        form = "light" if self.light else "full"
        print(f"{self.place}-check ({form}): {verdict}; {told}; {time.monotonic() - started:.0f} s")
        return int(verdict == "failed")

    def _report(self, step) -> bool:
        started, mark = time.monotonic(), "✓"
        try:
            said = step()
        except SkippedError as reason:
            mark, said = "–", reason
        except (subprocess.CalledProcessError, AssertionError) as error:
            mark, said = "✗", getattr(error, "output", None) or error
        self.counts[mark] += 1
        print(f"{mark} {step.__doc__.rstrip('.')}: {said} ({time.monotonic() - started:.0f} s)", flush=True)
        return mark == "✓"

    def resolves(self) -> str:
        """Resolution against the pins."""
        needs = self.folder / "needs.txt"
        needs.write_text("\n".join(self.bootstrap["client_needs"](ROOT)) + "\n")
        extras = [f"--extra={extra}" for extra in self.bootstrap["EXTRAS"].split(",")]
        platform = ["--python-version", PYTHONS[self.place], "--python-platform", "x86_64-manylinux_2_35"]
        files = ["--constraint", HERE / f"{self.place}.txt", ROOT / "pyproject.toml", needs]
        resolved = call(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", *platform, *extras, *files)
        found = dict(re.findall(r"^([\w.-]+)==(\S+)", resolved, re.MULTILINE))
        kept = {name: found[name] for name in self.pins if name in found}
        assert kept == {name: self.pins[name] for name in kept}, kept
        return f"{len(found)} packages, {len(kept)} of them pinned"

    def environment(self) -> str:
        """A fresh environment with the pins."""
        python = find_python(PYTHONS[self.place])
        call(python, "-m", "venv", self.folder / "venv")
        wanted = [f"{name}=={version}" for name, version in self.pins.items() if not (self.light and name in HEAVY)]
        self.install(*wanted)
        return f"Python {call(self.python, '-c', 'import platform; print(platform.python_version())').strip()}"

    def install(self, *wanted: str) -> None:
        """Install by uv, which is quick; the bootstrap's own steps are pip's."""
        call(Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", self.python, *wanted)

    def sets_up(self) -> str:
        """The real bootstrap, with torch, NumPy and protobuf unchanged."""
        before = self.installed()
        said = self.inside(ROOT / "colab" / "bootstrap.py", ACCEL_EXTRAS="convert" if self.light else None)
        after = self.installed()
        assert {name: after.get(name) for name in before} == before, (before, after)
        doctor = [line for line in said.splitlines() if line[:1] in "✓!✗"]
        assert len(doctor) > 8, said
        return f"{len(before)} pinned packages as before; the doctor told of {len(doctor)} things"

    def installed(self) -> dict[str, str]:
        """Versions of the pinned packages in the environment."""
        listed = dict(
            line.split("==") for line in call(self.python, "-m", "pip", "freeze").splitlines() if "==" in line
        )
        normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in listed.items()}
        return {name: normal[name].partition("+")[0] for name in self.pins if name in normal}

    def serves(self) -> str:
        """Triton and its client in that environment."""
        repository = self.folder / "models"
        shutil.copytree(ROOT / "tests" / "integration" / "models", repository)
        return self.inside("-c", ECHO, repository).splitlines()[-1]

    def dry_run(self) -> str:
        """A dry run of the launcher."""
        if self.place == "colab":
            said = self.inside(ROOT / "colab" / "bootstrap.py", "--dry-run", python=Path(sys.executable))
        else:
            said = self.inside(ROOT / "kaggle" / "run_course.py", "--dry-run", python=Path(sys.executable))
        assert "would" in said, said
        return said.splitlines()[0]

    def notebooks(self) -> str:
        """Notebooks 00 to 04 and 07, by the launcher."""
        names = [name for name in NOTEBOOKS if name.startswith(NUMBERS)]
        before = self.installed()
        if self.place == "kaggle":
            said = self.inside(ROOT / "kaggle" / "run_course.py", *names)
        else:
            self.install("papermill", "-c", str(HERE / "colab.txt"))
            wanted = ["-y", f"NOTEBOOKS: [{', '.join(names)}]", "-p", "OUTPUT", str(self.folder / "course-run")]
            copy = self.folder / "run_course.ipynb"
            said = self.inside("-m", "papermill", ROOT / "colab" / "run_course.ipynb", copy, "-k", "python3", *wanted)
        assert self.installed() == before, (before, self.installed())
        summary = next(self.folder.rglob("summary.json")).read_text()
        assert summary.count('"verdict": "passed"') == len(names), said
        return f"{len(names)} passed; torch {before['torch']}, NumPy {before['numpy']}, protobuf {before['protobuf']}"

    def inside(self, *words, python: Path | None = None, **changed: str | None) -> str:
        """Run the environment's Python as on the place, with its folders redirected into this check's."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment = kept | MARKERS[self.place] | {"ACCEL_ROOT": str(self.folder), "ACCEL_SOURCE": str(ROOT)}
        environment |= {"MPLBACKEND": "agg"} | {name: value for name, value in changed.items() if value is not None}
        return call(python or self.python, *words, env=environment, cwd=self.folder)


WORDS = {"✓": "passed", "✗": "failed", "–": "skipped"}


def call(*words, **options) -> str:
    """Run a command and return what it said; raises CalledProcessError with that."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}".strip()
        raise subprocess.CalledProcessError(done.returncode, words[0], output=said)
    return done.stdout


def find_python(version: str) -> str:
    """A Python of that version: on the path, or one of pyenv's."""
    homes = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{version}"), *sorted(homes.glob(f"versions/{version}.*/bin/python"))]
    for python in filter(None, found):
        said = subprocess.run([python, "-V"], capture_output=True, text=True, check=False).stdout
        if said.startswith(f"Python {version}."):
            return str(python)
    raise SkippedError(f"no Python {version} on this machine")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", choices=sorted(PYTHONS))
    parser.add_argument("--light", action="store_true", help="without torch and the notebooks")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"accel-{asked.place}-") as folder:
        sys.exit(Check(asked.place, light=asked.light, folder=Path(folder)).run())
