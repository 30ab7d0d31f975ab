"""Without padding: the tokens of a batch stand in one row behind each other, and only attention sees separate texts.

Linear layers, norms and activations treat every token alone, so for them a batch is as good as one long text. Attention
must not look across texts: around it alone the tokens are laid out as ``[batch, sequence]`` again. The technique is
known as unpadding or packing (NVIDIA's Effective Transformer, https://github.com/bytedance/effective_transformer;
"padding-free" in transformers).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from accel_lib.errors import ModelError, require
from accel_lib.models.network import Encoder, Head, pool

_ATTENTION = "accel_packed"
_MASKED = -1e4  # added to the logits of padding; its exponential is 0 in FP32 and in FP16
_CLOSE = 1e-4
_PROBE_LENGTHS = (3, 17, 1, 8)


class Packing(NamedTuple):
    """Where the tokens of a packed batch stand.

    Parameters
    ----------
    spread
        int64 ``[batch * sequence]``: the packed token that each padded place takes; places of padding take any.
    gather
        int64 ``[tokens]``: the padded place of each packed token.
    bias
        ``[batch, 1, 1, sequence]``: added to attention's logits, 0 for tokens and far below for padding.
    """

    spread: Tensor
    gather: Tensor
    bias: Tensor


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
        self.first_position = first_position

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 ``[batch, sequence]`` twice, padding on the right, to float32 ``[batch, dimension]``."""
        batch, sequence = input_ids.shape
        places = attention_mask.nonzero()
        gather = places[:, 0] * sequence + places[:, 1]
        spread = (attention_mask.flatten().cumsum(0) - 1).clamp(min=0)
        bias = (1 - attention_mask[:, None, None, :].float()) * _MASKED
        ids = input_ids.flatten().index_select(0, gather)[None]
        extra = {"token_type_ids": torch.zeros_like(ids)} if self.segments else {}
        tokens = self.transformer(
            input_ids=ids,
            position_ids=places[:, 1][None] + self.first_position,
            packing=Packing(spread, gather, bias),
            **extra,
        ).last_hidden_state.float()
        padded = tokens.flatten(0, 1).index_select(0, spread).view(batch, sequence, -1)
        pooled = [pool(padded, attention_mask, mode) for mode in self.pooling]
        vectors: Tensor = self.steps(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


def pack(module: nn.Module, *, lengths: Sequence[int] = _PROBE_LENGTHS) -> nn.Module:
    """A copy of a network that computes without padding, tried against the original.

    Parameters
    ----------
    module
        An `Encoder`, or a `Head` on one, whose transformer uses transformers' attention interface and takes position
        ids (BERT's and RoBERTa's kind).
    lengths
        Tokens a text of the batch on which both must agree.

    Raises
    ------
    ModelError
        The network is of another kind, or gives other numbers when packed.
    """
    if isinstance(module, Head):
        return Head(pack(module.encoder, lengths=lengths), module.linear).eval()
    if not isinstance(module, Encoder) or not _packable(module.transformer):
        raise _refused("it is no encoder that takes position ids and has exchangeable attention")
    interface = require("transformers", extra="models").AttentionInterface
    interface.register(_ATTENTION, packed_attention)
    encoder = copy.deepcopy(module)
    config: Any = encoder.transformer.config
    config._attn_implementation = _ATTENTION
    packed = PackedEncoder(encoder, first_position=_first_position(encoder.transformer)).eval()
    try:
        moved = _difference(module, packed, lengths)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:  # a network of an unknown kind
        raise _refused(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}") from error
    if not moved < _CLOSE:
        raise _refused(f"numbers move by {moved:.2g}, allowed {_CLOSE:g}")
    return packed


def packed_attention(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    *,
    packing: Packing,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text of a packed batch: queries, keys and values are ``[1, heads, tokens, width]``.

    Registered as one of transformers' attention functions, hence its arguments and its answer, ``[1, tokens, heads,
    width]`` and no weights.
    """
    heads, width = query.shape[1], query.shape[3]
    batch, sequence = packing.bias.shape[0], packing.bias.shape[3]

    def lay_out(rows: Tensor) -> Tensor:
        flat = rows.transpose(1, 2).reshape(-1, heads * width)
        return flat.index_select(0, packing.spread).view(batch, sequence, heads, width).transpose(1, 2)

    logits = lay_out(query) @ lay_out(key).transpose(2, 3) * scaling + packing.bias.to(query.dtype)
    mixed = torch.softmax(logits, dim=-1) @ lay_out(value)
    rows = mixed.transpose(1, 2).reshape(-1, heads * width).index_select(0, packing.gather)
    return rows.view(1, -1, heads, width), None


def _packable(transformer: nn.Module) -> bool:
    takes = inspect.signature(transformer.forward).parameters
    return hasattr(getattr(transformer, "config", None), "_attn_implementation") and "position_ids" in takes


def _first_position(transformer: nn.Module) -> int:
    for name, part in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.padding_idx + 1  # RoBERTa's kind
    return 0


def _difference(module: nn.Module, packed: nn.Module, lengths: Sequence[int]) -> float:
    vocabulary = next(part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding))
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    ids += 1 - mask  # a pad id that is not 0 would do as well: it is masked
    with torch.inference_mode():
        return float((module(ids, mask) - packed(ids, mask)).abs().max())


def _refused(seen: str) -> ModelError:
    return ModelError("This network cannot be packed.", seen=seen, fix="leave out packed=True")
