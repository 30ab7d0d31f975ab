"""What each step on the way to a fast engine gives: one at a time, on batches as a server gets them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel_lib.artifact import Artifact
from accel_lib.bench.candidates import AS_THEY_COME, budget, open_candidate
from accel_lib.bench.compare import Comparison
from accel_lib.bench.timing import sample
from accel_lib.engines.batching import CPU_BATCH_TOKENS
from accel_lib.measurement import columns, take_turns, to_frame
from accel_lib.models.model import Model
from accel_lib.progress import Progress
from accel_lib.stats import agreement

_TURNS = 6  # the fewest whose median has an interval
STEPS = ("PyTorch", "export", "fusion", "no padding", "INT8", "batching")


def ablate(
    model: Model, plain: Artifact, packed: Artifact, int8: Artifact, texts: Sequence[str], *, count: int = 64
) -> Comparison:
    """Add the steps one by one, on a CPU: export, fusion, no padding, INT8, batching.

    All but the last get batches of 32 texts as they come, as a server does whose requests do not wait to be sorted; the
    last one cuts them by tokens, sorted.

    Parameters
    ----------
    model
        Where it starts: PyTorch.
    plain, packed, int8
        ONNX artifacts in FP32, in FP32 without padding, and in INT8 without padding.
    texts
        What to encode; `count` of them represent all lengths.
    """
    engines: list[tuple[Model | Artifact, dict[str, Any]]] = [
        (model, {}), (plain, {"fusions": False}), (plain, {}), (packed, {}), (int8, {}), (int8, {}),
    ]  # fmt: skip
    strategies = [*[AS_THEY_COME] * (len(STEPS) - 1), budget(CPU_BATCH_TOKENS)]
    progress = Progress("Ablation")
    with contextlib.ExitStack() as stack:
        field = [
            stack.enter_context(contextlib.closing(open_candidate(one, device="cpu", **options)))
            for one, options in engines
        ]
        some = np.random.default_rng(0).permutation(sample(field[0], texts, count)).tolist()
        runs = {
            name: functools.partial(one.encode, some, how)
            for name, one, how in zip(STEPS, field, strategies, strict=True)
        }
        progress.tick("agreement")
        truth = model.reference(some)
        seen = {name: run() for name, run in runs.items()}
        progress.tick("speed")
        taken = take_turns(runs, repeats=_TURNS)
        rows: list[dict[str, Any]] = []
        for name, one, how in zip(STEPS, field, strategies, strict=True):
            row: dict[str, Any] = {"name": name, "over": STEPS[0] if rows else "", "device": one.device}
            row |= {"precision": one.precision, "batching": how.name, "padding": one.padding(some, how)}
            row |= columns("texts_per_s", len(some) / taken[name])
            row |= columns("speedup", taken[STEPS[0]] / taken[name])
            rows.append(row | {"size_mb": one.size_bytes / 1e6} | agreement(seen[name], truth, task=model.task))
    progress.done(f"{len(some)} texts, {len(STEPS)} steps")
    return Comparison(frame=to_frame(rows))
