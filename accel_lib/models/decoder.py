"""A decoder of Llama's family in plain PyTorch, with its cache as inputs and outputs: what conversions trace.

It takes the weights and rotary frequencies of transformers' own model, and computes the same: RMSNorm, rotary
embedding, grouped key-value heads, a gated feed-forward. What a family adds is a field of
`accel_lib.models.families.Family`, or a layer that is there or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from accel_lib.models.families import (
    FAMILIES,
    FULL,
    WINDOW,
    Family,
    activation,
    check_family,
    kinds,
    score_cap,
    windows,
)

_MASKED = -1e9  # finite: a row that sees nothing, as of padding, stays finite too
Rotation = tuple[torch.Tensor, torch.Tensor]
_ACTIVATIONS: dict[str, Any] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
}  # the others are the tanh form of GELU


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, in float32 whatever the weights are."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last dimension normalized and scaled."""
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (wide * scale).to(hidden.dtype)


class Attention(nn.Module):
    """Attention with grouped heads over what the cache holds and the new tokens."""

    def __init__(self, theirs: Any, family: Family) -> None:
        super().__init__()
        config = theirs.config
        self.head_size = int(theirs.head_dim)
        if hasattr(theirs, "qkv_proj"):
            sizes = [
                count * self.head_size for count in (config.num_attention_heads, *[config.num_key_value_heads] * 2)
            ]
            self.query, self.key, self.value = _parts(theirs.qkv_proj, sizes)
        else:
            self.query, self.key, self.value = theirs.q_proj, theirs.k_proj, theirs.v_proj
        self.output = theirs.o_proj
        self.scaling = float(theirs.scaling)
        self.cap = score_cap(config)
        self.query_norm, self.key_norm = (_norm(getattr(theirs, name, None), family) for name in ("q_norm", "k_norm"))

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation,
        mask: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """``[batch, new, width]`` to the same, with keys and values ``[batch, heads, past + new, head size]``."""
        query, key, value = (
            layer(hidden).unflatten(-1, (-1, self.head_size)) for layer in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (rotated(each.transpose(1, 2), rotation) for each in (query, key))
        key = torch.cat([past[0], key], dim=2)
        value = torch.cat([past[1], value.transpose(1, 2)], dim=2)
        groups = query.shape[1] // key.shape[1]
        found = self._attend(query, repeated(key, groups), repeated(value, groups), mask)
        return self.output(found.transpose(1, 2).flatten(2)), (key, value)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.cap is None:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling)
        scores = capped(query @ key.transpose(2, 3) * self.scaling, self.cap) + mask
        return scores.float().softmax(-1).to(query.dtype) @ value


