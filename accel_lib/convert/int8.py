"""INT8 quantization for ONNX Runtime on a CPU: weights per channel, activations per token.

ONNX Runtime's own dynamic quantization takes one scale for all activations of a matrix product, from the largest number
in the whole batch: one large token costs all others their precision, and a vector depends on its batch. Here each token
has its own scale, computed while the graph runs at nearly the same cost. Channels with outliers in every calibration
text are divided before rounding, and the weights multiplied by the same factor, which changes no product.

Sources: "ZeroQuant", https://arxiv.org/abs/2206.01861 (a scale for each token); "SmoothQuant",
https://arxiv.org/abs/2211.10438 (outlier channels), whose factor with an exponent of one half is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import TOKENIZER_FILE, Artifact
from accel_lib.convert.storage import write_proto
from accel_lib.engines.batching import plan_batches
from accel_lib.engines.onnxruntime import open_session, weight_bits
from accel_lib.errors import require
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import SEGMENTS, Ragged, by_name
from accel_lib.texts import load_texts

_CONTRIB = "com.microsoft"
_ZERO_POINT, _STEPS = 128, 127.0
_SMALLEST = 1e-12  # a token of zeros has a scale too
_CALIBRATION_TEXTS = 64

Factors = Mapping[str, NDArray[np.float32]]


def weighted_products(graph: Any) -> list[Any]:
    """The matrix products of a graph whose second factor is a weight matrix."""
    weights = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def to_int8(
    fp32: Artifact, path: Path, kept: Collection[str], *, texts: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Write an artifact's graph with its weighted matrix products in INT8, but for the nodes named in `kept`.

    Parameters
    ----------
    fp32
        An FP32 artifact.
    path
        File to write.
    kept
        Names of matrix products that stay FP32.
    texts
        Calibration texts, which show the channels with outliers; None takes some that ship.

    Returns
    -------
    tuple of str
        Notes for the manifest.
    """
    onnx = require("onnx", extra="convert")
    model = onnx.load(fp32.path, load_external_data=False)
    quantize(model, fp32.folder, kept, outlier_channels(fp32, texts))
    write_proto(model, fp32.path, path)
    scheme = "8-bit weights" if weight_bits() == 8 else "7-bit weights, this CPU has no VNNI"
    return (f"INT8 by channel and token, {scheme}; {len(kept)} matrix products kept in FP32",)


def outlier_channels(fp32: Artifact, texts: Sequence[str] | None = None) -> Factors:
    """By what to divide each channel in front of a product, and multiply its weights, so that both round evenly.

    Returns
    -------
    mapping
        Name of the tensor that flows into products -> float32 ``[channels]``, above zero.
    """
    onnx = require("onnx", extra="convert")
    model = onnx.load(fp32.path, load_external_data=False)
    weights = {weight.name: weight for weight in model.graph.initializer}
    largest: dict[str, NDArray[np.float32]] = defaultdict(lambda: np.full(1, _SMALLEST, dtype=np.float32))
    for node in weighted_products(model.graph):
        weight = np.abs(onnx.numpy_helper.to_array(weights[node.input[1]], str(fp32.folder))).max(axis=1)
        largest[node.input[0]] = np.maximum(largest[node.input[0]], weight)
    seen = _reach(model, list(largest), fp32, texts)
    return {x: np.sqrt(seen[x] / largest[x]).astype(np.float32) for x in largest}


