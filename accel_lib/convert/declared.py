"""An FP16 graph in the form in which a CPU gives what its types say: rounded to FP16 after every operator.

ONNX Runtime's CPU computes in FP32 what a graph types as FP16, so numbers beyond FP16 stay finite there, which on a GPU
they do not. In this form every operator takes FP32 numbers and its result is rounded, as on hardware with FP32 sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_lib.artifact import Artifact
from accel_lib.convert.fp16 import MOVES
from accel_lib.convert.storage import read_typed
from accel_lib.engines import Engine, open_engine
from accel_lib.engines.onnxruntime import OnnxRuntimeEngine
from accel_lib.errors import require


def open_as_declared(artifact: Artifact, *, device: str = "auto") -> Engine:
    """Open an artifact; an FP16 graph that would run on a CPU gives what its types say, at a fraction of the speed."""
    engine = open_engine(artifact, device=device)
    if (artifact.manifest.format, artifact.manifest.precision, engine.device) != ("onnx", "fp16", "cpu"):
        return engine
    engine.close()
    return OnnxRuntimeEngine(artifact, device="cpu", fusions=False, graph=as_declared(artifact.path)[0])


def as_declared(path: Path, *, watch: bool = False) -> tuple[bytes, dict[str, str]]:
    """An FP16 file as a serialized graph that rounds where its types say, on the weights of the file.

    Parameters
    ----------
    path
        The file.
    watch
        Give the largest number that goes into each rounding as one more output.

    Returns
    -------
    bytes, dict
        The graph; names of the further outputs, FP32 scalars -> the node that made the number.
    """
    ir = require("onnx_ir", extra="convert")
    model = read_typed(path)
    unrounded: dict[Any, Any] = {}
    for node in list(model.graph):
        if node.op_type not in MOVES | {"Cast"}:
            _round(ir, model.graph, node, unrounded)
    watched: dict[str, str] = {}
    for node in list(model.graph) if watch else ():
        if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT16:
            maker = node.inputs[0].producer()
            if maker is not None and maker.op_type != "Clip":  # what was clipped fits
                watched[_watch(ir, model.graph, node, f"watched/{len(watched)}")] = maker.name
    return ir.serde.serialize_model(model).SerializeToString(), watched


def _round(ir: Any, graph: Any, node: Any, unrounded: dict[Any, Any]) -> None:
    """Let a node compute in FP32, between casts; `unrounded` holds the same numbers as FP32 for each FP16 tensor."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.FLOAT16:
            if value not in unrounded:
                cast = _cast(ir, value, ir.DataType.FLOAT, "as_fp32")
                graph.insert_before(node, cast)
                unrounded[value] = cast.outputs[0]
            node.replace_input_with(index, unrounded[value])
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT16:
            users, value.dtype = list(value.uses()), ir.DataType.FLOAT
            cast = _cast(ir, value, ir.DataType.FLOAT16, "rounded")
            graph.insert_after(node, cast)
            for user, index in users:
                user.replace_input_with(index, cast.outputs[0])


def _cast(ir: Any, value: Any, kind: Any, what: str) -> Any:
    node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}/{what}")
    made = node.outputs[0]
    made.name, made.dtype, made.shape = node.name, kind, value.shape
    return node


def _watch(ir: Any, graph: Any, cast: Any, name: str) -> str:
    """Add the largest magnitude that a cast takes to a graph's outputs; of what goes into a softmax, the largest."""
    seen, nodes = cast.inputs[0], []
    if not _goes_into_softmax(cast.outputs[0]):
        nodes = [ir.node("Abs", [seen], name=f"{name}/Abs")]
        seen = nodes[0].outputs[0]
        seen.name, seen.dtype = f"{name}/magnitude", ir.DataType.FLOAT
    nodes.append(ir.node("ReduceMax", [seen], {"keepdims": 0}, name=f"{name}/ReduceMax"))
    largest = nodes[-1].outputs[0]
    largest.name, largest.dtype, largest.shape = name, ir.DataType.FLOAT, ir.Shape([])
    graph.insert_after(cast, nodes)
    graph.outputs.append(largest)
    return name


def _goes_into_softmax(value: Any) -> bool:
    """Whether all that a value comes to, cast or not, is a softmax: there very negative numbers do no harm."""
    users = [user for user, _ in value.uses()]
    return bool(users) and all(
        user.op_type == "Softmax" or (user.op_type == "Cast" and _goes_into_softmax(user.outputs[0])) for user in users
    )
