"""Serves a copy of the model repository with this Python, 3.12 as in the Triton image, and asks it once.

Triton comes out of its wheel here, with the stub of this Python. What the image adds to NVIDIA's is as there: the
package with its pinned dependencies, where this Python finds packages by itself, as the stub ignores PYTHONPATH.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import accel_lib
from accel_lib.triton import model_names, unbuilt


def main(repository: Path) -> str:
    """Serve, ask, end; one line that says what answered."""
    built = [name for name in model_names(repository) if not unbuilt(repository / name)]
    with accel_lib.serve(repository, models=built) as server:
        answers = {name: server.model(name).infer([[101, 2057, 102]]).shape for name in built}
    python = ".".join(map(str, sys.version_info[:2]))
    return f"Python {python}: " + ", ".join(f"{name} answers {rows} × {wide}" for name, (rows, wide) in answers.items())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="accel-") as copy:  # the repository itself may be in use
        print(main(Path(shutil.copytree(sys.argv[1], Path(copy) / "models"))))
