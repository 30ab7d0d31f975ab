"""Record what capturing the launches alone gives, over batch and length, for readers who have no GPU.

Run on a machine with a GPU; notebook 02 shows the file it writes:

    python -m benchmarks.record_speedup accel_lib/data/recorded_speedup.csv
"""

import sys
from datetime import UTC, datetime

import torch

import accel_lib as accel
from accel_lib.bench.speedup import map_speedup
from accel_lib.machine import inspect_machine

BATCH_SIZES = (1, 4, 16, 64, 256)
TOKENS = (16, 32, 64, 128, 256)


def main(path: str) -> None:
    model = accel.load_model("MiniLM-L12-H384-random")
    eager, captured = (
        accel.open_engine(model, device="cuda", precision="fp16", cuda_graphs=graphs) for graphs in (False, True)
    )
    result = map_speedup(captured, eager, batch_sizes=BATCH_SIZES, tokens=TOKENS, seconds=60)
    frame = result.frame.assign(
        model=model.name,
        card=inspect_machine().gpus[0].name,
        torch=torch.__version__,
        recorded=datetime.now(UTC).date().isoformat(),
    )
    frame.to_csv(path, index=False, float_format="%.5g")
    print(frame[["batch_size", "tokens", "baseline_ms", "candidate_ms", "speedup"]].to_string(index=False))
    print(result.headline)


if __name__ == "__main__":
    main(sys.argv[1])
