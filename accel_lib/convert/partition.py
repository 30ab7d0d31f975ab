"""One ONNX file cut into two between layers, so that each half can be a model of its own in Triton."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from accel_lib.artifact import TOKENIZER_FILE, Artifact, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.convert.export import failing_as
from accel_lib.convert.storage import write_proto
from accel_lib.engines.onnxruntime import Part
from accel_lib.errors import ConversionError, require
from accel_lib.machine import cache_dir
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import SEGMENTS, by_name

HIDDEN = "hidden_states"
_LAYER = re.compile(r"layer\.(\d+)\.")
_FLOAT = 1  # TensorProto.FLOAT
_TRIED = ("a short one", "a text that is longer than the other two", "in between, say")
_TOLERANCE = 1e-4  # of numbers of unit vectors: the halves round as the whole does


def cut(whole: Artifact, *, at: int | None = None) -> tuple[Artifact, Artifact]:
    """Cut a model between two layers, and hold the halves against the whole.

    Parameters
    ----------
    whole
        A validated ONNX artifact with padding, as ``accel.to_onnx(model)`` makes it.
    at
        Layers of the first half, from 1; None takes half of them.

    Returns
    -------
    tuple of Artifact
        The first takes what the whole does and gives ``hidden_states``, float32 ``[batch, tokens, width]``; the second
        takes those too and gives what the whole does. Both are in the cache, and validated: one after the other they
        gave the whole's vectors.

    Raises
    ------
    ConversionError
        The artifact was not validated, has no such layers, or more than one tensor goes from layer to layer; or the
        halves gave something else.
    """
    if whole.manifest.format != "onnx" or not whole.validated:
        raise ConversionError(
            "Only a validated ONNX file is cut.", seen=whole.name, fix="accel.to_onnx(model), then accel.validate(...)"
        )
    graph = require("onnx", extra="convert").load(whole.path, load_external_data=False).graph
    count = 1 + max((_layer(node) for node in graph.node), default=-1)
    at = count // 2 if at is None else at
    if not 0 < at < count:
        raise ConversionError("There is no such place to cut.", seen=f"at={at}, {count} layers", fix="1 ≤ at < layers")
    crossing = _crossing(graph, at)
    inputs, output = sorted(whole.manifest.inputs), whole.manifest.output_name
    first = _write(whole, inputs, crossing, f"layers 1 to {at} of {count}")
    second = _write(whole, [crossing, *inputs], output, f"layers {at + 1} to {count}")
    _check(whole, first, second)
    passed = {"passed": True, "against": whole.name, "tolerance": _TOLERANCE}
    return first.record_validation(passed), second.record_validation(passed)


def _layer(node: Any) -> int:
    found = _LAYER.search(node.name)
    return int(found[1]) if found else -1


def _crossing(graph: Any, at: int) -> str:
    """The one tensor of vectors that the last layer of the first half hands to the next one.

    The first layer also makes the mask and sizes that all layers use; each half makes its own.
    """
    made = {output: _layer(node) for node in graph.node for output in node.output}
    taken = [name for node in graph.node if _layer(node) == at for name in node.input]
    kinds = {tensor.name: tensor.type.tensor_type for tensor in graph.value_info}
    vectors = {name for name, kind in kinds.items() if kind.elem_type == _FLOAT and len(kind.shape.dim) == 3}
    found = sorted({name for name in taken if made.get(name) == at - 1 and name in vectors})
    if len(found) != 1:
        raise ConversionError(
            "The layers cannot be cut apart.",
            seen=f"{len(found)} tensors of vectors from layer {at} to layer {at + 1}",
            fix="a transformer encoder exported by accel.to_onnx(model), not packed and in fp32",
        )
    return str(found[0])


def _write(whole: Artifact, inputs: list[str], output: str, what: str) -> Artifact:
    onnx = require("onnx", extra="convert")
    folder = cache_dir("artifacts", whole.manifest.model.replace("/", "--"), f"onnx-{what.replace(' ', '-')}")
    with atomic_directory(folder) as draft:
        path = draft / whole.path.name
        with failing_as("cut"):
            held = onnx.load(whole.path, load_external_data=False)
            part = onnx.utils.Extractor(held).extract_model(inputs, [output])
            last = output == whole.manifest.output_name
            _rename(part.graph, inputs[0] if last else output)
            write_proto(part, whole.path, path)
        (draft / TOKENIZER_FILE).write_bytes((whole.folder / TOKENIZER_FILE).read_bytes())
        width = part.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        changed = {"output_name": whole.manifest.output_name if last else HIDDEN, "dimension": width}
        manifest = dataclasses.replace(whole.manifest, notes=(*whole.manifest.notes, what), **changed)
        return Artifact(folder, write_manifest(draft, manifest))


def _rename(graph: Any, crossing: str) -> None:
    """Call the tensor between the halves by its name in Triton."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [HIDDEN if name == crossing else name for name in names]
    for tensor in (*graph.input, *graph.output):
        if tensor.name == crossing:
            tensor.name = HIDDEN


def _check(whole: Artifact, first: Artifact, second: Artifact) -> None:
    inputs = whole.manifest.inputs
    tokenizer = Tokenizer.load(whole.folder / TOKENIZER_FILE, whole.manifest.max_length, segments=SEGMENTS in inputs)
    rows, _ = tokenizer.encode_with_lengths(_TRIED, seconds=_TRIED[::-1] if whole.manifest.pairs else None)
    tensors: dict[str, Any] = by_name(inputs, rows.padded(tokenizer.pad_id))
    wanted = Part(whole, threads=1).run(tensors)
    hidden = Part(first, threads=1).run(tensors)
    given = Part(second, threads=1).run(tensors | {HIDDEN: hidden})
    off = float(np.abs(given - wanted).max()) if given.shape == wanted.shape else float("inf")
    if not off <= _TOLERANCE:
        raise ConversionError(
            "The halves give other numbers than the whole.", seen=f"off by {off:.2g}", fix="serve the model whole"
        )
