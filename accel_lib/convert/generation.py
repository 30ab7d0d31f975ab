"""A causal language model to OpenVINO: one stateful graph that keeps its cache, as OpenVINO GenAI's pipelines read it.

The graph is traced from `accel_lib.models.decoder`, so nothing but OpenVINO is needed. Inputs are ``input_ids``,
``attention_mask``, ``position_ids`` and ``beam_idx``; the cache starts empty and stays inside.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_lib._logging import without_bars
from accel_lib.artifact import GRAMMAR_FILES, Artifact, Format
from accel_lib.convert.export import failing_as
from accel_lib.convert.reuse import hash_of_weights, label_of, make, versions_of_packages
from accel_lib.errors import ConversionError, require
from accel_lib.version import __version__

if TYPE_CHECKING:
    from accel_lib.models.decoder import Decoder
    from accel_lib.models.generation import GenerationModel

PRECISIONS = ("fp32", "bf16", "int8")
_INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")
_JSON = '{}[]:,"0'
_SERVED_INPUT = "input_ids"
_SERVED_OUTPUT = "token_ids"


def generation_to_openvino(
    model: GenerationModel, *, precision: str = "fp32", output: str | Path | None = None, progress: bool = True
) -> Artifact:
    """Convert a causal language model to OpenVINO.

    Parameters
    ----------
    model
        Of a family that `accel_lib.models.decoder` computes: Llama, Mistral, Qwen 2 and 3, Gemma.
    precision
        ``"fp32"``; ``"bf16"`` (the same file, computed in BF16: for CPUs that have it); ``"int8"`` (weights in INT8
        with a scale a channel, activations rounded to INT8 as they are multiplied).
    output, progress
        As of `accel_lib.to_onnx`.

    Returns
    -------
    Artifact
        ``model.xml`` and ``model.bin``, tokenizer and manifest. It is not validated yet.

    Raises
    ------
    ConversionError
        The precision is unknown, or the conversion failed; nothing is left behind.
    ModelError
        The model's family, or a setting of it, is computed otherwise.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ConversionError("There is no such precision.", seen=repr(precision), fix=f"one of: {known}")

    def write(path: Path) -> tuple[str, ...]:
        with failing_as("export"):
            graph = stateful_graph(model)
            if precision == "int8":
                nncf = require("nncf", extra="openvino")
                with without_bars():
                    graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
            require("openvino", extra="openvino").save_model(graph, path, compress_to_fp16=False)
        return _save_grammar(model, path.parent)

    facts = facts_of(model, "openvino", precision) | {"inputs": (_SERVED_INPUT,), "output_name": _SERVED_OUTPUT}
    label = label_of(precision, packed=False, form="openvino")
    return make(model, facts, label, write, output, progress)


def _save_grammar(model: GenerationModel, folder: Path) -> tuple[str, ...]:
    """Write the tokenizer once more, as OpenVINO reads it: what holds an answer to a JSON schema needs it."""
    ov = require("openvino", extra="openvino")
    if not set(_JSON) <= model.tokenizer.get_vocab().keys():
        return ("no JSON schemas: the vocabulary has not all of the marks of JSON",)
    theirs = require("transformers", extra="models").PreTrainedTokenizerFast(tokenizer_object=model.tokenizer)
    try:
        both = require("openvino_tokenizers", extra="generate").convert_tokenizer(theirs, with_detokenizer=True)
    except Exception as error:  # of a kind that it does not know; the model generates all the same
        return (f"no JSON schemas: OpenVINO does not read this tokenizer ({type(error).__name__})",)
    for graph, name in zip(both, GRAMMAR_FILES[::2], strict=True):
        ov.save_model(graph, folder / name)
    return ()


def facts_of(model: GenerationModel, form: Format, precision: str) -> dict[str, Any]:
    """What the manifest of a converted language model says, but for its inputs and output."""
    template = model.chat_template
    return {
        "model": model.name,
        "source": f"{model.source}, weights {hash_of_weights(model.network)}",
        "task": "generation",
        "format": form,
        "precision": precision,
        "packed": False,
        "dimension": model.vocabulary,
        "max_length": model.context_tokens,
        "stop_ids": model.stop_ids,
        "chat_template": template.text if template else "",
        "special_tokens": template.special_tokens if template else {},
        "versions": {"accel_lib": __version__} | versions_of_packages(),
    }


def stateful_graph(model: GenerationModel) -> Any:
    """An ``openvino.Model`` with its cache inside.

    Raises
    ------
    ModelError
        The model's family, or a setting of it, is computed otherwise.
    """
    from accel_lib.models.decoder import Decoder, cache_names, check_family

    ov = require("openvino", extra="openvino")
    transformations = require("openvino._offline_transformations", extra="openvino")
    check_family(model.network.config, model.folder, context_tokens=model.context_tokens)
    decoder = Decoder(model.network, model.folder, context_tokens=model.context_tokens).eval()
    graph = _traced(ov, decoder)
    before, after = (cache_names(len(decoder.layers), side) for side in ("past_key_values", "present"))
    heads = [-1, decoder.key_value_heads, -1, decoder.head_size]
    shapes = [[-1, -1]] * 3 + [[-1]] + [heads] * len(before)
    for port, name, shape in zip(graph.inputs, [*_INPUTS, *before], shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for port, name in zip(graph.outputs, ["logits", *after], strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    transformations.apply_make_stateful_transformation(graph, dict(zip(before, after, strict=True)))
    _start_empty(graph, decoder)
    return graph


def _traced(ov: Any, decoder: Decoder) -> Any:
    import torch
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from accel_lib.models.decoder import FlatDecoder

    class Picked(torch.nn.Module):
        """The decoder with caches whose rows `beam_idx` picks."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = FlatDecoder(decoder)

        def forward(self, ids: Any, mask: Any, positions: Any, beam_idx: Any, *caches: Any) -> Any:
            return self.decoder(ids, mask, positions, *(cache.index_select(0, beam_idx) for cache in caches))

    new = torch.ones((2, 2), dtype=torch.int64)
    past = torch.zeros((2, decoder.key_value_heads, 3, decoder.head_size))
    example = (new, torch.ones((2, 5), dtype=torch.int64), new + 2, torch.tensor([0, 1], dtype=torch.int32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of shapes that are the network's own
        traced = TorchScriptPythonDecoder(
            Picked().eval(),
            example_input=(*example, *[past] * (2 * len(decoder.layers))),
            trace_kwargs={"check_trace": False},  # validation compares what comes out with the original
        )
        return ov.convert_model(traced)


def _start_empty(graph: Any, decoder: Decoder) -> None:
    """Give each cache an initial value of no tokens, as many rows as the batch has."""
    ops = require("openvino.opset13", extra="openvino")
    ids = graph.input("input_ids")
    rows = ops.gather(ops.shape_of(ids, output_type="i64"), ops.constant([0]), ops.constant(0))
    rest = ops.constant(np.array([decoder.key_value_heads, 0, decoder.head_size], dtype=np.int64))
    shape = ops.concat([rows, rest], 0)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            zero = ops.constant(np.array(0, dtype=np.float32))
            node.set_arguments([ops.broadcast(zero, shape)])
    graph.validate_nodes_and_infer_types()
