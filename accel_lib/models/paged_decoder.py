"""The decoder for generating on a GPU: tokens of many requests behind each other, and a cache in pages.

It takes the weights of `accel_lib.models.decoder` and computes the same. Layers that read the same input are one
product, the running sum of the layers stays in float32, and what stands between the products is computed by
`accel_lib.models.paged_kernels` where Triton's language runs, else by `accel_lib.models.paged_operations`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from accel_lib.models.decoder import Decoder

PAGE_TOKENS = 32
SCRATCH_PAGE = 0  # what tokens that fill a batch up write into


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Heads of queries, heads of keys and values, numbers in each, and the factor of their products."""

    heads: int
    kv_heads: int
    head_size: int
    scaling: float


class Tokens(NamedTuple):
    """Where the tokens of a pass stand.

    Parameters
    ----------
    slots, positions
        int64 ``[tokens]``: the row of the page table that each belongs to, and its place in its text.
    places
        int64 ``[tokens]``: where in the cache each is kept.
    tables
        int32 ``[slots, pages]``: the pages of each text, in order.
    block
        Tokens that come in blocks of one text each.
    plan
        What `Operations.plan` gave.
    """

    slots: Tensor
    positions: Tensor
    places: Tensor
    tables: Tensor
    block: int
    plan: int


class Norm(NamedTuple):
    """Weights of an RMSNorm, and what keeps its root from zero."""

    weight: Tensor
    epsilon: float


class Linear(NamedTuple):
    """Weights ``[out, in]`` of a product, and what is added to it."""

    weight: Tensor
    bias: Tensor | None


