"""PyTorch to a graph: one program for any batch and sequence, its nodes named by the module they came from."""

from __future__ import annotations

import ast
import collections
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_lib.errors import AccelError, ConversionError, require

if TYPE_CHECKING:
    import torch

    from accel_lib.models import Model

_LARGEST_BATCH = 65_535
_SEEN_CHARACTERS = 200
_FIX = "run it in PyTorch: accel.open_engine(model); the exporter may not know an operation of this network"
_FIX_DATA = (
    "its way through the network depends on a batch's values, which no graph holds: accel.open_engine(model) runs it"
)
_FIX_MEMORY = "free memory (accel doctor shows how much there is), or convert on a machine with more"


def program_of(module: torch.nn.Module, model: Model) -> Any:
    """A network as a ``torch.export`` program for any batch and any length that its model takes."""
    import torch

    shape = {0: torch.export.Dim("batch", max=_LARGEST_BATCH), 1: torch.export.Dim("sequence", max=model.max_length)}
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in model.inputs)
    shapes = tuple(shape for _ in model.inputs)
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def save_program(program: Any, path: Path) -> None:
    """Write a ``torch.export`` program; what cannot be written, such as mapped functions, is taken apart before."""
    import torch

    if any("flat_apply" in str(node.target) for node in program.graph.nodes):
        program = program.run_decompositions({})
    torch.export.save(program, path)


def varlen_program(module: torch.nn.Module, model: Model) -> Any:
    """A `VarlenEncoder` as a ``torch.export`` program for any number of tokens and texts."""
    import torch

    from accel_lib.models.varlen import flatten
    from accel_lib.ragged import SEGMENTS, Ragged

    tokens, ends = (
        {0: torch.export.Dim(name, min=least, max=most)}
        for name, least, most in (("tokens", 2, 2**20), ("ends", 3, _LARGEST_BATCH))
    )
    rows = Ragged.from_rows([np.ones(8, dtype=np.int64)] * 4)
    example = tuple(map(torch.from_numpy, flatten(rows, segments=SEGMENTS in model.inputs)))
    shapes = (tokens, tokens, tokens, ends, tokens)[: len(example)]
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def export_graph(model: Model, *, packed: bool) -> Any:
    """A model as a graph of `onnx_ir` in FP32, whose weights are still the model's own.

    Raises
    ------
    ConversionError
        The export failed.
    ModelError
        The network cannot be packed.
    """
    torch = require("torch", extra="models")
    require("onnxscript", extra="convert")
    module = model.module
    if packed:
        from accel_lib.models.packed import pack

        module = pack(module, longest=model.max_length)
    with failing_as("export"):
        program = torch.onnx.export(
            program_of(module, model),
            dynamo=True,
            input_names=list(model.inputs),
            output_names=[model.output_name],
            verbose=False,
        )
        name_nodes(program.model)
        name_sizes(program.model, dict(zip(program.model.graph.inputs[0].shape, ("batch", "sequence"), strict=True)))
    return program.model


def name_nodes(graph: Any) -> None:
    """Name each node by the module it came from, such as ``encoder.layer.0.output.dense/MatMul``, for `keep`."""
    seen: collections.Counter[str] = collections.Counter()
    for node in graph.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        name = f"{ast.literal_eval(scopes)[-2] if scopes else ''}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        node.metadata_props.clear()


def name_sizes(graph: Any, sizes: Mapping[Any, str]) -> None:
    """Call dynamic sizes by names such as ``batch`` and ``sequence``, which the exporter calls ``s43`` and ``s53``."""
    names = {str(size): name for size, name in sizes.items()}
    made = (output for node in graph.graph for output in node.outputs)
    for value in {*graph.graph.inputs, *made}:
        for axis, size in enumerate(value.shape or ()):
            if str(size) in names:
                value.shape = value.shape.copy()  # an inferred one may be frozen
                value.shape[axis] = names[str(size)]


@contextlib.contextmanager
def failing_as(step: str) -> Iterator[None]:
    """Whatever PyTorch or ONNX Runtime raises, as a ConversionError that names the step; what they print is dropped."""
    try:
        with _silenced():
            yield
    except AccelError:
        raise
    except Exception as error:  # exporters raise errors of many kinds, from many libraries
        own = error.__cause__
        while own is not None and not isinstance(own, AccelError):  # raised while a weight was written
            own = own.__cause__
        if own is not None:
            raise type(own)(own.cause, seen=own.seen, fix=own.fix) from error
        lines = str(error).strip().splitlines()
        raise ConversionError(
            f"The {step} failed.",
            seen=f"{type(error).__name__}: {lines[0][:_SEEN_CHARACTERS] if lines else ''}",
            fix=_fix(error),
        ) from error


def _fix(error: Exception) -> str:
    if isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "bad_alloc")):
        return _FIX_MEMORY
    return _FIX_DATA if "DataDependent" in type(error).__name__ else _FIX


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without the exporter's graphs, notes on optional packages and deprecations, on the terminal or in logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
