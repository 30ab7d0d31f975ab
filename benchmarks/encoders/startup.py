"""What a user waits for before anything runs: import, help, and the way from PyTorch to a T4 engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5


def measure(*, conversion: bool) -> dict[str, float | None]:
    """Seconds by what was waited for; None where it cannot be done here, or where `conversion` leaves it out."""
    accel_command = Path(sys.executable).with_name("accel")
    return {
        "import accel_lib": best([sys.executable, "-c", "import accel_lib"]),
        "accel --help": best([accel_command, "--help"]),
        "PyTorch → ONNX → INT8 → T4 engine": converted() if conversion else None,
    }


def best(command: list[str | Path]) -> float:
    """Seconds of a command, the median of some runs after one that fills the caches."""
    taken = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[RUNS // 2]


def converted() -> float | None:
    """Seconds for all conversions, into empty folders, with nothing reused."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import accel_lib as accel; model = accel.load_model(); "
            "accel.to_onnx(model, precision='int8', packed=True, keep='auto'); "
            "accel.to_tensorrt(accel.to_onnx(model, precision='fp16'), target='t4')"
        )
        try:
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=empty(folder))
        except subprocess.CalledProcessError as error:
            print(f"the conversion is left out: {error}")
            return None
    return time.perf_counter() - started


def empty(folder: str) -> dict[str, str]:
    """This environment with an empty cache."""
    return os.environ | {"ACCEL_HOME": folder}
