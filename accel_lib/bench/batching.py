"""Throughput of one engine by how its texts are cut into batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel_lib.artifact import Artifact
from accel_lib.bench.candidates import AS_THEY_COME, ONE_BY_ONE, SORTED, Strategy, budget, open_candidate
from accel_lib.engines.batching import batch_tokens
from accel_lib.formatting import change, number, percent, ratio, times
from accel_lib.measurement import Result, columns, highest, speedup, take_turns, to_frame
from accel_lib.models import Model

_TURNS = 11
_ALIKE = 1.1  # times as fast: still about the same


class Batching(Result):
    """Throughput by batching strategy, the first one being what the others are compared to."""

    @property
    def headline(self) -> str:
        """What the second strategy does to the first one's throughput, its padding, and which is best."""
        first, second = self.frame.iloc[:2].to_dict("records")
        best = highest(self.frame, "texts_per_s")
        effect = change(second, "speedup", f"throughput of {first['strategy']}")
        said = f"{second['strategy']}: {effect}, {percent(second['padding'])} of its tokens are padding"
        if best["strategy"] in (first["strategy"], second["strategy"]):
            return said
        return f"{said}. Best: {best['strategy']}, {ratio(best, 'speedup')}"

    @property
    def explanation(self) -> str:
        """What the second strategy's speed is made of: how fast tokens are computed, and how many of them are text."""
        first, second = self.frame.iloc[:2].to_dict("records")
        computes = second["padded_tokens_per_s"] / first["padded_tokens_per_s"]
        text = (1 - second["padding"]) / (1 - first["padding"])
        word = "faster than" if computes > _ALIKE else "slower than" if computes < 1 / _ALIKE else "as fast as"
        rates = f"{number(second['padded_tokens_per_s'])} against {number(first['padded_tokens_per_s'])} tokens/s"
        said = f"{second['strategy']} computes tokens {word} {first['strategy']} ({rates}, {times(computes)})"
        product = f"{computes:.3f} × {text:.3f} = {times(computes * text)}"
        return f"{said}, and {percent(1 - second['padding'])} of them are text: {product}"


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
    texts
        What to encode; their order counts for batches "as they come".
    strategies
        At least two, speed-ups are over the first; if left out: one by one, 32 as they come, 32 sorted by length, and
        sorted within the engine's usual budget of tokens.
    seconds
        About how long to measure; each strategy gets six turns at least, and eleven if they fit.

    Returns
    -------
    Batching
        One row a strategy: ``texts_per_s``, ``tokens_per_s`` (real), ``padded_tokens_per_s`` (all computed),
        ``padding``, ``speedup``; each with its interval in ``_low`` and ``_high`` where it was measured.

    Examples
    --------
    >>> compare_batching(model, load_texts("short", limit=64))  # doctest: +SKIP
    """
    one = open_candidate(candidate, device=device)
    strategies = strategies or (ONE_BY_ONE, AS_THEY_COME, SORTED, budget(batch_tokens(one.device)))
    lengths, texts = one.lengths(texts), list(texts)
    try:
        one.encode(texts[:4], strategies[-1])
        runs = {strategy.name: functools.partial(one.encode, texts, strategy) for strategy in strategies}
        taken = take_turns(runs, repeats=_TURNS, seconds=seconds)
    finally:
        one.close()
    first = taken[strategies[0].name]
    rows: list[dict[str, Any]] = []
    for strategy in strategies:
        spent, padding = taken[strategy.name], one.padding(texts, strategy)
        rate = float(np.median(lengths.sum() / spent))
        row = {"tokens_per_s": rate, "padded_tokens_per_s": rate / (1 - padding), "padding": padding}
        speed = columns("texts_per_s", len(texts) / spent) | row | speedup(spent, first)
        rows.append({"strategy": strategy.name, "device": one.device, **speed})
    return Batching(frame=to_frame(rows))
