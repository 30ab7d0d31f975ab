"""Which matrix products should stay out of INT8: found by rounding each one alone, and kept until enough agrees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.convert.int8 import calibration_rows, outlier_channels, quantize, weighted_products
from accel_lib.engines.batching import run_batches
from accel_lib.engines.onnxruntime import OnnxRuntimeEngine
from accel_lib.errors import ConversionError, require
from accel_lib.ragged import Ragged
from accel_lib.scores import logit_errors
from accel_lib.stats import cosine, overlap
from accel_lib.texts import load_texts

LEAST_COSINE, LEAST_OVERLAP = 0.99, 0.95  # what INT8 has to keep to be served by default
MOST_LOGIT_ERROR = 0.14  # of a classifier's spread: what a cosine of 0.99 is to a vector
_MARGIN = 0.01  # other texts keep a little less than those that were searched with
_TEXTS, _FEW = 192, 24

_Encode = Callable[[Collection[str], Ragged], NDArray[np.float32]]


def sensitive(fp32: Artifact, texts: Sequence[str] | None = None) -> list[str]:
    """The fewest matrix products to keep in FP32 so that INT8 holds its targets.

    Each product is rounded alone; those that move the vectors furthest for the arithmetic they save are kept first, and
    only as many as it takes to reach a mean cosine of 0.99 and 95% of the ten nearest neighbours, with a percent to
    spare. A classifier's logits may be off by 14% of their spread.

    Parameters
    ----------
    fp32
        An FP32 artifact.
    texts
        Texts to judge by, best some hundreds; None takes some that ship.

    Returns
    -------
    list of str
        Names of nodes; empty where INT8 holds its targets everywhere.

    Raises
    ------
    ConversionError
        The targets hold only where nothing is rounded.
    """
    onnx = require("onnx", extra="convert")
    rows, _ = calibration_rows(fp32, texts or load_texts("mixed", limit=_TEXTS, seed=2))
    products = weighted_products(onnx.load(fp32.path, load_external_data=False).graph)
    names = [node.name for node in products]
    encode = _trials(fp32)
    exact = encode(names, rows)

    def holds(kept: Collection[str]) -> bool:
        return _holds(encode(kept, rows), exact, fp32.manifest.task)

    if holds([]):
        return []
    few = np.argsort(rows.lengths, kind="stable")[:: max(1, len(rows) // _FEW)]
    some = rows.take(few)
    work = _work(onnx.load(fp32.path, load_external_data=False).graph, products)
    task = fp32.manifest.task
    moved = {name: _moved(encode(set(names) - {name}, some), exact[few], task) for name in names}
    worst_first = sorted(names, key=lambda name: -moved[name] / work[name])
    count = _fewest(lambda count: holds(worst_first[:count]), len(names))
    if count == len(names):
        raise ConversionError(
            "INT8 does not hold its targets for this model.",
            seen=f"a mean cosine under {LEAST_COSINE}, or under {LEAST_OVERLAP:.0%} of the ten nearest neighbours; "
            f"of a classifier, logits off by more than {MOST_LOGIT_ERROR:.0%} of their spread",
            fix='precision="fp32"; or keep=[...] and a look at what you lose',
        )
    return worst_first[:count]


def _fewest(holds: Callable[[int], bool], most: int) -> int:
    """The smallest count that holds, by halving; `most` always does."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _holds(seen: NDArray[np.float32], exact: NDArray[np.float32], task: str) -> bool:
    if task == "classification":
        return logit_errors(seen, exact).typical <= MOST_LOGIT_ERROR
    near = cosine(seen, exact).mean() >= LEAST_COSINE
    share = overlap(*(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (seen, exact)))
    return bool(near) and not share < LEAST_OVERLAP + _MARGIN  # too few texts give NaN: the cosine decides


def _moved(seen: NDArray[np.float32], exact: NDArray[np.float32], task: str) -> float:
    return logit_errors(seen, exact).typical if task == "classification" else float(1 - cosine(seen, exact).mean())


def _trials(fp32: Artifact) -> _Encode:
    """A function that encodes rows with everything in INT8 but the named nodes."""
    onnx = require("onnx", extra="convert")
    outliers = outlier_channels(fp32)

    def encode(kept: Collection[str], rows: Ragged) -> NDArray[np.float32]:
        model = onnx.load(fp32.path, load_external_data=False)
        quantize(model, fp32.folder, kept, outliers)
        graph = model.SerializeToString()
        with contextlib.closing(OnnxRuntimeEngine(fp32, device="cpu", graph=graph)) as engine:
            return run_batches(engine, rows)

    return encode


def _work(graph: Any, products: Sequence[Any]) -> dict[str, int]:
    """Multiplications for one token, by node."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in graph.initializer}
    return {node.name: sizes[node.input[1]] for node in products}