def calibration_rows(fp32: Artifact, texts: Sequence[str]) -> tuple[Ragged, int]:
    """Rows of texts as the artifact's tokenizer makes them, of a cross-encoder with pairs behind them; and its padding.

    A classifier that tells the texts of a pair apart is a cross-encoder: its activations are those of pairs.
    """
    inputs = fp32.manifest.inputs
    tokenizer = Tokenizer.load(fp32.folder / TOKENIZER_FILE, segments=SEGMENTS in inputs)
    singles = tokenizer.encode_with_lengths(texts)[0]
    if SEGMENTS not in inputs or len(texts) < 2:
        return singles, tokenizer.pad_id
    pairs = tokenizer.encode_with_lengths(texts[: len(texts) // 2], seconds=texts[-(len(texts) // 2) :])[0]
    return Ragged.concat([singles, pairs]), tokenizer.pad_id


def _reach(
    model: Any, tensors: Sequence[str], fp32: Artifact, texts: Sequence[str] | None
) -> dict[str, NDArray[np.float32]]:
    """Largest magnitude of each channel of some tensors, over texts."""
    onnx = require("onnx", extra="convert")
    there = {value.name for value in model.graph.output}
    kind = onnx.TensorProto.FLOAT
    model.graph.output.extend(onnx.helper.make_tensor_value_info(x, kind, None) for x in tensors if x not in there)
    rows, pad_id = calibration_rows(fp32, texts or load_texts("mixed", limit=_CALIBRATION_TEXTS, seed=1))
    reach: dict[str, NDArray[np.float32]] = {}
    graph = model.SerializeToString()
    session, _ = open_session(fp32, device="cpu", threads=None, allow_spinning=True, graph=graph)
    for batch in plan_batches(rows.lengths, max_batch_tokens=1024):
        feeds = by_name(fp32.manifest.inputs, rows.take(batch).padded(pad_id))
        found = session.run(list(tensors), feeds)
        for x, values in zip(tensors, found, strict=True):
            highest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            reach[x] = np.maximum(reach.get(x, _SMALLEST), highest)
    return reach


def quantize(model: Any, folder: Path, kept: Collection[str], factors: Factors) -> None:
    """Replace the weighted matrix products of an ONNX model, in place, but for the nodes named in `kept`.

    Weights that are not in the model are read from `folder`, one at a time.
    """
    onnx = require("onnx", extra="convert")
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    chosen = {node.name for node in weighted_products(graph)} - set(kept)
    added, nodes, rounded = _constants(), [], set()
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        x, name = node.input
        if x not in rounded:
            rounded.add(x)
            added[f"int8/{x}/quieter"] = 1 / factors[x]
            added[f"int8/rows_{len(factors[x])}"] = np.array([-1, len(factors[x])])
            nodes += _round_tokens(x, len(factors[x]))
        nodes += _product(node, x, name)
        weight = onnx.numpy_helper.to_array(weights[name], str(folder)) * factors[x][:, None]
        added[f"{name}/int8"], added[f"{name}/scale"] = _whole_numbers(weight)
    used = {name for node in nodes for name in node.input}
    held = [*graph.initializer, *(onnx.numpy_helper.from_array(value, name=name) for name, value in added.items())]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(weight for weight in held if weight.name in used)
    graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(_CONTRIB, 1))


def _round_tokens(x: str, width: int) -> Iterable[Any]:
    """Nodes that turn ``[…, width]`` into uint8 around 128, with one scale a token."""
    make = require("onnx", extra="convert").helper.make_node

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return make(operator, inputs, [f"int8/{x}/{output}"], name=f"int8/{x}/{operator}_{output}", **attributes)

    quiet = f"int8/{x}/quiet"
    return [
        node("Mul", [x, f"int8/{x}/quieter"], "quiet"),
        node("ReduceMax", [quiet, "int8/last_axis"], "high"),
        node("ReduceMin", [quiet, "int8/last_axis"], "low"),
        node("Neg", [f"int8/{x}/low"], "depth"),
        node("Max", [f"int8/{x}/high", f"int8/{x}/depth", "int8/smallest"], "reach"),
        node("Mul", [f"int8/{x}/reach", "int8/step"], "scale"),
        node("Reshape", [f"int8/{x}/scale", "int8/flat"], "scales"),
        node("Shape", [f"int8/{x}/scales"], "tokens"),
        node("Expand", ["int8/zero_points", f"int8/{x}/tokens"], "zeros"),
        node("Shape", [x], "shape"),
        node("Reshape", [quiet, f"int8/rows_{width}"], "rows"),
        node("QuantizeLinear", [f"int8/{x}/rows", f"int8/{x}/scales", f"int8/{x}/zeros"], "rounded", axis=0),
        node("Reshape", [f"int8/{x}/rounded", f"int8/{x}/shape"], "int8"),
    ]


def _product(node: Any, x: str, weight: str) -> Iterable[Any]:
    """The product of whole numbers, scaled by channel inside and by token behind."""
    make = require("onnx", extra="convert").helper.make_node
    inputs = [f"int8/{x}/int8", f"{weight}/int8", "int8/one", f"{weight}/scale", "int8/zero_point"]
    inner = f"{node.output[0]}/by_channel"
    return [
        make("MatMulIntegerToFloat", inputs, [inner], name=node.name, domain=_CONTRIB),
        make("Mul", [inner, f"int8/{x}/scale"], list(node.output), name=f"{node.name}/by_token"),
    ]


def _whole_numbers(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    most = 2 ** (weight_bits() - 1) - 1
    scales = np.maximum(np.abs(weight).max(axis=0), _SMALLEST) / most
    return np.round(weight / scales).astype(np.int8), scales.astype(np.float32)


def _constants() -> dict[str, NDArray[Any]]:
    return {
        "int8/last_axis": np.array([-1]),
        "int8/flat": np.array([-1]),
        "int8/smallest": np.array(_SMALLEST, dtype=np.float32),
        "int8/step": np.array(1 / _STEPS, dtype=np.float32),
        "int8/one": np.array(1, dtype=np.float32),
        "int8/zero_point": np.array(_ZERO_POINT, dtype=np.uint8),
        "int8/zero_points": np.array([_ZERO_POINT], dtype=np.uint8),
    }
