"""Where batching stops paying: a batch's fixed cost against the cost of each of its tokens.

A batch of T tokens reads every weight once and multiplies every token with every weight: a fixed part, and a part that
grows with T. While T is small the fixed part dominates and further tokens come nearly for nothing; when T is large it
is arithmetic, and they cost what they cost alone. On a GPU the fixed part is mostly launching kernels.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 52 (2009).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.bench.timing import full_batch
from accel_lib.engines import open_engine
from accel_lib.errors import require
from accel_lib.formatting import listed, number, times
from accel_lib.measurement import Result, take_turns, to_frame
from accel_lib.models import Model

LENGTHS = (4, 16, 64)
BATCH_SIZES = (1, 4, 16)
GPU_BATCH_SIZES = (*BATCH_SIZES, 64, 256)
_TURNS = 15
_WEIGHT_BYTES = 4


class Crossover(Result):
    """What `crossover` measured; `frame` has one row a size.

    Its columns: ``batch_size``, ``tokens`` of each text, ``batch_tokens``, ``ms`` of the batch, ``token_ms`` (``ms``
    over ``batch_tokens``); and, the same in every row, ``batch_ms``, the fitted time of a batch whatever is in it,
    ``token_us``, that of one more token, ``weights`` that every token is multiplied with, and ``device``.
    """

    @property
    def headline(self) -> str:
        """What the best batch gains over one text alone, by the length of the texts."""
        each = self.frame.assign(text_ms=self.frame["ms"] / self.frame["batch_size"]).set_index("tokens")
        alone = each.loc[each["batch_size"] == each["batch_size"].min(), "text_ms"]
        gains: pd.Series[float] = (alone / each.groupby(level=0)["text_ms"].min()).sort_index()
        return f"Batching gains {listed([f'{times(gain)} for texts of {n} tokens' for n, gain in gains.items()])}"

    @property
    def explanation(self) -> str:
        """What a token and a batch cost, what speeds that means, and from how many tokens on arithmetic dominates."""
        fixed_ms, token_us, weights, device = self.frame[["batch_ms", "token_us", "weights", "device"]].iloc[0]
        if token_us <= 0:
            return f"Every batch here takes {number(fixed_ms)} ms: more tokens cost nothing that can be measured"
        speed = f"{number(weights / 1e6)} million weights at {number(2 * weights / token_us / 1e3)} GFLOP/s"
        if fixed_ms <= 0:
            return f"A token takes {number(token_us)} µs ({speed}) in a batch of any size: there is no fixed part"
        read = f"as long as reading the weights once at {number(_WEIGHT_BYTES * weights / fixed_ms / 1e6)} GB/s"
        if device != "cpu":  # whose memory delivers them far sooner
            read = "mostly to launch its kernels one by one"
        said = f"A token takes {number(token_us)} µs ({speed}), and a batch {number(fixed_ms)} ms on top, {read}"
        return f"{said}: from {number(1e3 * fixed_ms / token_us)} tokens on the tokens take longer"


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
        Whose weights are counted: those of its matrices, without the embedding table.
    artifact
        The model in FP32, as it is served.
    lengths, batch_sizes
        Tokens of each text, and texts in a batch: if left out, 1 to 16, on a GPU to 256.
    """
    engine = open_engine(artifact)
    batch_sizes = batch_sizes or (BATCH_SIZES if engine.device == "cpu" else GPU_BATCH_SIZES)
    sizes = [(batch, length) for batch in batch_sizes for length in lengths]
    try:
        runs = {f"{batch} × {length}": full_batch(engine, batch, length) for batch, length in sizes}
        take_turns(runs, repeats=1)
        taken = take_turns(runs, repeats=_TURNS, seconds=seconds)
    finally:
        engine.close()
    frame = to_frame([{"batch_size": batch, "tokens": length} for batch, length in sizes])
    frame["batch_tokens"] = frame["batch_size"] * frame["tokens"]
    frame["ms"] = [1e3 * float(np.median(values)) for values in taken.values()]
    frame["token_ms"] = frame["ms"] / frame["batch_tokens"]
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    frame["batch_ms"], frame["token_us"] = batch_ms, 1e3 * token_ms
    named = model.module.named_parameters()
    frame["weights"] = sum(p.numel() for name, p in named if p.ndim == 2 and "embedding" not in name.lower())
    frame["device"] = engine.device
    return Crossover(frame=frame)


def fit(tokens: NDArray[np.float64], ms: NDArray[np.float64]) -> tuple[float, float]:
    """Milliseconds of a batch and of a token, neither below zero, by least squares of the relative errors."""
    parts = np.stack([np.ones_like(tokens), tokens], axis=1) / ms[:, None]
    (batch_ms, token_ms), _ = require("scipy.optimize", extra="models").nnls(parts, np.ones_like(ms))
    return float(batch_ms), float(token_ms)
