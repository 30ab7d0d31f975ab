"""The two ways to be parallel on cores: several instances of a whole model, or one split into halves in a pipeline."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import TOKENIZER_FILE, Artifact
from accel_lib.engines.part import Part
from accel_lib.load import findings_layouts
from accel_lib.load.interleave import in_rounds, whole
from accel_lib.load.runner import LoadRun, load_test
from accel_lib.load.vary import ratios, speed
from accel_lib.machine import cache_dir, inspect_machine
from accel_lib.measurement import Result, to_frame
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import by_name
from accel_lib.triton.ensemble import write_ensemble, write_part
from accel_lib.triton.server import Server
from accel_lib.triton.statistics import Statistics

INSTANCES, HALVES, ONE = "two instances", "two halves", "one instance"
MODELS = {INSTANCES: "instances", HALVES: "halves", ONE: "one"}
_PARTS = {INSTANCES: ("instances",), HALVES: ("halves-1", "halves-2"), ONE: ("one",)}
_Counted = tuple[LoadRun, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Layouts(Result):
    """What `race` measured; `frame` has one row a workload and setting.

    Parameters
    ----------
    frame
        ``workload``, ``setting``, ``threads`` of each instance; throughput and latency as `accel_lib.load.vary`
        has them; ``speedup`` and ``p95_ratio`` over two instances, with ``_low`` and ``_high``; ``text_ms``: time of
        instances for one text, summed over the halves; ``busy``: share of the instances' time.
    stopped
        Why it ended early; empty if it did not.
    """

    stopped: str = ""

    @property
    def headline(self) -> str:
        """Which of the two ways is faster on each workload, or that neither is."""
        return findings_layouts.race(self.frame, self.stopped)

    @property
    def explanation(self) -> str:
        """Why, from the time that instances worked."""
        return findings_layouts.reason(self.frame)

    def winner(self, workload: str) -> str:
        """The faster of the two ways on a workload, or "no significant difference"."""
        return findings_layouts.winner(self.frame, workload)


def write_layouts(model: Artifact, halves: Sequence[Artifact]) -> Path:
    """Write a repository with a model in three layouts that share the cores evenly: `MODELS` names them.

    Parameters
    ----------
    model
        The whole model, an ONNX artifact.
    halves
        What `accel_lib.convert.halves.cut` made of it.

    Returns
    -------
    Path
        The repository, in the cache, for ``accel.serve(repository, models=list(MODELS.values()))``.
    """
    repository = cache_dir("workbench", "layouts")
    cores = inspect_machine().cores
    write_part(repository, MODELS[ONE], model, threads=cores)
    write_part(repository, MODELS[INSTANCES], model, instance_count=2, threads=max(1, cores // 2))
    write_ensemble(repository, MODELS[HALVES], halves, threads=max(1, cores // 2))
    return repository


def race(
    server: Server,
    workloads: Mapping[str, Sequence[str]],
    *,
    concurrency: int = 8,
    seconds: float = 1,
    repeats: int = 3,
) -> Layouts:
    """Measure the three layouts in turns; the idle ones wait meanwhile.

    Parameters
    ----------
    server
        Serves what `write_layouts` wrote.
    workloads
        Texts by name, sent one a request.
    concurrency
        Requests under way.
    seconds, repeats
        Length and number of the measurements of each.

    Raises
    ------
    AccelError
        Nothing to measure, or the first measurement failed.
    """
    served = {way: server.model(name, version=1) for way, name in MODELS.items()}

    def measure(texts: Sequence[str], way: str, _turn: int) -> _Counted:
        parts = [server.model(name) for name in _PARTS[way]]
        before = [part.statistics() for part in parts]
        run = whole(load_test(served[way], texts, concurrency=concurrency, seconds=seconds, warmup_s=0.2))
        worked = [part.statistics() - earlier for part, earlier in zip(parts, before, strict=True)]
        return run, sum(map(_text_ms, worked)), sum(part.config.instance_count for part in parts)

    ways = {way: functools.partial(server.model, name, version=1) for way, name in MODELS.items()}
    loads = {name: functools.partial(measure, texts) for name, texts in workloads.items()}
    measured, stopped = in_rounds(ways, loads, repeats=repeats)
    rows = []
    for (way, workload), counted in measured.items():
        runs, base = [run for run, *_ in counted], measured.get((INSTANCES, workload), counted)
        row: dict[str, Any] = {"workload": workload, "setting": way}
        row["threads"] = server.model(_PARTS[way][0]).config.threads
        row |= speed(runs) | ratios(runs, [run for run, *_ in base])
        row["text_ms"] = sum(text_ms for _, text_ms, _ in counted) / len(counted)
        row["busy"] = min(row["text_ms"] * row["sentences_per_s"] / 1e3 / counted[0][2], 1.0)
        rows.append(row)
    frame = to_frame(sorted(rows, key=lambda row: list(workloads).index(row["workload"])))
    return Layouts(frame=frame, stopped=stopped)


def part_times_ms(parts: Sequence[Artifact], texts: Sequence[str], *, repeats: int = 3) -> list[float]:
    """Milliseconds a text of each part of a model, one after the other on one thread here, at best."""
    tokenizer = Tokenizer.load(parts[0].folder / TOKENIZER_FILE, parts[0].manifest.max_length)
    rows, opened = tokenizer(texts), [Part(part, threads=1) for part in parts]
    best = np.full(len(parts), np.inf)
    for _ in range(repeats):
        spent = np.zeros(len(parts))
        for row in rows:
            arrays = (row[None], np.ones_like(row)[None])
            tensors: dict[str, NDArray[Any]] = {**by_name(parts[0].manifest.inputs, arrays)}
            for number, part in enumerate(opened):
                begin = time.perf_counter()
                tensors[part.output] = part.run(tensors)
                spent[number] += time.perf_counter() - begin
        best = np.minimum(best, spent * 1e3 / len(rows))
    return [float(value) for value in best]


def _text_ms(worked: Statistics) -> float:
    return worked.busy_s * 1e3 / worked.inferences if worked.inferences else 0.0
