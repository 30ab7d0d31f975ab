"""What a gateway and its Triton hold while they are soaked, and whether it grows."""

from __future__ import annotations

import threading
import time

import numpy as np
import psutil

_GROWTH, _SPARE_MB = 0.05, 12  # memory may grow by so much over the run


def watch(rig, footprints, over, every_s):
    """Write down what is held, every so often until it is over."""
    while not over.wait(every_s):
        children = rig.process.children(recursive=True)
        triton_mb = 0.0
        for child in children:
            try:
                triton_mb += child.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        footprints.append({"at_s": time.perf_counter(), "triton_mb": triton_mb, **rig.footprint()})


def holds(footprints):
    """Columns that say what was held meanwhile."""
    return {
        "gateway MB": f"{np.median([each['memory_mb'] for each in footprints]):.0f}",
        "Triton MB": f"{np.median([each['triton_mb'] for each in footprints]):.0f}",
        "threads": footprints[-1]["threads"],
        "files": footprints[-1]["files"],
    }


def growths(rows):
    """What grew over a run, beyond what may."""
    troubles = []
    for name in ("gateway MB", "Triton MB"):
        values = np.array([float(row[name]) for row in rows])[2:]  # caches have filled by then
        slope = np.polyfit(np.arange(len(values)), values, 1)[0] * len(values)
        if slope > max(_SPARE_MB, _GROWTH * values[0]):
            troubles.append(f"{name} grew by {slope:.0f}")
    return troubles


def together(work, count):
    """Run it in so many threads, each with its number."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
