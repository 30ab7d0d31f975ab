"""Process that `fit_memory` starts: it opens an artifact, runs growing batches, and prints each one's peak as JSON."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from accel_lib.artifact import Artifact
from accel_lib.engines import open_engine
from accel_lib.errors import AccelError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Arguments: the artifact's folder, the device, tokens per text, batch sizes in growing order."""
    folder, device, length, *sizes = sys.argv[1:]
    already = _used(0)
    engine = open_engine(Artifact.load(folder), device=device)
    index = int(engine.device.partition(":")[2] or 0)
    base = already if index == 0 else _used(index)
    _say(device=engine.device)
    width = min(int(length), engine.max_length)
    for batch in map(int, sizes):
        ids = np.ones((batch, width), dtype=np.int64)
        _start_peak()
        for _ in range(2):  # the second one finds the arenas as a served model has them
            engine.run(ids, ids)
        peak = _peak() if engine.device == "cpu" else _used(index) - base
        _say(batch=batch, peak=peak)


def _say(**facts: object) -> None:
    """Print a line at once: the next batch may be the one that kills this process."""
    print(json.dumps(facts), flush=True)


def _start_peak() -> None:
    """Set the kernel's high-water mark back to what is resident now, where that is allowed.

    Elsewhere the mark counts for the whole life of the process, which growing batches move all the same.
    """
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def _peak() -> int:
    """The high-water mark of this process's resident memory, bytes."""
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_bytes(what: str, index: int) -> int:
    """What the driver says of a GPU's memory, ``"memory.used"`` by all processes or ``"memory.free"``."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(said.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise AccelError("NVIDIA's driver reports no memory.", seen=error, fix="accel doctor") from error


def _used(index: int) -> int:
    """Bytes of a GPU that all processes hold; 0 without one."""
    with contextlib.suppress(AccelError):
        return gpu_bytes("memory.used", index)
    return 0


if __name__ == "__main__":
    main()
