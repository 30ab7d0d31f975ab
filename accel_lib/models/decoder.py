"""A decoder of Llama's family in plain PyTorch, with its cache as inputs and outputs: what conversions trace.

It takes the weights and rotary frequencies of transformers' own model, and computes the same: RMSNorm, rotary
embedding, grouped key-value heads, a gated feed-forward. What a family adds is a field of `Family`; a family that is
not listed is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from accel_lib.models.files import refused

_MASKED = -1e9  # finite: a row that sees nothing, as of padding, stays finite too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How a family differs from Llama.

    Parameters
    ----------
    norm_offset
        Added to the weights of norms: Gemma stores them around 0.
    scaled_embedding
        Whether embeddings are multiplied by the root of their width.
    """

    norm_offset: float = 0.0
    scaled_embedding: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(norm_offset=1.0, scaled_embedding=True),
}
_ACTIVATIONS = {"silu": functional.silu, "gelu": functional.gelu, "gelu_pytorch_tanh": None, "gelu_new": None}


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
        self.query, self.key, self.value, self.output = theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj
        self.head_size = int(theirs.head_dim)
        self.scaling = float(theirs.scaling)
        self.query_norm, self.key_norm = (
            _norm(norm, family) if norm is not None else None
            for norm in (getattr(theirs, name, None) for name in ("q_norm", "k_norm"))
        )

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
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
        found = functional.scaled_dot_product_attention(
            query, repeated(key, groups), repeated(value, groups), attn_mask=mask, scale=self.scaling
        )
        return self.output(found.transpose(1, 2).flatten(2)), (key, value)


class Layer(nn.Module):
    """Attention and a gated feed-forward, each behind a norm and beside a sum."""

    def __init__(self, theirs: Any, family: Family, activation: str) -> None:
        super().__init__()
        self.attention = Attention(theirs.self_attn, family)
        self.before_attention, self.before_mlp = (
            _norm(norm, family) for norm in (theirs.input_layernorm, theirs.post_attention_layernorm)
        )
        self.gate, self.up, self.down = theirs.mlp.gate_proj, theirs.mlp.up_proj, theirs.mlp.down_proj
        self.activation = activation

    def forward(self, hidden: torch.Tensor, rotation: Any, mask: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        """``[batch, new, width]`` to the same, and the cache with the new tokens."""
        attended, present = self.attention(self.before_attention(hidden), rotation, mask, past)
        hidden = hidden + attended
        normed = self.before_mlp(hidden)
        return hidden + self.down(self._activate(self.gate(normed)) * self.up(normed)), present

    def _activate(self, values: torch.Tensor) -> torch.Tensor:
        known = _ACTIVATIONS[self.activation]
        return known(values) if known else functional.gelu(values, approximate="tanh")


class Decoder(nn.Module):
    """The whole network: token ids and the cache to logits and the cache.

    Parameters
    ----------
    theirs
        transformers' causal language model; its weights are shared.
    folder
        Where it came from, for messages.

    Raises
    ------
    ModelError
        A family, or a setting of it, that is computed otherwise.
    """

    def __init__(self, theirs: Any, folder: Path) -> None:
        super().__init__()
        config = theirs.config
        check_family(config, folder)
        family = FAMILIES[config.model_type]
        inner = theirs.model
        self.embedding, self.head = inner.embed_tokens.weight, theirs.lm_head  # some tables scale by themselves
        self.embedding_scale = config.hidden_size**0.5 if family.scaled_embedding else 1.0
        self.layers = nn.ModuleList(Layer(layer, family, config.hidden_act) for layer in inner.layers)
        self.norm = _norm(inner.norm, family)
        self.frequencies = nn.Buffer(inner.rotary_emb.inv_freq.float().clone())
        self.rope_scale = float(inner.rotary_emb.attention_scaling)
        self.key_value_heads = int(config.num_key_value_heads)
        self.head_size = int(inner.layers[0].self_attn.head_dim)

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
        rotation = self._rotation(position_ids, hidden.dtype)
        mask = causal_mask(attention_mask, input_ids.shape[1], hidden.dtype)
        present = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            hidden, layer_present = layer(hidden, rotation, mask, layer_past)
            present.append(layer_present)
        return self.head(self.norm(hidden)), present

    def _rotation(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids.unsqueeze(-1).float() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        return (angles.cos() * self.rope_scale).to(dtype), (angles.sin() * self.rope_scale).to(dtype)


def check_family(config: Any, folder: Path) -> None:
    """Refuse by name what `Decoder` does not compute."""
    fix = f"families that convert: {', '.join(sorted(FAMILIES))}; or run it as it is: TransformersEngine(model)"
    if config.model_type not in FAMILIES:
        raise refused(folder, f"a network of the family {config.model_type}", fix=fix)
    rope = getattr(config, "rope_parameters", None) or {}
    kind = str(rope.get("rope_type", "default"))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    fraction = rope.get("partial_rotary_factor") or 1.0
    what = {
        f"rotary frequencies that change with the length ({kind})": kind in ("dynamic", "longrope"),
        f"a rotary embedding of {fraction:g} of each head": fraction != 1,
        f"attention to a window of {window} tokens": bool(window) and window < config.max_position_embeddings,
        f"the activation {config.hidden_act}": config.hidden_act not in _ACTIVATIONS,
    }
    for name, found in what.items():
        if found:
            raise refused(folder, name, fix=fix)


def _norm(theirs: Any, family: Family) -> RMSNorm:
    epsilon = getattr(theirs, "variance_epsilon", None) or theirs.eps
    return RMSNorm(theirs.weight + family.norm_offset, float(epsilon))


def rotated(heads: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Each head turned by its token's position: the first half of it with the second."""
    cosine, sine = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


def repeated(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """Each key-value head as often as query heads share it."""
    if groups == 1:
        return heads
    batch, count, tokens, size = heads.shape
    return heads[:, :, None].expand(batch, count, groups, tokens, size).reshape(batch, count * groups, tokens, size)


def causal_mask(attention_mask: torch.Tensor, new: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention's scores, ``[batch, 1, new, past + new]``: 0, or a large negative number."""
    total = attention_mask.shape[1]
    places = torch.arange(total, device=attention_mask.device)
    allowed = places[None, :] <= (places[total - new :])[:, None]
    seen = allowed[None, None] & attention_mask[:, None, None, :].bool()
    return torch.zeros((), dtype=dtype).masked_fill(~seen, _MASKED)
