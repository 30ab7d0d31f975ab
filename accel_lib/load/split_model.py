"""Two ways to be parallel on CPU cores: several instances of a whole model, or one split into halves in a pipeline."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import TOKENIZER_FILE, Artifact
from accel_lib.engines.onnxruntime import Part
from accel_lib.formatting import capital, number, percent
from accel_lib.load.rounds import Ways, compare, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.measurement import to_frame
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import by_name
from accel_lib.triton.ensemble import write_ensemble, write_part
from accel_lib.triton.server import Server

INSTANCES, HALVES, ONE = "two instances", "two halves", "one instance"
LAYOUTS = {INSTANCES: "instances", HALVES: "halves", ONE: "one"}  # models of the repository
_PARTS = {INSTANCES: ("instances",), HALVES: ("halves-1", "halves-2"), ONE: ("one",)}


def write_layouts(model: Artifact, halves: Sequence[Artifact]) -> Path:
    """Write a repository, in the cache, with a model in three layouts that share the cores evenly: see `LAYOUTS`.

    The halves are what `accel_lib.convert.partition.cut` made of the whole model, an ONNX artifact.
    """
    repository = cache_dir("scratch", "layouts")
    cores = inspect_machine().cores
    write_part(repository, LAYOUTS[ONE], model, threads=cores)
    write_part(repository, LAYOUTS[INSTANCES], model, instance_count=2, threads=max(1, cores // 2))
    write_ensemble(repository, LAYOUTS[HALVES], halves, threads=max(1, cores // 2))
    return repository


def compare_layouts(
    server: Server,
    workloads: Mapping[str, Sequence[str]],
    *,
    concurrency: int = 8,
    seconds: float = 1,
    repeats: int = 3,
) -> Ways:
    """Measure the three layouts in turns; the others are idle meanwhile.

    The server serves what `write_layouts` wrote; `workloads` are texts by name, sent one a request. The result also has
    ``threads`` of each instance, ``text_ms``, the time of instances for one text, summed over the halves, and ``busy``,
    the share of the instances' time.
    """
    served = {way: server.model(name, version=1) for way, name in LAYOUTS.items()}

    def measure(texts: Sequence[str], way: str, _turn: int) -> tuple[LoadRun, dict[str, float]]:
        parts = [server.model(name) for name in _PARTS[way]]
        before = [part.statistics() for part in parts]
        run = whole(load_test(served[way], texts, concurrency=concurrency, seconds=seconds, warmup_s=0.2))
        worked = [part.statistics() - earlier for part, earlier in zip(parts, before, strict=True)]
        text_ms = sum(part.text_ms for part in worked)
        instances_ms = 1e3 * sum(part.config.instance_count for part in parts)
        busy = min(text_ms * run.throughput / instances_ms, 1.0)
        return run, {"threads": parts[0].config.threads or 0, "text_ms": text_ms, "busy": busy}

    ways = {way: functools.partial(server.model, name, version=1) for way, name in LAYOUTS.items()}
    loads = {name: functools.partial(measure, texts) for name, texts in workloads.items()}
    rows, stopped = compare(ways, loads, repeats=repeats)
    frame = to_frame(rows)
    return Ways(frame=frame, explanation=_why(frame), stopped=stopped)


def part_times_ms(parts: Sequence[Artifact], texts: Sequence[str], *, repeats: int = 3) -> list[float]:
    """Milliseconds per text of each part of a model, one after the other on one thread here, at best."""
    tokenizer = Tokenizer.load(parts[0].folder / TOKENIZER_FILE, parts[0].manifest.max_length)
    rows, opened = tokenizer(texts), [Part(part, threads=1) for part in parts]
    best = np.full(len(parts), np.inf)
    for _ in range(repeats):
        spent = np.zeros(len(parts))
        for row in rows:
            arrays = (row[None], np.ones_like(row)[None])
            tensors: dict[str, NDArray[Any]] = {**by_name(parts[0].manifest.inputs, arrays)}
            for index, part in enumerate(opened):
                begin = time.perf_counter()
                tensors[part.output] = part.run(tensors)
                spent[index] += time.perf_counter() - begin
        best = np.minimum(best, spent * 1e3 / len(rows))
    return [float(value) for value in best]


def _why(frame: pd.DataFrame) -> str:
    """What a text costs in each layout, and how busy the instances are: one waits for the other, or hands over."""
    told = []
    for workload, part in frame[frame["setting"].isin([INSTANCES, HALVES])].groupby("workload", sort=False):
        costs = [
            f"{row['setting']} {number(row['text_ms'])} ms{' (summed)' if row['setting'] == HALVES else ''},"
            f" busy {percent(row['busy'])} of the time"
            for row in part.to_dict("records")
        ]
        told.append(f"{workload}: {'; '.join(costs)}.")
    return "\n".join(["How long a text keeps an instance, and how busy the instances are.", *map(capital, told)])
