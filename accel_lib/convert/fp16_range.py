"""Whether a model's numbers fit into FP16: the largest number of every FP16 tensor, on texts from short to long."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.convert.declared import as_declared
from accel_lib.convert.fp16 import FP16_MAX
from accel_lib.engines.onnxruntime import open_session
from accel_lib.errors import ConversionError
from accel_lib.models.tokenizer import pad
from accel_lib.ragged import by_name

if TYPE_CHECKING:
    import torch

    from accel_lib.models import Model

_MARGIN = 1.25  # other texts than these may reach that much further
_NEAR = 0.25  # of the range, from where on a manifest says so
_TEXTS = 8


def check_fp16_graph(artifact: Artifact, model: Model, texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """Run some texts through an FP16 graph, rounded as its types say, and look at every number that is rounded.

    Parameters
    ----------
    artifact
        The FP16 graph.
    model
        What it was made from: its tokenizer is used.
    texts
        None takes some that ship, from the shortest to the longest.

    Returns
    -------
    tuple of str
        A note for the manifest where less than four times the largest number is left; else nothing.

    Raises
    ------
    ConversionError
        A number is beyond the end of FP16 or too close to it: with the node that makes it and how large it was.
    """
    return check_fp16_feeds(artifact, _batch(model, texts))


def check_fp16_feeds(artifact: Artifact, feeds: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """As `check_fp16_graph`, for what the graph takes, by name."""
    graph, watched = as_declared(artifact.path, watch=True)
    session, _ = open_session(artifact, device="cpu", threads=None, allow_spinning=True, fusions=False, graph=graph)
    found = session.run(list(watched), dict(feeds))
    return _verdict({where: float(number) for where, number in zip(watched.values(), found, strict=True)})


def check_fp16_range(model: Model, texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """As `check_fp16_graph`, for PyTorch: what goes into and comes out of every layer, and whether FP16 stays finite.

    Returns
    -------
    tuple of str
        A note for the manifest where less than four times the largest number is left; else nothing.

    Raises
    ------
    ConversionError
        A number is beyond the end of FP16 or too close to it: with the layer and how large it was.
    """
    from accel_lib.engines.torch import halve

    batch = _batch(model, texts)
    notes = _verdict(_largest(model.module, batch))
    half = copy.deepcopy(model.module)
    halve(half)
    _verdict(_largest(half, batch))
    return notes


def _batch(model: Model, texts: Sequence[str] | None) -> dict[str, NDArray[np.int64]]:
    from accel_lib.texts import load_texts

    chosen = list(texts or sorted(load_texts("mixed", limit=64), key=len)[:: 64 // _TEXTS])
    return by_name(model.inputs, pad(model.tokenizer(chosen), model.tokenizer.pad_id))


def _verdict(largest: Mapping[str, float]) -> tuple[str, ...]:
    """A note, or nothing, from the largest number by where it was seen, in the order of computation."""
    beyond = [(where, number) for where, number in largest.items() if not number * _MARGIN <= FP16_MAX]
    if beyond:
        where, number = beyond[0]
        raise ConversionError(
            "This model's numbers do not fit into FP16.",
            seen=f"{number:,.0f} in {where}; FP16 ends at {FP16_MAX:,.0f}",
            fix='accel.to_onnx(model, precision="fp32"), or precision="int8" for a CPU',
        )
    where, number = max(largest.items(), key=lambda item: item[1], default=("nothing", 0.0))
    if number > _NEAR * FP16_MAX:
        return (f"FP16 is nearly used up: {where} reaches {number:,.0f} of {FP16_MAX:,.0f}",)
    return ()


def _largest(module: torch.nn.Module, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, float]:
    """The largest number going into or coming out of each layer of the transformer, and of the output."""
    import torch

    seen: dict[str, float] = {}

    def watching(name: str) -> Any:
        def look(_layer: Any, inputs: Any, output: Any) -> None:
            for tensor in (*inputs, output):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    number = float(tensor.abs().max())
                    seen[name] = max(seen.get(name, 0.0), number if math.isfinite(number) else math.inf)

        return look

    leaves = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(watching(name)) for name, layer in leaves if "transformer" in name]
    try:
        with torch.inference_mode():
            output = module(*map(torch.from_numpy, batch.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return seen | {"the output": 0.0 if bool(output.isfinite().all()) else math.inf}
