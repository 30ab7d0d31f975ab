"""Ours beside what a user would pick instead: the same texts, in turns, one table, one figure, and a verdict last.

    make bench            about half an hour
    make bench QUICK=1    seven minutes on two cores, once the environments are made

Tables, figure and numbers are left in ``out/bench``; where they are already, ``--only`` measures a part anew.
Peers live in environments of their own under ``build/bench``, made on the first run. Everything is tuned first: each
contender at its best way to batch, each peer at its best engine and batch size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

import accel_lib as accel
from accel_lib.measurement import machine_line
from accel_lib.models import Model
from accel_lib.models.hub import DEFAULT, resolve
from benchmarks.encoders import inprocess, kernels, quality, report, served, startup

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
OUTPUT = ROOT / "out" / "bench"
PARTS = ("startup", "quality", "inprocess", "served")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--rounds", type=int, help="of the services")
    parser.add_argument("--seconds", type=float, help="of each service, concurrency and round")
    options = parser.parse_args()
    parts = options.only or PARTS
    BUILD.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "bench.json"
    results = json.loads(record.read_text()) if record.is_file() else {}
    model, texts = accel.load_model(), accel.load_texts("mixed", limit=96 if options.quick else 256)
    artifacts = prepare(model)
    lengths = model.lengths(texts)
    results["facts"] = {
        "machine": machine_line(),
        "date": date.today().isoformat(),
        "texts": f"{len(texts)} of mixed length, mean {np.mean(lengths):.0f} tokens",
        "flop_per_sentence": work(model, lengths),
    }
    turns = 3 if options.quick else 7
    common = {"artifacts": artifacts, "texts": list(texts), "folder": resolve(DEFAULT).folder, "build": BUILD}
    common["reference"] = model.reference(list(texts))
    seconds, rounds = (0.7, 3) if options.quick else (4, 5)
    seconds, rounds = options.seconds or seconds, options.rounds or rounds
    measures = {
        "startup": lambda: {"startup": startup.measure()},
        "quality": lambda: {"quality": quality.measure()},
        "inprocess": lambda: inprocess.measure(**common, turns=turns) | {"profile": kernels.measure(artifacts, texts)},
        "served": lambda: {"served": served.measure(**common, seconds=seconds, rounds=rounds)},
    }
    for part in parts:
        with timed(part):
            results |= measures[part]()
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.write(results, options.output)


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """Say how long a part took."""
    began = time.monotonic()
    yield
    print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)


def prepare(model: Model) -> dict[str, accel.Artifact]:
    """The artifacts that take part, validated."""
    asked = {
        "plain": {},
        "ours FP32": {"packed": True},
        "ours INT8": {"packed": True, "precision": "int8", "keep": "auto"},
    }
    made = {name: accel.to_onnx(model, progress=False, **options) for name, options in asked.items()}
    sample = accel.load_texts("mixed", limit=64, seed=3)
    return {
        name: one if one.validated else accel.validate(one, reference=model, texts=sample).artifact
        for name, one in made.items()
    }


def work(model: Model, lengths: np.ndarray) -> float:
    """Floating-point operations of the matrix products for one text on average, padding left out."""
    config = model.module.transformer.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    linear = 2 * (4 * width * width + 2 * width * inner) * lengths.mean()
    return float(layers * (linear + 4 * width * (lengths.astype(float) ** 2).mean()))


if __name__ == "__main__":
    main()
