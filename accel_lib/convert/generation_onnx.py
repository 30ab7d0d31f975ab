"""A causal language model to ONNX: one graph for prompts and for single tokens, its key-value cache in and out.

Inputs are ``input_ids`` and ``position_ids`` ``[batch, new]``, ``attention_mask`` ``[batch, past + new]`` and, for each
layer, ``past_key_values.N.key`` and ``.value`` ``[batch, heads, past, head size]``; outputs are ``logits`` ``[batch,
new, vocabulary]`` and ``present.N.key`` and ``.value``, the cache with the new tokens. A prompt is a step of many new
tokens after none, a decode step one of a single token a row: TensorRT gets a profile for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact, Manifest, Profile
from accel_lib.convert.export import failing_as, name_nodes, name_sizes
from accel_lib.convert.fp16 import to_fp16
from accel_lib.convert.fp16_range import check_fp16_feeds
from accel_lib.convert.generation import facts_of
from accel_lib.convert.reuse import label_of, make
from accel_lib.convert.storage import write_graph
from accel_lib.errors import ConversionError, require

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

PRECISIONS = ("fp32", "fp16")
INPUTS = ("input_ids", "attention_mask", "position_ids")
LOGITS = "logits"
_RANGE_TEXTS = 32
_RANGE_TOKENS = 512


def generation_to_onnx(
    model: GenerationModel, *, precision: str = "fp32", output: str | Path | None = None, progress: bool = True
) -> Artifact:
    """Convert a causal language model to ONNX.

    Parameters
    ----------
    model
        Of a family that `accel_lib.models.decoder` computes, windows and capped scores included.
    precision
        ``"fp32"``, or ``"fp16"`` for GPUs: matrix products and cache in half precision, norms and softmax in FP32.
    output, progress
        As of `accel_lib.to_onnx`.

    Returns
    -------
    Artifact
        ``model.onnx``, tokenizer and manifest. It is not validated yet.

    Raises
    ------
    ConversionError
        The precision is unknown, or the export failed; nothing is left behind.
    ModelError
        The model's family, or a setting of it, is computed otherwise.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ConversionError(
            "A language model has no such precision in ONNX.", seen=repr(precision), fix=f"one of: {known}"
        )

    def write(path: Path) -> tuple[str, ...]:
        graph = export_generation(model)
        with failing_as("conversion to half precision" if precision == "fp16" else "export"):
            if precision == "fp16":
                to_fp16(graph)
                _halve_cache(graph)
            write_graph(graph, path)
            if precision == "fp16":
                return check_fp16_feeds(Artifact(path.parent, Manifest(**facts)), _feeds(model, graph))
        return ()

    facts = facts_of(model, "onnx", precision) | {"inputs": INPUTS, "output_name": LOGITS}
    return make(model, facts, label_of(precision, packed=False), write, output, progress)


def export_generation(model: GenerationModel) -> Any:
    """The graph of `onnx_ir` in FP32, whose weights are still the model's own."""
    torch = require("torch", extra="models")
    require("onnxscript", extra="convert")
    from accel_lib.models.decoder import Decoder, cache_names

    decoder = Decoder(model.network, model.folder, context_tokens=model.context_tokens).eval()
    before, after = (cache_names(len(decoder.layers), side) for side in ("past_key_values", "present"))
    with failing_as("export"):
        program = torch.onnx.export(
            _program(decoder),
            dynamo=True,
            input_names=[*INPUTS, *before],
            output_names=[LOGITS, *after],
            optimize=False,
            verbose=False,
        ).model
        _fold(program)
        name_nodes(program)
        _name_axes(program)
    return program


def _fold(program: Any) -> None:
    """Fold constants, and leave the exporter's rewrite rules to TensorRT and ONNX Runtime, whose own ones these are.

    In a network of thirty layers they take a third of an export, and change nothing that these do not.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(program)
    optimizer.fold_constants(program, onnx_shape_inference=True)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        tidy(program)


def _name_axes(program: Any) -> None:
    """Call what the exporter counts up by one name each: it keeps the caches' lengths apart, though they are equal."""
    ids, mask, _, *before = program.graph.inputs
    _, *after = program.graph.outputs
    sizes = {ids.shape[0]: "batch", ids.shape[1]: "sequence", mask.shape[1]: "total"}
    sizes |= {cache.shape[2]: "past" for cache in before} | {cache.shape[2]: "total" for cache in after}
    name_sizes(program, sizes)


def _program(decoder: Any) -> Any:
    import torch

    from accel_lib.models.decoder import FlatDecoder

    rows, new, past = 2, 3, 5
    ids = torch.ones((rows, new), dtype=torch.int64)
    mask = torch.ones((rows, past + new), dtype=torch.int64)
    cache = torch.zeros((rows, decoder.key_value_heads, past, decoder.head_size))
    caches = [cache.clone() for _ in range(2 * len(decoder.layers))]
    free = torch.export.Dim.DYNAMIC
    every, long = {0: free, 1: free}, {0: free, 2: free}
    return torch.export.export(
        FlatDecoder(decoder),
        (ids, mask, ids + past, *caches),
        dynamic_shapes=(every, every, every, (long,) * len(caches)),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,  # of past + new, which is the mask's length
    )


def _halve_cache(graph: Any) -> None:
    """Give the cache the type that it is computed in: the casts at its ends would double what a step reads."""
    ir = require("onnx_ir", extra="convert")
    half = ir.DataType.FLOAT16
    for value in graph.graph.inputs[len(INPUTS) :]:
        for node in [use.node for use in value.uses() if use.node.op_type == "Cast"]:
            node.outputs[0].replace_all_uses_with(value)
            graph.graph.remove(node, safe=True)
        value.dtype = half
    for place, value in enumerate(graph.graph.outputs):
        if place:
            cast, name = value.producer(), value.name
            source = cast.inputs[0]
            graph.graph.outputs[place] = source
            graph.graph.remove(cast, safe=True)
            source.name = name


def _feeds(model: GenerationModel, graph: Any) -> dict[str, NDArray[Any]]:
    """A prompt of some texts that ship, after nothing."""
    from accel_lib.texts import load_texts

    prompt = model.encode(" ".join(load_texts("mixed", limit=_RANGE_TEXTS)))[: model.context_tokens][:_RANGE_TOKENS]
    ids = np.array([prompt], dtype=np.int64)
    feeds: dict[str, NDArray[Any]] = dict(zip(INPUTS, (ids, np.ones_like(ids), np.arange(ids.size)[None]), strict=True))
    for port in graph.graph.inputs[len(INPUTS) :]:
        feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), dtype=np.float16)
    return feeds


def generation_profiles(*, rows: int = 8, prompt_tokens: int = 256, context_tokens: int = 2048) -> tuple[Profile, ...]:
    """Optimization profiles of a language model: one for decode steps, one for prompts in pieces.

    Parameters
    ----------
    rows
        Most requests in a decode step; prompts come one at a time.
    prompt_tokens
        Most tokens of a prompt in one step; the rest of it follows in the next ones.
    context_tokens
        Longest sequence, prompt and answer together.

    Returns
    -------
    tuple of Profile
        ``(batch, new tokens, tokens in the cache)`` each; the decode step first.
    """
    piece = min(prompt_tokens, context_tokens)
    decode = Profile(min=(1, 1, 1), opt=(rows, 1, context_tokens // 4), max=(rows, 1, context_tokens - 1))
    prompts = Profile(min=(1, 1, 0), opt=(1, piece, 0), max=(1, piece, context_tokens - piece))
    return decode, prompts
