"""Fewer and larger kernels for layers of BERT's kind: queries, keys and values by one product, GELU inside another."""

from __future__ import annotations

import inspect
from typing import cast

import torch
from torch import Tensor, nn

FUSED = "accel_fused"  # set on attention layers whose queries come with keys and values behind them


def fuse_projections(transformer: nn.Module) -> None:
    """Compute queries, keys and values of each attention layer by one product instead of three, in place.

    For layers that do nothing between these products and the attention function, which takes the three apart:
    `accel_lib.models.packed.packed_attention` does. Others are left as they are.
    """
    for layer in transformer.modules():
        parts = [getattr(layer, name, None) for name in ("query", "key", "value")]
        if not hasattr(layer, "accel_window") or not all(isinstance(part, nn.Linear) for part in parts):
            continue
        linears = cast("list[nn.Linear]", parts)
        width = linears[0].in_features
        square = all((part.in_features, part.out_features) == (width, width) for part in linears)
        if not square or "position_embeddings" in inspect.signature(layer.forward).parameters:
            continue  # rotary positions turn queries and keys, and not values
        fused = nn.Linear(width, 3 * width, bias=linears[0].bias is not None, dtype=linears[0].weight.dtype)
        fused.load_state_dict(
            {name: torch.cat([part.state_dict()[name] for part in linears]) for name in fused.state_dict()}
        )
        layer.query, layer.key, layer.value = fused, nn.Identity(), nn.Identity()
        setattr(layer, FUSED, True)


def fuse_gelu(transformer: nn.Module) -> None:
    """Compute GELU inside the product before it, in place, where a layer has the two as BERT does."""
    from transformers.activations import GELUActivation

    for layer in transformer.modules():
        dense, activation = getattr(layer, "dense", None), getattr(layer, "intermediate_act_fn", None)
        if isinstance(dense, nn.Linear) and dense.bias is not None and isinstance(activation, GELUActivation):
            layer.dense, layer.intermediate_act_fn = LinearGelu(dense), nn.Identity()


class LinearGelu(nn.Module):
    """A linear layer and GELU behind it, in one kernel on a GPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        output: Tensor = linear_gelu(states, self.weight, self.bias)
        return output


@torch.library.custom_op("accel_lib::linear_gelu", mutates_args=())
def linear_gelu(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of ``states @ weight.T + bias``: on a GPU by its tanh form, which cuBLAS computes before it writes.

    The tanh form is at most 0.0005 off, as the rounding of FP16 is at 1.
    """
    if states.is_cuda:
        rows = torch._addmm_activation(bias, states.flatten(0, -2), weight.t(), use_gelu=True)
        return rows.view(*states.shape[:-1], -1)
    return nn.functional.gelu(nn.functional.linear(states, weight, bias))


@linear_gelu.register_fake
def _(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return states.new_empty(*states.shape[:-1], weight.shape[0])
