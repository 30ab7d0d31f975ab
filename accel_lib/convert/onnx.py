"""PyTorch to ONNX or a PyTorch program: pooling or head inside, the precision in the file, reused where it can be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accel_lib.artifact import Artifact, Format, Manifest
from accel_lib.convert import precision as precisions
from accel_lib.convert.export import export_graph, failing_as, program_of, save_program, varlen_program
from accel_lib.convert.fp16 import to_fp16
from accel_lib.convert.fp16_range import check_fp16_graph, check_fp16_range
from accel_lib.convert.reuse import (
    folder_of,
    hash_of_weights,
    label_of,
    make,
    reusable,
    short_hash,
    versions_of_packages,
)
from accel_lib.convert.storage import read_graph, write_graph
from accel_lib.engines.onnxruntime import weight_bits
from accel_lib.errors import ConversionError
from accel_lib.version import __version__

if TYPE_CHECKING:
    from accel_lib.models import Model
    from accel_lib.models.generation import GenerationModel

_FACTS = (
    "task", "output_name", "dimension", "max_length", "labels", "inputs", "activation", "pairs", "prompts",
    "default_prompt",
)  # fmt: skip


def to_onnx(
    model: Model | GenerationModel,
    *,
    precision: str = "fp32",
    packed: bool = False,
    keep: Sequence[str] | Literal["auto"] = (),
    texts: Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Artifact:
    """Convert a model to ONNX.

    Parameters
    ----------
    model
        What `accel_lib.load_model` or `accel_lib.train_classifier` returned. A language model gets its key-value cache
        as inputs and outputs, in FP32 or FP16 (`accel_lib.convert.generation_onnx`).
    precision
        ``"fp32"``; ``"fp16"`` (for GPUs; LayerNorm, softmax and pooling stay FP32); ``"int8"`` (dynamic, for ONNX
        Runtime on a CPU); ``"int8-qdq"`` (static Q/DQ, for TensorRT).
    packed
        Compute on real tokens only: padding goes inside the graph and comes back around attention alone, which keeps
        to each layer's window. For CPUs; any precision.
    keep
        For INT8: parts of node names, such as ``"layer.5."``, whose matrix products stay FP32. ``"auto"`` searches for
        as few as needed to keep 95% of the ten nearest neighbours (`accel_lib.convert.sensitivity`).
    texts
        For ``"int8-qdq"``: texts that show how large the activations become; for ``keep="auto"``: texts to judge by.
        None takes some that ship.
    output
        Folder to write; None takes one in the cache, and reuses what is there if nothing it depends on has changed.
    progress
        Print a line a step.

    Returns
    -------
    Artifact
        One ``model.onnx`` whose inputs are those of the model (int64 ``[batch, sequence]``), tokenizer and manifest. It
        is not validated yet.

    Raises
    ------
    ConversionError
        The precision is unknown, or the export failed; nothing is left behind.
    ModelError
        The network cannot be packed.
    """
    if model.task == "generation":
        from accel_lib.convert.generation_onnx import generation_to_onnx

        if packed or keep:
            raise ConversionError("A language model is not packed, and keeps no nodes.", fix="accel.to_onnx(model)")
        return generation_to_onnx(model, precision=precision, output=output, progress=progress)
    if precision not in precisions.PRECISIONS:
        known = ", ".join(precisions.PRECISIONS)
        raise ConversionError("There is no such precision.", seen=repr(precision), fix=f"one of: {known}")
    if keep and not precision.startswith("int8"):
        raise ConversionError("Only INT8 keeps nodes.", seen=f"keep={keep!r}", fix='precision="int8"')

    def write(path: Path) -> tuple[str, ...]:
        if precision.startswith("int8"):
            fp32 = to_onnx(model, packed=packed, progress=progress)
            with failing_as("quantization"):
                return precisions.quantized(fp32, path, precision, keep=keep, texts=texts)
        made = reusable(folder_of(model, label_of(packed=packed)), facts | {"precision": "fp32"})
        graph = read_graph(made.path) if made else export_graph(model, packed=packed)
        with failing_as("conversion to half precision" if precision == "fp16" else "export"):
            if precision == "fp16":
                to_fp16(graph)
            write_graph(graph, path)
            return check_fp16_graph(Artifact(path.parent, Manifest(**facts)), model) if precision == "fp16" else ()

    kept = keep if isinstance(keep, str) else short_hash("\n".join(keep).encode()) if keep else ""
    facts = _facts(model, "onnx", precision, packed=packed)
    return make(model, facts, label_of(precision, packed=packed, kept=kept), write, output, progress)


def to_torch(
    model: Model,
    *,
    precision: str = "fp32",
    packed: bool = False,
    output: str | Path | None = None,
    progress: bool = True,
) -> Artifact:
    """Save a model as a ``torch.export`` program, which a server runs without the Python code of the model.

    Parameters
    ----------
    model, output, progress
        As for `to_onnx`.
    precision
        ``"fp32"``, or ``"fp16"`` for GPUs: the transformer in half precision, pooling in FP32.
    packed
        Compute real tokens only, with attention by segments (`accel_lib.models.varlen`): for GPUs of compute
        capability 8.0 and up, in fp16.

    Returns
    -------
    Artifact
        One ``model.pt2``, tokenizer and manifest.

    Raises
    ------
    ConversionError
        The precision is unknown, or the export failed; nothing is left behind.
    ModelError
        The network cannot be packed.
    """
    if precision not in ("fp32", "fp16"):
        raise ConversionError("A PyTorch program is fp32 or fp16.", seen=repr(precision), fix='precision="fp16"')

    def write(path: Path) -> tuple[str, ...]:
        from accel_lib.engines.torch import halve
        from accel_lib.models.varlen import to_varlen

        range_notes = check_fp16_range(model) if precision == "fp16" else ()
        module = to_varlen(model.module, longest=model.max_length) if packed else model.module
        with failing_as("export"):
            if precision == "fp16":
                module = copy.deepcopy(module)
                halve(module)
            program = varlen_program(module, model) if packed else program_of(module, model)
            save_program(program, path)
        return range_notes

    facts = _facts(model, "torch", precision, packed=packed)
    return make(model, facts, label_of(precision, packed=packed, form="torch"), write, output, progress)


def _facts(model: Model, form: Format, precision: str, *, packed: bool) -> dict[str, Any]:
    """What an artifact's manifest has to say for it to be used again."""
    return {
        "model": model.name,
        "source": f"{model.source}, weights {hash_of_weights(model.module)}",
        "format": form,
        "precision": precision,
        "packed": packed,
        "weight_bits": weight_bits() if precision == "int8" else 0,
        "versions": {"accel_lib": __version__} | versions_of_packages(),
        **{field: getattr(model, field) for field in _FACTS},
    }
