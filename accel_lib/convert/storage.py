"""ONNX files on disk: written one weight at a time, weights beside the graph from 1 GiB on, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_lib.artifact import ONNX_FILES
from accel_lib.errors import ConversionError, require

EXTERNAL_FROM_BYTES = 2**30  # a protobuf message ends at 2 GiB, and takes three times its size while it is written
_SMALL_BYTES = 1024  # what shape inference may need stays in the graph


def read_graph(path: Path) -> Any:
    """A file as a model of `onnx_ir`; its weights are read where they are used."""
    return require("onnx_ir", extra="convert").load(path)


def read_typed(path: Path) -> Any:
    """As `read_graph`, with the type of every value inferred again, and nothing taken from what the file says of it."""
    onnx, ir = require("onnx", extra="convert"), require("onnx_ir", extra="convert")
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.value_info[:]
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    ir.external_data.set_base_dir(model.graph, path.parent)
    model.graph.sort()
    return model


def write_graph(model: Any, path: Path) -> None:
    """Write a model of `onnx_ir`, with ``model.onnx.data`` beside it where its weights are large, and check it.

    Raises
    ------
    ConversionError
        ONNX's checker refuses the file; operators outside ONNX, such as ``com.microsoft``'s, it leaves to the runtime.
    """
    ir = require("onnx_ir", extra="convert")
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = ONNX_FILES[1] if size >= EXTERNAL_FROM_BYTES else None
    ir.save(model, path, external_data=beside, size_threshold_bytes=_SMALL_BYTES)
    check_file(path)


def write_proto(proto: Any, source: Path, path: Path) -> None:
    """As `write_graph`, for a model of `onnx` whose external weights are those of the file `source`."""
    ir = require("onnx_ir", extra="convert")
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, source.parent)
    write_graph(model, path)


def check_file(path: Path) -> None:
    """Raise `ConversionError` where a file is no valid ONNX: its order, its types, its shapes."""
    onnx = require("onnx", extra="convert")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(
            "ONNX's checker refuses the converted file.",
            seen=next(iter(str(error).splitlines()), ""),
            fix="accel doctor shows the versions; another precision may do: accel.to_onnx(model)",
        ) from error
