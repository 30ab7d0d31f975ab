"""Without padding: the tokens of a batch stand in one row behind each other, and only attention sees separate texts.

Linear layers, norms and activations treat every token alone, so for them a batch is as good as one long text. Attention
must not look across texts: around it alone the tokens are laid out as ``[batch, sequence]`` again. The technique is
known as unpadding or packing (NVIDIA's Effective Transformer, https://github.com/bytedance/effective_transformer;
"padding-free" in transformers).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from accel_lib.errors import ModelError, require
from accel_lib.models.network import Encoder, Head, pool

_ATTENTION = "accel_packed"
_MASKED = -1e4  # added to the logits of padding; its exponential is 0 in FP32 and in FP16
_CLOSE = 1e-4
_PROBE_LENGTHS = (3, 17, 1, 8)


class Attends(Protocol):
    """Where the texts of a packed batch are, and attention inside each of them."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """``[1, heads, tokens, width]`` each, to ``[1, tokens, heads, width]``."""
        ...


class Packing(NamedTuple):
    """Where the tokens of a packed batch stand, head by head, so that they are laid out and turned in one step.

    Parameters
    ----------
    spread
        int64 ``[batch * heads * sequence]``: the row of ``[tokens * heads, width]`` that each padded place takes;
        places of padding take any.
    gather
        int64 ``[tokens * heads]``: the row of ``[batch * heads * sequence, width]`` of each head of each packed token.
    bias
        ``[batch, 1, 1, sequence]``: added to attention's logits, 0 for tokens and far below for padding.
    """

    spread: Tensor
    gather: Tensor
    bias: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor, heads: int) -> Packing:
        """The packing of int64 ``[batch, sequence]``, padding on the right."""
        batch, sequence = attention_mask.shape
        places, each = attention_mask.nonzero(), torch.arange(heads, device=attention_mask.device)
        tokens = (attention_mask.flatten().cumsum(0) - 1).clamp(min=0).view(batch, 1, sequence)
        spread = (tokens * heads + each[:, None]).flatten()
        gather = ((places[:, :1] * heads + each) * sequence + places[:, 1:]).flatten()
        return cls(spread, gather, (1 - attention_mask[:, None, None, :].float()) * _MASKED)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention inside each text: ``[1, heads, tokens, width]`` each, to ``[1, tokens, heads, width]``."""
        heads, width = query.shape[1], query.shape[3]
        batch, sequence = self.bias.shape[0], self.bias.shape[3]

        def lay_out(rows: Tensor) -> Tensor:
            flat = rows.transpose(1, 2).reshape(-1, width)
            return flat.index_select(0, self.spread).view(batch, heads, sequence, width)

        logits = lay_out(query) @ lay_out(key).transpose(2, 3) * scaling + self.bias.to(query.dtype)
        weighted = torch.softmax(logits, dim=-1) @ lay_out(value)
        return weighted.reshape(-1, width).index_select(0, self.gather).view(1, -1, heads, width)


class PackedEncoder(Encoder):
    """An `Encoder` that computes on real tokens only, with the same inputs, weights and numbers.

    Parameters
    ----------
    encoder
        What to take over; its transformer must be set to packed attention already (see `pack`).
    first_position
        Position id of a text's first token.
    """

    def __init__(self, encoder: Encoder, *, first_position: int) -> None:
        super().__init__(
            encoder.transformer, pooling=encoder.pooling, steps=list(encoder.steps), segments=encoder.segments
        )
        config: Any = encoder.transformer.config
        self.first_position, self.heads = first_position, int(config.num_attention_heads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 ``[batch, sequence]`` twice, padding on the right, to float32 ``[batch, dimension]``."""
        batch, sequence = input_ids.shape
        places = attention_mask.nonzero()
        gather = places[:, 0] * sequence + places[:, 1]
        spread = (attention_mask.flatten().cumsum(0) - 1).clamp(min=0)
        ids = input_ids.flatten().index_select(0, gather)[None]
        extra = {"token_type_ids": torch.zeros_like(ids)} if self.segments else {}
        tokens = self.transformer(
            input_ids=ids,
            position_ids=places[:, 1][None] + self.first_position,
            packing=Packing.of(attention_mask, self.heads),
            **extra,
        ).last_hidden_state.float()
        padded = tokens.flatten(0, 1).index_select(0, spread).view(batch, sequence, -1)
        pooled = [pool(padded, attention_mask, mode) for mode in self.pooling]
        vectors: Tensor = self.steps(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


def pack(module: nn.Module) -> nn.Module:
    """A copy of a network that computes without padding, tried against the original.

    Parameters
    ----------
    module
        An `Encoder`, or a `Head` on one, whose transformer uses transformers' attention interface and takes position
        ids (BERT's and RoBERTa's kind).

    Raises
    ------
    ModelError
        The network is of another kind, or gives other numbers when packed.
    """
    if isinstance(module, Head):
        return Head(pack(module.encoder), module.linear).eval()
    encoder = copy.deepcopy(packable(module))
    use_packed_attention(encoder.transformer)
    packed = PackedEncoder(encoder, first_position=first_position(encoder.transformer)).eval()
    check_same(module, packed)
    return packed


def packable(module: nn.Module) -> Encoder:
    """The module, if it is an encoder that takes position ids and has exchangeable attention; else a `ModelError`."""
    if isinstance(module, Encoder):
        config = getattr(module.transformer, "config", None)
        takes = inspect.signature(module.transformer.forward).parameters
        known = hasattr(config, "_attn_implementation") and hasattr(config, "num_attention_heads")
        if known and "position_ids" in takes:
            return module
    raise _refused("it is no encoder that takes position ids and has exchangeable attention")


def use_packed_attention(transformer: nn.Module) -> None:
    """Let a transformer attend by the ``packing`` that its forward pass is given."""
    interface = require("transformers", extra="models").AttentionInterface
    interface.register(_ATTENTION, packed_attention)
    config: Any = transformer.config
    config._attn_implementation = _ATTENTION


def first_position(transformer: nn.Module) -> int:
    """Position id of a text's first token."""
    for name, part in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.padding_idx + 1  # RoBERTa's kind
    return 0


def check_same(module: nn.Module, other: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Run a small batch of mixed lengths through both; raises `ModelError` where their numbers differ."""
    vocabulary = next(part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding))
    mask = (torch.arange(max(_PROBE_LENGTHS))[None] < torch.tensor(_PROBE_LENGTHS)[:, None]).long()
    ids = torch.randint(3, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    try:
        with torch.inference_mode():
            moved = float((module(ids, mask) - other(ids, mask)).abs().max())
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:  # a network of an unknown kind
        raise _refused(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}") from error
    if not moved < _CLOSE:
        raise _refused(f"numbers move by {moved:.2g}, allowed {_CLOSE:g}")


def packed_attention(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    *,
    packing: Attends,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text of a packed batch: queries, keys and values are ``[1, heads, tokens, width]``.

    Registered as one of transformers' attention functions, hence its arguments and its answer, ``[1, tokens, heads,
    width]`` and no weights.
    """
    return packing.attend(query, key, value, scaling), None


def _refused(seen: str) -> ModelError:
    return ModelError("This network cannot be packed.", seen=seen, fix="leave out packed=True")