class Layer(nn.Module):
    """Attention and a gated feed-forward, each behind a norm and beside a sum; Gemma 2 and 3 have norms after, too."""

    def __init__(self, theirs: Any, family: Family, activation: str) -> None:
        super().__init__()
        self.attention = Attention(theirs.self_attn, family)
        both_sides = hasattr(theirs, "pre_feedforward_layernorm")
        before_mlp = theirs.pre_feedforward_layernorm if both_sides else theirs.post_attention_layernorm
        self.before_attention, self.before_mlp = _norm(theirs.input_layernorm, family), _norm(before_mlp, family)
        self.after_attention = _norm(theirs.post_attention_layernorm, family) if both_sides else None
        self.after_mlp = _norm(theirs.post_feedforward_layernorm, family) if both_sides else None
        mlp = theirs.mlp
        if hasattr(mlp, "gate_up_proj"):
            self.gate, self.up = _parts(mlp.gate_up_proj, [mlp.gate_up_proj.out_features // 2] * 2)
        else:
            self.gate, self.up = mlp.gate_proj, mlp.up_proj
        self.down = mlp.down_proj
        self.activation = activation

    def forward(
        self, hidden: torch.Tensor, rotation: Rotation, mask: torch.Tensor, past: Any
    ) -> tuple[torch.Tensor, Any]:
        """``[batch, new, width]`` to the same, and the cache with the new tokens."""
        found, present = self.attention(self.before_attention(hidden), rotation, mask, past)
        hidden = hidden + (self.after_attention(found) if self.after_attention else found)
        normed = self.before_mlp(hidden)
        found = self.down(self._activate(self.gate(normed)) * self.up(normed))
        return hidden + (self.after_mlp(found) if self.after_mlp else found), present

    def _activate(self, values: torch.Tensor) -> torch.Tensor:
        known = _ACTIVATIONS.get(self.activation)
        return known(values) if known else functional.gelu(values, approximate="tanh")


class Decoder(nn.Module):
    """The whole network: token ids and the cache to logits and the cache.

    Parameters
    ----------
    theirs
        transformers' causal language model; its weights are shared.
    folder
        Where it came from, for messages.
    context_tokens
        Longest sequence that it will see, if shorter than what the model takes.

    Raises
    ------
    ModelError
        A family, or a setting of it, that is computed otherwise.
    """

    def __init__(self, theirs: Any, folder: Path, *, context_tokens: int | None = None) -> None:
        super().__init__()
        config = theirs.config
        check_family(config, folder, context_tokens=context_tokens, plain=False)
        inner = theirs.model
        family = FAMILIES[config.model_type]
        self.embedding, self.head = inner.embed_tokens.weight, theirs.lm_head  # some tables scale by themselves
        self.embedding_scale = config.hidden_size**0.5 if family.scaled_embedding else 1.0
        self.layers = nn.ModuleList(Layer(layer, family, activation(config)) for layer in inner.layers)
        self.windows = windows(config, context_tokens)
        self.norm = _norm(inner.norm, family)
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.frequencies, self.rope_scale = _rope(inner.rotary_emb, FULL)
        self.window_frequencies, self.window_rope_scale = _rope(inner.rotary_emb, WINDOW)
        apart = hasattr(inner.rotary_emb, f"{WINDOW}_inv_freq")
        self.own_rope = [apart and kind == WINDOW for kind in kinds(config)]
        self.key_value_heads = int(config.num_key_value_heads)
        self.head_size = int(inner.layers[0].self_attn.head_dim)

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """What it computes beside Llama's way, by name, for an engine that computes the layers by itself."""
        layers: list[Any] = list(self.layers)
        found = {
            "norms after attention and feed-forward": any(layer.after_mlp is not None for layer in layers),
            "capped scores": any(layer.attention.cap for layer in layers),
            "capped logits": bool(self.cap),
            "windows": any(self.windows),
            "two rotary embeddings": any(self.own_rope),
            "heads that are turned in part": 2 * len(self.frequencies) != self.head_size,
        }
        return tuple(name for name, there in found.items() if there)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """One step of any number of new tokens.

        Parameters
        ----------
        input_ids, position_ids
            int64 ``[batch, new]``.
        attention_mask
            int64 ``[batch, past + new]``; 0 on padding.
        past
            Keys and values of each layer, ``[batch, key-value heads, past, head size]``.

        Returns
        -------
        logits
            ``[batch, new, vocabulary]``.
        present
            `past` with the new tokens.
        """
        hidden = functional.embedding(input_ids, self.embedding)
        if self.embedding_scale != 1:  # rounded as the weights are, as transformers does
            hidden = hidden * torch.tensor(self.embedding_scale, dtype=hidden.dtype)
        rotations = self._rotations(position_ids, hidden.dtype)
        new = input_ids.shape[1]
        masks = {size: causal_mask(attention_mask, new, hidden.dtype, window=size) for size in {*self.windows}}
        present = []
        for layer, layer_past, own, size in zip(self.layers, past, self.own_rope, self.windows, strict=True):
            hidden, layer_present = layer(hidden, rotations[own], masks[size], layer_past)
            present.append(layer_present)
        logits = self.head(self.norm(hidden))
        return logits if self.cap is None else capped(logits, self.cap), present

    def _rotations(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[Rotation, Rotation]:
        """Of layers that see all, and of those that see a window; most families rotate both alike."""
        full = _rotation(position_ids, self.frequencies, self.rope_scale, dtype)
        if not any(self.own_rope):
            return full, full
        return full, _rotation(position_ids, self.window_frequencies, self.window_rope_scale, dtype)


class FlatDecoder(nn.Module):
    """A decoder whose cache is a flat list of tensors, in the order of `cache_names`, as graphs have it."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *caches: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits, and then the cache with the new tokens."""
        past = list(zip(caches[::2], caches[1::2], strict=True))
        logits, present = self.decoder(input_ids, attention_mask, position_ids, past)
        return logits, *(cache for pair in present for cache in pair)


def cache_names(layers: int, side: str) -> list[str]:
    """Names of the cache's tensors in a graph; `side` is ``"past_key_values"`` or ``"present"``."""
    return [f"{side}.{index}.{kind}" for index in range(layers) for kind in ("key", "value")]


def _rope(rotary: Any, kind: str) -> tuple[nn.Buffer, float]:
    """Frequencies as they were at first (a long sequence changes some), and the scale of both cosine and sine."""
    names = (f"{kind}_", "", f"{FULL}_", f"{WINDOW}_")
    prefix = next(name for name in names if hasattr(rotary, f"{name}original_inv_freq"))
    found = getattr(rotary, f"{prefix}original_inv_freq")
    return nn.Buffer(found.float().clone()), float(getattr(rotary, f"{prefix}attention_scaling"))


def _rotation(position_ids: torch.Tensor, frequencies: torch.Tensor, scale: float, dtype: torch.dtype) -> Rotation:
    angles = position_ids.unsqueeze(-1).float() * frequencies
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def _norm(theirs: Any, family: Family) -> Any:
    if theirs is None:
        return None
    epsilon = getattr(theirs, "variance_epsilon", None) or theirs.eps
    return RMSNorm(theirs.weight + family.norm_offset, float(epsilon))


def _parts(fused: nn.Linear, sizes: Sequence[int]) -> list[nn.Linear]:
    """A projection that was stored as one, as several; the weights are shared."""
    weights = torch.split(fused.weight.detach(), list(sizes))
    made = [nn.Linear(fused.in_features, size, bias=False, device="meta") for size in sizes]
    for layer, weight in zip(made, weights, strict=True):
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return made


def capped(values: torch.Tensor, cap: float) -> torch.Tensor:
    """Values bent so that none is beyond `cap`."""
    return cap * torch.tanh(values / cap)


def rotated(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Each head turned by its token's position: the first half of what is turned with the second."""
    cosine, sine = rotation
    turned, rest = heads[..., : cosine.shape[-1]], heads[..., cosine.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def repeated(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """Each key-value head as often as query heads share it."""
    if groups == 1:
        return heads
    batch, count, tokens, size = heads.shape
    return heads[:, :, None].expand(batch, count, groups, tokens, size).reshape(batch, count * groups, tokens, size)


def causal_mask(
    attention_mask: torch.Tensor, new: int, dtype: torch.dtype, *, window: int | None = None
) -> torch.Tensor:
    """What is added to attention's scores, ``[batch, 1, new, past + new]``: 0, or a large negative number."""
    total = attention_mask.shape[1]
    places = torch.arange(total, device=attention_mask.device)
    own = places[total - new :, None]
    allowed = places[None, :] <= own
    if window:
        allowed = allowed & (places[None, :] > own - window)
    seen = allowed[None, None] & attention_mask[:, None, None, :].bool()
    return torch.zeros((), dtype=dtype).masked_fill(~seen, _MASKED)
