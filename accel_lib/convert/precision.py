"""INT8 in one of two forms, and a reader that tells which precision a graph really holds."""

from __future__ import annotations

import collections
import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from accel_lib.artifact import ONNX_FILES, Artifact
from accel_lib.convert.int8 import calibration_rows, to_int8, weighted_products
from accel_lib.convert.sensitivity import sensitive
from accel_lib.convert.storage import read_graph, write_graph
from accel_lib.errors import ArtifactError, ConversionError, require
from accel_lib.ragged import by_name

PRECISIONS = ("fp32", "fp16", "int8", "int8-qdq")

_CALIBRATION_TEXTS = 64


def quantized(
    fp32: Artifact,
    path: Path,
    precision: str,
    *,
    keep: Sequence[str] | Literal["auto"],
    texts: Sequence[str] | None,
) -> tuple[str, ...]:
    """Write an FP32 artifact's graph in INT8 to `path`; returns notes for the manifest."""
    kept = sensitive(fp32, texts) if keep == "auto" else nodes_to_keep(fp32.path, keep)
    if precision == "int8":
        return to_int8(fp32, path, kept, texts=texts)
    return _to_int8_qdq(fp32, path, kept, texts)


def graph_precision(path: Path) -> str:
    """The precision a graph really holds, read from the element types of its matrix products.

    Returns
    -------
    str
        One of `PRECISIONS`, or a description such as ``"48 operands of float16, 4 of float"`` where they are mixed.

    Raises
    ------
    ArtifactError
        The file is no valid ONNX graph.
    """
    onnx = require("onnx", extra="convert")
    try:
        model = onnx.load(path, load_external_data=False)
        del model.graph.value_info[:]  # what a file says of itself is not what it holds
        model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf and ONNX raise errors of their own for a broken file
        raise ArtifactError(
            f"{path.name} cannot be read as ONNX.", seen=error, fix="convert the model again: accel.to_onnx(model)"
        ) from error
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    if kinds["MatMulIntegerToFloat"]:
        return "int8"
    if kinds["DequantizeLinear"]:
        return "int8-qdq"
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.input]}
    types |= {weight.name: weight.data_type for weight in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    found = collections.Counter(
        onnx.TensorProto.DataType.Name(_element_type(operand, types, made_by))
        for node in products
        for operand in node.input[:2]
    )
    names = {"FLOAT": "fp32", "FLOAT16": "fp16"}
    if len(found) == 1 and next(iter(found)) in names:
        return names[next(iter(found))]
    return (
        ", ".join(f"{count} operands of {kind.lower()}" for kind, count in found.most_common()) or "no matrix product"
    )


def _element_type(tensor: str, types: dict[str, int], made_by: dict[str, Any]) -> int:
    """Element type of a tensor; where inference gave up, that of what it was computed from."""
    while not types.get(tensor) and tensor in made_by:
        tensor = made_by[tensor].input[0]
    return types.get(tensor, 0)


def _to_int8_qdq(fp32: Artifact, path: Path, kept: list[str], texts: Sequence[str] | None) -> tuple[str, ...]:
    require("onnxruntime", extra="convert")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _without_advice(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        quantize_static(
            fp32.path,
            made,
            _Calibration(fp32, texts),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "MatMulConstBOnly": True,
                "DefaultTensorType": 1,
            },
            use_external_data_format=(fp32.folder / ONNX_FILES[1]).is_file(),
        )
        write_graph(read_graph(made), path)
    return (f"INT8 with Q/DQ nodes; {len(kept)} matrix products kept in FP32",)


class _Calibration:
    """Batches of texts for ONNX Runtime's calibration."""

    def __init__(self, fp32: Artifact, texts: Sequence[str] | None) -> None:
        from accel_lib.engines.batching import plan_batches
        from accel_lib.texts import load_texts

        rows, pad_id = calibration_rows(fp32, texts or load_texts("mixed", limit=_CALIBRATION_TEXTS))
        padded = (rows.take(batch).padded(pad_id) for batch in plan_batches(rows.lengths, max_batch_tokens=1024))
        self._feeds = iter([by_name(fp32.manifest.inputs, arrays) for arrays in padded])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None at the end."""
        return next(self._feeds, None)


def nodes_to_keep(path: Path, keep: Sequence[str]) -> list[str]:
    """Names of a file's weighted matrix products with one of these parts in it; a part that none has is refused."""
    if not keep:
        return []
    onnx = require("onnx", extra="convert")
    names = [node.name for node in weighted_products(onnx.load(path, load_external_data=False).graph)]
    for part in keep:
        if not any(part in name for name in names):
            raise ConversionError(
                "No matrix product with weights has such a name.",
                seen=f"keep: {part!r}",
                fix=f"part of a name such as {names[0]!r}",
            )
    return [name for name in names if any(part in name for part in keep)]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Without ONNX Runtime's advice to pre-process a graph that needs none, logged to the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
