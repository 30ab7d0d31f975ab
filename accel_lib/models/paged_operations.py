"""What stands between the products of `accel_lib.models.paged_decoder`, in plain PyTorch: for CPUs and older GPUs.

Attention gathers each text's pages up to a bound that the host knows; see `accel_lib.models.paged_kernels` for kernels
that read each text's own length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from accel_lib.models.decoder import repeated, rotated
from accel_lib.models.paged_decoder import PAGE_TOKENS, Linear, Norm, Shape, Tokens

LEAST_TEMPERATURE = 1e-9
# Of SplitMix64, its unsigned constants as signed ones: https://prng.di.unimi.it/splitmix64.c
STEP = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_LAST_SHIFT = 31
_BITS = 40  # of a share: the smallest ones decide, and must differ

_GELU = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}


def plan(shape: Shape, *, blocks: int, block: int, context: int) -> int:  # noqa: ARG001
    """As `Operations.plan`: the tokens that are gathered for each text."""
    return context


def add_norm(total: Tensor, addend: Tensor | None, norm: Norm) -> Tensor:
    """As `Operations.add_norm`."""
    if addend is not None:
        total += addend
    return _normed(total, norm)


def _normed(values: Tensor, norm: Norm) -> Tensor:
    wide = values.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon)
    return (norm.weight * (wide * scale)).to(norm.weight.dtype)


def product(values: Tensor, linear: Linear) -> Tensor:
    """As `Operations.product`."""
    return functional.linear(values, linear.weight, linear.bias)


def rotate_and_store(
    joined: Tensor, cache: Tensor, rotation: Tensor, norms: tuple[Norm, Norm] | None, at: Tokens, shape: Shape
) -> Tensor:
    """As `Operations.rotate_and_store`."""
    heads = joined.view(joined.shape[0], -1, shape.head_size)
    query, key, value = torch.tensor_split(heads, [shape.heads, shape.heads + shape.kv_heads], dim=1)
    if norms is not None:
        query, key = _normed(query, norms[0]), _normed(key, norms[1])
    angles = rotation[:, at.positions, None]
    cosine, sine = torch.cat([angles, angles], dim=-1).to(joined.dtype)
    cache[0].index_copy_(0, at.places, rotated(key, (cosine, sine)))
    cache[1].index_copy_(0, at.places, value)
    return rotated(query, (cosine, sine))


def attend(query: Tensor, cache: Tensor, at: Tokens, shape: Shape) -> Tensor:
    """As `Operations.attend`."""
    blocks, context = at.slots.shape[0] // at.block, at.plan
    seen = torch.arange(context, device=query.device)
    pages = at.tables[at.slots[:: at.block]][:, seen // PAGE_TOKENS]
    places = pages.long() * PAGE_TOKENS + seen % PAGE_TOKENS
    allowed = seen <= at.positions.view(blocks, 1, at.block, 1)
    written = allowed.any(2)[:, 0, :, None, None]
    found = cache[:, places].masked_fill(~written, 0)  # what another text left there may be no number
    key, value = (repeated(part.transpose(1, 2), shape.heads // shape.kv_heads) for part in found)
    rows = query.reshape(blocks, at.block, shape.heads, shape.head_size).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(rows, key, value, attn_mask=allowed, scale=shape.scaling)
    return mixed.transpose(1, 2).reshape(-1, shape.heads * shape.head_size)


def gated(joined: Tensor, activation: str) -> Tensor:
    """As `Operations.gated`."""
    gate, up = joined.chunk(2, dim=-1)
    return (
        functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate=_GELU[activation])
    ) * up


def add_noise(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """As `Operations.add_noise`."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    shares = (_shifted(mixed(keys[:, None] + (ids + 1) * STEP), 64 - _BITS) + 0.5).float() / 2**_BITS
    warm, heat = logits.float(), temperature[:, None]
    noisy = warm / heat.clamp(min=LEAST_TEMPERATURE) - (-torch.log1p(-shares)).log()
    return torch.where(heat > 0, noisy, warm)


def mixed(values: Tensor) -> Tensor:
    """Numbers that look like chance, int64, from others."""
    for shift, factor in _MIX:
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, _LAST_SHIFT)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left, as PyTorch has no unsigned shift."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
