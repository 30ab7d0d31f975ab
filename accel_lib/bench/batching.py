"""What batching does on this machine: by strategy over texts, and by batch size and length over an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.bench import findings
from accel_lib.bench.candidates import AS_THEY_COME, ONE_BY_ONE, SORTED, Strategy, budget, contender
from accel_lib.engines import Engine
from accel_lib.engines.batching import batch_tokens
from accel_lib.measurement import Result, columns, take_turns, to_frame
from accel_lib.models import Model

_TURNS = 11


class Batching(Result):
    """Throughput by batching strategy, the first one being what the others are compared to."""

    @property
    def headline(self) -> str:
        """What the second strategy does to the first one's throughput, why, and which is best."""
        return findings.batching(self.frame)


class SpeedupMap(Result):
    """Speed-up by batch size and length."""

    @property
    def headline(self) -> str:
        """Where most and least is gained."""
        return findings.speedup(self.frame)


def compare_batching(
    candidate: Model | Artifact,
    texts: Sequence[str],
    *,
    strategies: Sequence[Strategy] | None = None,
    device: str = "auto",
    seconds: float = 15,
) -> Batching:
    """Encode the same texts in batches cut in several ways.

    Parameters
    ----------
    candidate
        A model (PyTorch) or an artifact.
    texts
        What to encode; their order counts for batches "as they come".
    strategies
        At least two, speed-ups are over the first; if left out: one by one, 32 as they come, 32 sorted by length, and
        sorted within the engine's usual budget of tokens.
    device
        As for ``open_engine``.
    seconds
        About how long to measure; each strategy gets six turns at least, and eleven if they fit.

    Returns
    -------
    Batching
        One row a strategy: ``sentences_per_s``, ``tokens_per_s`` (real), ``padded_tokens_per_s`` (all computed),
        ``padding``, ``speedup``; each with its interval in ``_low`` and ``_high`` where it was measured.

    Examples
    --------
    >>> compare_batching(model, load_texts("short", limit=64))  # doctest: +SKIP
    """
    one = contender(candidate, device=device)
    tokens = batch_tokens(one.device)
    strategies = strategies or (ONE_BY_ONE, AS_THEY_COME, SORTED, budget(tokens))
    lengths, texts = one.lengths(texts), list(texts)
    try:
        one.encode(texts[:4], strategies[-1])
        runs = {strategy.name: _run(one.encode, texts, strategy) for strategy in strategies}
        taken = take_turns(runs, repeats=_TURNS, seconds=seconds)
    finally:
        one.close()
    first = taken[strategies[0].name]
    rows: list[dict[str, Any]] = []
    for strategy in strategies:
        spent, padding = taken[strategy.name], one.padding(texts, strategy)
        rate = float(np.median(lengths.sum() / spent))
        row = {"tokens_per_s": rate, "padded_tokens_per_s": rate / (1 - padding), "padding": padding}
        speed = columns("sentences_per_s", len(texts) / spent) | row | columns("speedup", first / spent)
        rows.append({"strategy": strategy.name, "device": one.device, **speed})
    return Batching(frame=to_frame(rows))


def map_speedup(
    candidate: Engine,
    baseline: Engine,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    tokens: Sequence[int] = (16, 64, 128),
    seconds: float = 30,
) -> SpeedupMap:
    """Time two engines on full batches of one length, size by size, taking turns.

    Parameters
    ----------
    candidate, baseline
        Engines of one model.
    batch_sizes, tokens
        Sizes to measure: texts a batch, and tokens a text.
    seconds
        About how long to measure, all sizes together.

    Returns
    -------
    SpeedupMap
        One row a size: ``candidate``, ``baseline``, ``batch_size``, ``tokens``, ``candidate_ms``, ``baseline_ms``,
        and ``speedup`` with its interval.
    """
    engines, sizes = {"candidate": candidate, "baseline": baseline}, [(b, t) for b in batch_sizes for t in tokens]
    rows: list[dict[str, Any]] = []
    for batch_size, length in sizes:
        ids = np.random.default_rng(0).integers(1, 100, (batch_size, length), dtype=np.int64)
        runs = {role: _call(engine, ids) for role, engine in engines.items()}
        take_turns(runs, repeats=2)
        taken = take_turns(runs, repeats=2 * _TURNS, seconds=seconds / len(sizes))
        row: dict[str, Any] = {role: engine.name for role, engine in engines.items()}
        row |= {"batch_size": batch_size, "tokens": length}
        row |= {f"{role}_ms": float(np.median(taken[role])) * 1e3 for role in runs}
        rows.append(row | columns("speedup", taken["baseline"] / taken["candidate"]))
    return SpeedupMap(frame=to_frame(rows))


def _run(encode: Callable[[Sequence[str], Strategy], object], texts: list[str], how: Strategy) -> Callable[[], object]:
    return lambda: encode(texts, how)


def _call(engine: Engine, ids: NDArray[np.int64]) -> Callable[[], object]:
    return lambda: engine.run(ids, np.ones_like(ids))
