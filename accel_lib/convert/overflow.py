"""Whether a model's numbers fit into FP16: its largest activations, found in FP32 before anything is converted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_lib.errors import ConversionError
from accel_lib.models.tokenizer import pad
from accel_lib.ragged import by_name

if TYPE_CHECKING:
    from accel_lib.models import Model

FP16_MAX = 65_504.0
_NEAR = 0.25  # of the range: other texts than these may reach further
_TEXTS = 8


def check_fp16_range(model: Model, texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """Run some texts in FP32 and look at what goes into and comes out of every layer of the transformer.

    Parameters
    ----------
    model
        What would be converted.
    texts
        None takes the shortest and the longest of those that ship.

    Returns
    -------
    tuple of str
        A note for the manifest where less than four times the largest number is left; else nothing.

    Raises
    ------
    ConversionError
        A number is beyond the end of FP16, and would become infinity: with the layer and how large it was.
    """
    from accel_lib.texts import load_texts

    chosen = list(texts or sorted(load_texts("mixed", limit=64), key=len)[:: 64 // _TEXTS])
    where, largest = _largest(model, chosen)
    if largest > FP16_MAX:
        raise ConversionError(
            "This model's numbers do not fit into FP16.",
            seen=f"{largest:,.0f} in {where}; FP16 ends at {FP16_MAX:,.0f}",
            fix='accel.to_onnx(model, precision="fp32"), or precision="int8" for a CPU',
        )
    if largest > _NEAR * FP16_MAX:
        return (f"FP16 is nearly used up: {where} reaches {largest:,.0f} of {FP16_MAX:,.0f}",)
    return ()


def _largest(model: Model, texts: Sequence[str]) -> tuple[str, float]:
    """Name of the layer with the largest finite number going in or out, and that number."""
    import torch

    seen: dict[str, float] = {}

    def watching(name: str) -> Any:
        def look(_layer: Any, inputs: Any, output: Any) -> None:
            for tensor in (*inputs, output):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    seen[name] = max(seen.get(name, 0.0), float(tensor.abs().nan_to_num(posinf=0.0).max()))

        return look

    leaves = [(name, layer) for name, layer in model.module.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(watching(name)) for name, layer in leaves if "transformer" in name]
    try:
        rows = pad(model.tokenizer(list(texts)), model.tokenizer.pad_id)
        with torch.inference_mode():
            output = model.module(*map(torch.from_numpy, by_name(model.inputs, rows).values()))
    finally:
        for hook in hooks:
            hook.remove()
    if not np.isfinite(output.numpy()).all():
        return "the output", float("inf")
    return max(seen.items(), key=lambda item: item[1], default=("nothing", 0.0))
