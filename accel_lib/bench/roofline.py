"""Where batching stops paying: what a batch costs whatever is in it, against what each of its tokens costs.

A batch of T tokens reads every weight once, and multiplies every token with every weight: a fixed part, and a part that
grows with T. While T is small the fixed part is most of it, and further tokens come nearly for nothing; when T is large
it is arithmetic, and they cost what they cost alone. On a GPU the fixed part is mostly launching kernels, a hundred and
more for a batch of any size.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 52 (2009).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.bench import findings_curve
from accel_lib.engines import Engine, open_engine
from accel_lib.measurement import Result, take_turns, to_frame
from accel_lib.models import Model

LENGTHS, BATCH_SIZES = (4, 16, 64), (1, 4, 16)
GPU_BATCH_SIZES = (*BATCH_SIZES, 64, 256)
_TURNS = 15


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Crossover(Result):
    """What `crossover` measured; `frame` has one row a size.

    Parameters
    ----------
    frame
        ``batch_size``, ``tokens`` of each text, ``batch_tokens``, ``ms`` of the batch, ``token_ms`` (``ms`` over
        ``batch_tokens``); and, the same in every row, ``batch_ms`` of a batch whatever is in it and ``token_us`` of one
        more token, fitted to all sizes, ``weights``, the numbers that every token is multiplied with, and ``device``.
    """

    @property
    def headline(self) -> str:
        """What batching gains by the length of the texts."""
        return findings_curve.crossover(self.frame)

    @property
    def explanation(self) -> str:
        """From how many tokens on arithmetic is the larger part, and what speeds that means."""
        return findings_curve.limits(self.frame.iloc[0])


def crossover(
    model: Model,
    artifact: Artifact,
    *,
    lengths: Sequence[int] = LENGTHS,
    batch_sizes: Sequence[int] | None = None,
    seconds: float = 4,
) -> Crossover:
    """Time full batches of every size in turns, and fit the part that does not depend on the size.

    Parameters
    ----------
    model
        Whose weights are counted: those of its matrices, without the table of tokens.
    artifact
        The model in FP32, as it is served.
    lengths, batch_sizes
        Tokens of each text, and texts in a batch: if left out, 1 to 16, on a GPU to 256.
    seconds
        About how long to measure.
    """
    engine = open_engine(artifact)
    batch_sizes = batch_sizes or (BATCH_SIZES if engine.device == "cpu" else GPU_BATCH_SIZES)
    sizes = [(batch, length) for batch in batch_sizes for length in lengths]
    try:
        runs = {f"{batch} × {length}": _call(engine, batch, length) for batch, length in sizes}
        take_turns(runs, repeats=1)
        taken = take_turns(runs, repeats=_TURNS, seconds=seconds)
    finally:
        engine.close()
    frame = to_frame([{"batch_size": batch, "tokens": length} for batch, length in sizes])
    frame["batch_tokens"] = frame["batch_size"] * frame["tokens"]
    frame["ms"] = [1e3 * float(np.median(values)) for values in taken.values()]
    frame["token_ms"] = frame["ms"] / frame["batch_tokens"]
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    frame["batch_ms"], frame["token_us"], frame["weights"] = batch_ms, 1e3 * token_ms, matrix_weights(model)
    frame["device"] = engine.device
    return Crossover(frame=frame)


def fit(tokens: NDArray[np.float64], ms: NDArray[np.float64]) -> tuple[float, float]:
    """Milliseconds of a batch and of a token in ``batch + token × tokens``, by least squares of the relative errors.

    Neither is below zero: where one would be, the other explains all alone, as on a GPU whose smallest batches all take
    the same time.
    """
    parts = np.stack([np.ones_like(tokens), tokens], axis=1) / ms[:, None]
    both = np.linalg.lstsq(parts, np.ones_like(ms), rcond=None)[0]
    if both.min() < 0:
        left = int(both.argmax())
        both = np.zeros(2)
        both[left] = parts[:, left].sum() / (parts[:, left] ** 2).sum()
    return float(both[0]), float(both[1])


def matrix_weights(model: Model) -> int:
    """Weights that every token is multiplied with."""
    named = model.module.named_parameters()
    return sum(p.numel() for name, p in named if p.ndim == 2 and "embedding" not in name.lower())


def _call(engine: Engine, batch: int, length: int) -> Callable[[], object]:
    ids = np.random.default_rng(0).integers(1_000, 20_000, (batch, length), dtype=np.int64)
    return lambda: engine.run(ids, np.ones_like(ids))
