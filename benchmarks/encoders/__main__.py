"""Ours beside what a user would pick instead, by quality class: the same texts, in turns, a table, a figure, a verdict.

    make bench            about twenty minutes
    make bench QUICK=1    four minutes on two cores: fewer texts, so that classes and ratios are rough
    make bench PUBLISH=1  also keeps table, figure and numbers in benchmarks/results, README.md and docs/benchmarks.md

Environments of the peers and files of the models are made on the first run, apart from that, under ``build/bench``.
Tables, figure and numbers are left in ``out/bench``; where they are already, ``--only`` measures one part again.
Everything is tuned first: each candidate at its best way to batch, each service at its best engine, batch size and
number of processes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import accel_lib as accel
from accel_lib.bench import QualityJudge, quality_judge
from accel_lib.measurement import machine_line
from accel_lib.models import Model
from benchmarks.encoders import inprocess, kernels, limits, publish, report, served, startup
from benchmarks.encoders.candidates import Candidate, backend_options, candidates
from benchmarks.encoders.classes import CLASSES, fastest
from benchmarks.encoders.models import Files, prepare

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
OUTPUT = ROOT / "out" / "bench"
PARTS = ("startup", "inprocess", "served")
QUICK_SHARE = 6  # in a hurry, one text in this many is judged by, and all labelled ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "bench.json"
    results = json.loads(record.read_text(encoding="utf-8")) if options.only and record.is_file() else {}
    with timed("environments and models, made once"):
        small, large = prepare(BUILD)
    for part in options.only or PARTS:
        with timed(part):
            results |= PARTS_BY_NAME[part](results, small, large, quick=options.quick)
    results["facts"] = facts(accel.load_model(), quick=options.quick)
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.write(results, options.output)
    if options.publish:
        publish.publish(options.output, ROOT)


def measure_startup(results: dict[str, Any], small: Files, large: Files, *, quick: bool) -> dict[str, Any]:  # noqa: ARG001
    """What a user waits for before anything runs."""
    return {"startup": startup.measure(conversion=not quick)}


def measure_inprocess(results: dict[str, Any], small: Files, large: Files, *, quick: bool) -> dict[str, Any]:  # noqa: ARG001
    """Every candidate in one process, and the machine's own limit."""
    field = candidates(small, large, quick=quick)
    judge = quality_judge(accel.load_model())
    judge = shortened(judge) if quick else judge
    effort = inprocess.QUICK if quick else inprocess.Effort()
    texts = mixed(quick=quick)
    rows = inprocess.measure(field, texts, judge=judge, build=BUILD, effort=effort)
    return {"inprocess": rows, "limits": limits.matrix_rates(), "profile": kernels.measure(small.ours, texts)}


def measure_served(results: dict[str, Any], small: Files, large: Files, *, quick: bool) -> dict[str, Any]:
    """The fastest of ours in each class through Triton, and the peers on their fastest backend in each class."""
    rows, texts = results["inprocess"], mixed(quick=quick)
    named = {one.name: one for one in candidates(small, large, quick=quick)}
    options = backend_options(small)
    backends = {row["name"]: options[backend_of(named[row["name"]])] for row in winners(rows, "sentence-transformers")}
    found = served.measure(
        ours={row["name"]: small.ours[row["name"]] for row in winners(rows, "ours")},
        backends=backends,
        classes={row["name"]: row["class"] for row in rows},
        small=small,
        texts=texts,
        build=BUILD,
        reference=accel.load_model().reference(texts),
        effort=served.QUICK if quick else served.Effort(),
    )
    return {"served": found}


PARTS_BY_NAME = {"startup": measure_startup, "inprocess": measure_inprocess, "served": measure_served}


def winners(rows: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """The fastest of a family in each class, the strictest class first, each once."""
    own = [row for row in rows if row["name"].startswith(family)]
    best = [fastest(own, wanted) for wanted in CLASSES]
    return list({row["name"]: row for row in best if row}.values())


def backend_of(one: Candidate) -> str:
    """``"sentence-transformers, ONNX"`` runs on ``"ONNX"``."""
    return one.name.partition(", ")[2]


def shortened(judge: QualityJudge) -> QualityJudge:
    """The judge with fewer texts: neighbours are then rougher."""
    labelled = len(judge.texts) - len(judge.labels)
    kept = [*range(0, labelled, QUICK_SHARE), *range(labelled, len(judge.texts))]
    return dataclasses.replace(judge, texts=[judge.texts[i] for i in kept], vectors=judge.vectors[kept])


def mixed(*, quick: bool) -> list[str]:
    """The texts that are encoded."""
    return list(accel.load_texts("mixed", limit=96 if quick else 256))


def facts(model: Model, *, quick: bool) -> dict[str, Any]:
    """What was measured, where and when."""
    texts = mixed(quick=quick)
    lengths = model.lengths(texts)
    return {
        "machine": machine_line(),
        "date": date.today().isoformat(),
        "texts": f"{len(texts)} texts of mixed length, mean {np.mean(lengths):.0f} tokens",
        "flop_per_text": work(model, lengths),
        "quick": quick,
    }


def work(model: Model, lengths: np.ndarray) -> float:
    """Floating-point operations of the matrix products for one text on average, padding left out."""
    config = model.module.transformer.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    linear = 2 * (4 * width * width + 2 * width * inner) * lengths.mean()
    return float(layers * (linear + 4 * width * (lengths.astype(float) ** 2).mean()))


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """Say how long a part took."""
    began = time.monotonic()
    yield
    print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
