"""The machine's own limit: the rate of matrix products of a size that stays in the caches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE, PRODUCTS, TRIES = 512, 24, 40


def matrix_rates() -> dict[str, float]:
    """Billions of operations a second in products of a size that stays in the caches, by precision, all cores."""
    values = (
        np.random.default_rng(0).normal(0, SIZE**-0.5, (SIZE, SIZE)).astype(np.float32)
    )  # products neither grow nor fade
    whole = np.random.default_rng(0).integers(0, 127, (SIZE, SIZE))
    chain = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(PRODUCTS)]
    beside = [helper.make_node("MatMulInteger", ["x0", "w"], [f"x{i + 1}"]) for i in range(PRODUCTS)]
    return {
        "FP32": _rate(chain, {f"x{PRODUCTS}": TensorProto.FLOAT}, values, values),
        "INT8": _rate(
            beside,
            {f"x{i + 1}": TensorProto.INT32 for i in range(PRODUCTS)},
            whole.astype(np.uint8),
            whole.astype(np.int8),
        ),
    }


def _rate(nodes: Sequence[Any], outputs: Mapping[str, int], x: np.ndarray, weight: np.ndarray) -> float:
    """The best of some tries."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    ends = [helper.make_tensor_value_info(name, kind, [SIZE, SIZE]) for name, kind in ({"x0": kind} | outputs).items()]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], [numpy_helper.from_array(weight, name="w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = []
    for _ in range(TRIES):
        started = time.perf_counter()
        session.run(None, {"x0": x})
        taken.append(time.perf_counter() - started)
    return 2 * SIZE**3 * PRODUCTS / min(taken) / 1e9