class Operations(Protocol):
    """What stands between the products of a layer, and behind the last one."""

    def plan(self, shape: Shape, *, blocks: int, block: int, context: int) -> int:
        """The number that a captured pass over that many blocks, which see at most `context` tokens, depends on."""

    def add_norm(self, total: Tensor, addend: Tensor | None, norm: Norm) -> Tensor:
        """Add to `total`, float32 ``[tokens, width]``, in place; its norm in the type of the weights."""

    def product(self, values: Tensor, linear: Linear) -> Tensor:
        """``[tokens, in]`` to ``[tokens, out]``."""

    def rotate_and_store(
        self, joined: Tensor, cache: Tensor, rotation: Tensor, norms: tuple[Norm, Norm] | None, at: Tokens, shape: Shape
    ) -> Tensor:
        """Queries by position, ``[tokens, heads, head size]``; keys, by position, and values go to the cache.

        `joined` is ``[tokens, (heads + 2 kv heads) · head size]``; `cache` ``[2, places, kv heads, head size]``;
        `rotation` cosines and sines, float32 ``[2, positions, head size / 2]``.
        """

    def attend(self, query: Tensor, cache: Tensor, at: Tokens, shape: Shape) -> Tensor:
        """Each token over its text up to itself, ``[tokens, heads · head size]``."""

    def gated(self, joined: Tensor, activation: str) -> Tensor:
        """``activation(gate) · up`` of ``[tokens, 2 · width]``."""

    def add_noise(self, logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` by their temperature, each with Gumbel noise of its row's key and its place.

        Rows of temperature 0 stay as they are.
        """


class _Layer(NamedTuple):
    before_attention: Norm
    projections: Linear
    head_norms: tuple[Norm, Norm] | None
    output: Linear
    before_mlp: Norm
    gate_up: Linear
    down: Linear


class PagedDecoder:
    """A decoder on a device, with its cache.

    Parameters
    ----------
    decoder
        Whose weights are copied.
    pages
        Of 32 tokens each, in the cache; the first is the scratch page.
    context_tokens
        Most tokens of a text.
    dtype
        Of weights and cache.
    operations
        What computes between the products.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        pages: int,
        context_tokens: int,
        device: str,
        dtype: torch.dtype,
        operations: Operations,
    ) -> None:
        self._to: dict[str, Any] = {"device": device, "dtype": dtype}
        theirs: list[Any] = list(decoder.layers)
        first = theirs[0].attention
        heads = first.query.out_features // first.head_size
        self.shape = Shape(
            heads=heads, kv_heads=decoder.key_value_heads, head_size=first.head_size, scaling=first.scaling
        )
        self.operations = operations
        self.embedding = decoder.embedding.to(**self._to)
        tied = decoder.head.weight is decoder.embedding
        self.head = Linear(self.embedding, None) if tied else self._joined(decoder.head)
        self.embedding_scale = decoder.embedding_scale
        self.activation = theirs[0].activation
        self.layers = [self._layer(layer) for layer in theirs]
        self.norm = self._norm(decoder.norm)
        angles = torch.arange(context_tokens, device=decoder.frequencies.device).float()[:, None] * decoder.frequencies
        self.rotation = (torch.stack([angles.cos(), angles.sin()]) * decoder.rope_scale).to(device)
        places = pages * PAGE_TOKENS
        self.caches = torch.zeros(
            len(self.layers), 2, places, self.shape.kv_heads, self.shape.head_size, **self._to
        )  # zeros, as what a text has not written is multiplied by 0, and must be a number

    def _layer(self, layer: Any) -> _Layer:
        attention = layer.attention
        norms = (attention.query_norm, attention.key_norm)
        return _Layer(
            before_attention=self._norm(layer.before_attention),
            projections=self._joined(attention.query, attention.key, attention.value),
            head_norms=(self._norm(norms[0]), self._norm(norms[1])) if norms[0] is not None else None,
            output=self._joined(attention.output),
            before_mlp=self._norm(layer.before_mlp),
            gate_up=self._joined(layer.gate, layer.up),
            down=self._joined(layer.down),
        )

    def _norm(self, norm: Any) -> Norm:
        return Norm(norm.weight.to(**self._to), norm.epsilon)

    def _joined(self, *layers: Any) -> Linear:
        weight = torch.cat([layer.weight for layer in layers]).to(**self._to)
        if layers[0].bias is None:
            return Linear(weight, None)
        return Linear(weight, torch.cat([layer.bias for layer in layers]).to(**self._to))

    def forward(
        self, ids: Tensor, slots: Tensor, positions: Tensor, tables: Tensor, *, total: Tensor, block: int, plan: int
    ) -> None:
        """One pass over new tokens, whose keys and values go to the cache.

        Parameters
        ----------
        ids, slots, positions, tables, block, plan
            int64 ``[tokens]``, and as `Tokens` says.
        total
            float32 ``[tokens, width]``; filled with what the last layer leaves, for `logits`.
        """
        pages = tables[slots, positions // PAGE_TOKENS]
        places = pages.long() * PAGE_TOKENS + positions % PAGE_TOKENS
        at = Tokens(slots, positions, places, tables, block, plan)
        total.copy_(functional.embedding(ids, self.embedding))
        if self.embedding_scale != 1:
            total *= self.embedding_scale
        compute = self.operations
        addend: Tensor | None = None
        for layer, cache in zip(self.layers, self.caches, strict=True):
            normed = compute.add_norm(total, addend, layer.before_attention)
            query = compute.rotate_and_store(
                compute.product(normed, layer.projections), cache, self.rotation, layer.head_norms, at, self.shape
            )
            attended = compute.product(compute.attend(query, cache, at, self.shape), layer.output)
            normed = compute.add_norm(total, attended, layer.before_mlp)
            gated = compute.gated(compute.product(normed, layer.gate_up), self.activation)
            addend = compute.product(gated, layer.down)
        if addend is not None:
            total += addend

    def logits(self, total: Tensor) -> Tensor:
        """What `forward` left for some tokens, ``[tokens, width]``, to ``[tokens, vocabulary]``."""
        return functional.linear(self.operations.add_norm(total, None, self.norm), *self.head)


def cache_bytes_per_token(decoder: Decoder, dtype: torch.dtype) -> int:
    """Keys and values of all layers."""
    return 2 * len(decoder.layers) * decoder.key_value_heads * decoder.head_size * dtype.itemsize
