"""What the second T4 gives: one Triton instance on each, and one model split over the two.

python kaggle/two_gpus.py two_gpus.json
"""

import json
import sys
from pathlib import Path

import numpy as np

import accel_lib as accel
from accel_lib.load import compare_gpu_split, compared


def instances(repository, texts, gpus=(0, 1), *, seconds=4, repeats=6):
    """Load test of the course's model in a Triton that sees one GPU, then in one that sees all: an instance on each."""
    rates = {}
    for seen in (gpus[:1], gpus):
        name = f"{len(seen)} instance{'s, one a GPU' if len(seen) > 1 else ' on one GPU'}"
        env = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, seen))}
        with accel.serve(repository, models=["embedding"], env=env) as server:
            served = server.model("embedding", version=2)
            runs = [accel.load_test(served, texts, concurrency=64 * len(gpus), seconds=seconds) for _ in range(repeats)]
        rates[name] = np.array([run.throughput for run in runs])
    return compared(rates)


if __name__ == "__main__":
    texts = accel.load_texts("mixed", limit=512)
    results = [
        instances(accel.ensure("embedding"), texts),
        compare_gpu_split(accel.load_model(), texts),
        compare_gpu_split(accel.load_model("MiniLM-L12-H384-random"), texts),
    ]
    for result in results:
        print(result, end="\n\n", flush=True)
    found = [{"finding": result.headline, "rows": result.frame.to_dict("records")} for result in results]
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
