"""PyTorch to one ONNX file: dynamic batch and sequence, pooling or head inside, the precision in the graph."""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import dataclasses
import hashlib
import importlib.metadata
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from accel_lib.artifact import MODEL_FILES, TOKENIZER_FILE, Artifact, Format, Manifest, foreign_files, seal
from accel_lib.atomic import writing
from accel_lib.convert import precision as precisions
from accel_lib.convert.overflow import check_fp16_range
from accel_lib.errors import ArtifactError, ConversionError, require
from accel_lib.machine import cache_dir
from accel_lib.version import __version__

if TYPE_CHECKING:
    import torch

    from accel_lib.models import Model

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
_FACTS = (
    "task", "output_name", "dimension", "max_length", "labels", "inputs", "activation", "pairs", "prompts",
    "default_prompt",
)  # fmt: skip
_LARGEST_BATCH = 65_535
_LARGEST_BYTES = 2**31 - 1  # a protobuf message, and so an ONNX file, ends at 2 GiB


def to_onnx(
    model: Model,
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
        What `accel_lib.load_model` or `accel_lib.train_classifier` returned.
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
    if precision not in precisions.PRECISIONS:
        known = ", ".join(precisions.PRECISIONS)
        raise ConversionError("There is no such precision.", seen=repr(precision), fix=f"one of: {known}")
    if keep and not precision.startswith("int8"):
        raise ConversionError("Only INT8 keeps nodes.", seen=f"keep={keep!r}", fix='precision="int8"')

    def write(path: Path) -> tuple[str, ...]:
        if precision == "fp32":
            _export(_packed(model) if packed else model, path)
            return ()
        range_notes = check_fp16_range(model) if precision == "fp16" else ()
        fp32 = to_onnx(model, packed=packed, progress=progress)
        with _failing_as("quantization" if precision.startswith("int8") else "conversion to half precision"):
            return (*range_notes, *precisions.convert(fp32, path, precision, keep=keep, texts=texts))

    kept = keep if isinstance(keep, str) else _short_hash("\n".join(keep).encode()) if keep else ""
    label = "-".join(filter(None, ["onnx", precision, "packed" if packed else "", kept]))
    return _make(model, "onnx", precision, label, write, output, progress, packed=packed)


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
        Compute real tokens only, with attention by segments (`accel_lib.models.segments`): for GPUs of compute
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
        import torch

        from accel_lib.engines.torch import halve
        from accel_lib.models.segments import segment

        range_notes = check_fp16_range(model) if precision == "fp16" else ()
        module = segment(model.module, longest=model.max_length) if packed else model.module
        with _failing_as("export"):
            if precision == "fp16":
                module = copy.deepcopy(module)
                halve(module)
            program = _segment_program(module, model) if packed else _program(module, model)
            torch.export.save(program, path)
        return range_notes

    label = f"torch-{precision}{'-packed' if packed else ''}"
    return _make(model, "torch", precision, label, write, output, progress, packed=packed)


def _make(
    model: Model,
    form: Format,
    precision: str,
    label: str,
    write: Callable[[Path], tuple[str, ...]],
    output: str | Path | None,
    progress: bool,
    *,
    packed: bool = False,
) -> Artifact:
    """Reuse an artifact that nothing has changed for, or write it aside and rename it."""
    facts: dict[str, Any] = {
        "model": model.name,
        "source": f"{model.source}, weights {_weights(model)}",
        "format": form,
        "precision": precision,
        "packed": packed,
        "versions": {"accel_lib": __version__} | _versions(),
        **{field: getattr(model, field) for field in _FACTS},
    }
    folder = Path(output) if output else cache_dir("artifacts", model.name.replace("/", "--"), label)
    if output is None:
        with contextlib.suppress(ArtifactError):
            found = Artifact.load(folder)
            if all(getattr(found.manifest, name) == value for name, value in facts.items()):
                if progress:
                    print(f"{found.name}: reused, {found.size_bytes / 1e6:.1f} MB", flush=True)
                return found
    started = time.monotonic()
    with writing(folder, foreign=foreign_files if output else None) as draft:
        notes = write(draft / MODEL_FILES[form])
        model.tokenizer.save(draft / TOKENIZER_FILE)
        seconds = time.monotonic() - started
        manifest = seal(draft, Manifest(**facts, seconds=seconds, notes=(*model.notes, *notes)))
    artifact = Artifact(folder, manifest)
    if progress:
        print(f"{artifact.name}: {artifact.size_bytes / 1e6:.1f} MB in {manifest.seconds:.1f} s", flush=True)
    return artifact


def _versions() -> dict[str, str]:
    """Versions of the packages a conversion depends on, those that are installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _program(module: torch.nn.Module, model: Model) -> Any:
    import torch

    shape = {0: torch.export.Dim("batch", max=_LARGEST_BATCH), 1: torch.export.Dim("sequence", max=model.max_length)}
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in model.inputs)
    shapes = tuple(shape for _ in model.inputs)
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def _segment_program(module: torch.nn.Module, model: Model) -> Any:
    import torch

    from accel_lib.models.segments import flatten
    from accel_lib.ragged import SEGMENTS, Ragged

    tokens, ends = (
        {0: torch.export.Dim(name, min=least, max=most)}
        for name, least, most in (("tokens", 2, 2**20), ("ends", 3, _LARGEST_BATCH))
    )
    rows = Ragged.of([np.ones(8, dtype=np.int64)] * 4)
    example = tuple(map(torch.from_numpy, flatten(rows, segments=SEGMENTS in model.inputs)))
    shapes = (tokens, tokens, tokens, ends, tokens)[: len(example)]
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def _packed(model: Model) -> Model:
    from accel_lib.models.packed import pack

    return dataclasses.replace(model, module=pack(model.module, longest=model.max_length))


def _export(model: Model, path: Path) -> None:
    torch = require("torch", extra="models")
    require("onnxscript", extra="convert")
    if model.size_bytes > _LARGEST_BYTES:
        raise ConversionError(
            "An ONNX file ends at 2 GiB.",
            seen=f"{model.size_bytes / 2**30:.1f} GiB of weights",
            fix="a smaller encoder",
        )
    with _failing_as("export"), _quiet():
        program = torch.onnx.export(
            _program(model.module, model),
            dynamo=True,
            input_names=list(model.inputs),
            output_names=[model.output_name],
            verbose=False,
        )
        _name_nodes(program.model)
        _name_sizes(program.model)
        program.save(path, external_data=False)


def _name_nodes(graph: Any) -> None:
    """Name each node by the module it came from, such as ``encoder.layer.0.output.dense/MatMul``, for `keep`."""
    seen: collections.Counter[str] = collections.Counter()
    for node in graph.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        name = f"{ast.literal_eval(scopes)[-2] if scopes else ''}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        node.metadata_props.clear()


def _name_sizes(graph: Any) -> None:
    """Call the dynamic sizes ``batch`` and ``sequence``, which the exporter calls ``s43`` and ``s53``."""
    names = dict(zip(map(str, graph.graph.inputs[0].shape), ("batch", "sequence"), strict=True))
    made = (output for node in graph.graph for output in node.outputs)
    for value in {*graph.graph.inputs, *made}:
        for axis, size in enumerate(value.shape or ()):
            if str(size) in names:
                value.shape[axis] = names[str(size)]


@contextlib.contextmanager
def _failing_as(step: str) -> Iterator[None]:
    """Whatever PyTorch or ONNX Runtime raises, as a ConversionError that names the step."""
    try:
        yield
    except (ConversionError, ArtifactError):
        raise
    except Exception as error:  # exporters raise errors of many kinds, from many libraries
        raise ConversionError(
            f"The {step} failed.",
            seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="accel doctor shows the versions; the model may use an operation that ONNX does not have",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on optional packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weights(model: Model) -> str:
    digest = hashlib.blake2b(str(getattr(model.module, "tail", "")).encode(), digest_size=6)  # pooling has no weights
    for name, weight in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=4).hexdigest()
