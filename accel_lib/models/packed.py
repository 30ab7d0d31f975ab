"""Without padding: the tokens of a batch are concatenated into one row, and only attention sees separate texts.

Linear layers, norms and activations treat every token alone, so for them a batch is as good as one long text. Attention
must not look across texts: around it alone the tokens are laid out as ``[batch, sequence]`` again. The technique is
known as unpadding or packing (NVIDIA's Effective Transformer, https://github.com/bytedance/effective_transformer;
"padding-free" in transformers).
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accel_lib.models.attention import EVERYTHING, Window, base_of, check_same, learn_windows, use_attention
from accel_lib.models.fusion import FUSED

_ATTENTION = "accel_packed"
_MASKED = -1e4  # added to the logits of what must not be seen; its exponential is 0 in FP32 and in FP16


class Attends(Protocol):
    """Where the texts of a packed batch are, and attention inside each of them."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: Window) -> Tensor:
        """``[1, heads, tokens, width]`` each, to ``[1, tokens, heads, width]``; keys and values may have fewer heads.

        A token sees ``window[0]`` tokens before it and ``window[1]`` behind it, -1 meaning all of its text.
        """
        ...


class Packing:
    """Where the tokens of a packed batch are, head by head, so that they are laid out and turned in one step.

    What one layer needs is kept for the next.

    Parameters
    ----------
    attention_mask
        int64 ``[batch, sequence]``, padding on the right.
    """

    def __init__(self, attention_mask: Tensor) -> None:
        self.shape = attention_mask.shape
        self.places = attention_mask.nonzero()
        self.tokens = (attention_mask.flatten().cumsum(0) - 1).clamp(min=0)  # of each place; padding takes any
        self._padding = (1 - attention_mask[:, None, None, :].float()) * _MASKED
        self._spreads: dict[tuple[int, int], Tensor] = {}
        self._gathers: dict[int, Tensor] = {}
        self._biases: dict[Window, Tensor] = {EVERYTHING: self._padding}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: Window) -> Tensor:
        """As `Attends` says."""
        (batch, sequence), heads = self.shape, query.shape[1]

        def lay_out(rows: Tensor) -> Tensor:
            held, width = rows.shape[1], rows.shape[3]
            flat = rows.transpose(1, 2).reshape(-1, width)
            return flat.index_select(0, self._spread(heads, held)).view(batch, heads, sequence, width)

        logits = lay_out(query) @ lay_out(key).transpose(2, 3) * scaling + self._bias(window).to(query.dtype)
        weighted, width = torch.softmax(logits, dim=-1) @ lay_out(value), value.shape[3]
        return weighted.reshape(-1, width).index_select(0, self._gather(heads)).view(1, -1, heads, width)

    def _spread(self, heads: int, held: int) -> Tensor:
        """int64 ``[batch * heads * sequence]``: the row of ``[tokens * held, width]`` that each padded place takes."""
        if (heads, held) not in self._spreads:
            tokens = self.tokens.view(self.shape[0], 1, self.shape[1])
            each = torch.arange(heads, device=tokens.device) // (heads // held)  # queries that share a head of keys
            self._spreads[heads, held] = (tokens * held + each[:, None]).flatten()
        return self._spreads[heads, held]

    def _gather(self, heads: int) -> Tensor:
        """int64 ``[tokens * heads]``: the row of ``[batch * heads * sequence, width]`` of each token's heads."""
        if heads not in self._gathers:
            each = torch.arange(heads, device=self.places.device)
            row, place = self.places[:, :1], self.places[:, 1:]
            self._gathers[heads] = ((row * heads + each) * self.shape[1] + place).flatten()
        return self._gathers[heads]

    def _bias(self, window: Window) -> Tensor:
        """``[batch, 1, 1 or sequence, sequence]``: added to attention's logits, far below 0 for what is not seen."""
        if window not in self._biases:
            place = torch.arange(self.shape[1], device=self.tokens.device)
            ahead, (left, right) = place - place[:, None], window
            hidden = torch.zeros_like(ahead, dtype=torch.bool)
            hidden = hidden if left < 0 else hidden | (ahead < -left)
            hidden = hidden if right < 0 else hidden | (ahead > right)
            self._biases[window] = self._padding + hidden.float() * _MASKED
        return self._biases[window]


class PackedTransformer(nn.Module):
    """A transformer with padded batches outside that computes on real tokens only; same weights, same numbers.

    Parameters
    ----------
    transformer
        What to take over; it is changed for good.
    longest
        Most tokens of one text.
    """

    def __init__(self, transformer: nn.Module, *, longest: int) -> None:
        super().__init__()
        self.first_position = first_position(transformer)
        self.pooler = Pooler(transformer)
        self.transformer = with_packed_attention(transformer, longest=longest)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **_: Any) -> Any:
        """int64 ``[batch, sequence]`` each, padding on the right, to what the transformer answers to them."""
        packing = Packing(attention_mask)
        (batch, sequence), places = packing.shape, packing.places
        gather = places[:, 0] * sequence + places[:, 1]
        rows = {"input_ids": input_ids, "token_type_ids": token_type_ids}
        tokens = self.transformer(
            **{name: ids.flatten().index_select(0, gather)[None] for name, ids in rows.items() if ids is not None},
            position_ids=places[:, 1][None] + self.first_position,
            packing=packing,
        ).last_hidden_state
        return self.pooler(tokens.flatten(0, 1).index_select(0, packing.tokens).view(batch, sequence, -1))


class Pooler(nn.Module):
    """What a transformer computes from its last layer for its own head, taken out of it.

    Parameters
    ----------
    transformer
        It is left without.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.layer = getattr(transformer, "pooler", None)
        self.activation = getattr(transformer, "pooler_activation", None)  # ALBERT's kind
        if self.layer is not None:
            transformer.pooler = None

    def forward(self, states: Tensor) -> Any:
        """``[batch, sequence, width]`` to a transformer's answer, with ``last_hidden_state`` and ``pooler_output``."""
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        pooled = None
        if self.layer is not None:
            pooled = self.activation(self.layer(states[:, 0])) if self.activation else self.layer(states)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)


def pack(module: nn.Module, *, longest: int) -> nn.Module:
    """A copy of a network that computes without padding, tried against the original.

    Parameters
    ----------
    module
        An `Encoder`, a `Classifier`, or a `Head`, whose transformer uses transformers' attention interface and takes
        position ids (BERT's and RoBERTa's kind, ModernBERT, EuroBERT, Gemma 3, Qwen 3 …).
    longest
        Most tokens of one text.

    Raises
    ------
    ModelError
        The network is of another kind, or gives other numbers when packed; the message says what of it is in the way.
    """
    packed = copy.deepcopy(module)
    holder, name = base_of(packed)
    setattr(holder, name, PackedTransformer(getattr(holder, name), longest=longest))
    check_same(module, packed.eval(), longest=longest)
    return packed


def with_packed_attention(transformer: nn.Module, *, longest: int) -> nn.Module:
    """The transformer, which from now on attends by the ``packing`` that its forward pass is given."""
    learn_windows(transformer, longest=longest)
    use_attention(transformer, _ATTENTION, packed_attention)
    return transformer


def first_position(transformer: nn.Module) -> int:
    """Position id of a text's first token."""
    for name, part in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.padding_idx + 1  # RoBERTa's kind
    return 0


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    *,
    packing: Attends,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text of a packed batch: queries, keys and values are ``[1, heads, tokens, width]``.

    Registered as one of transformers' attention functions, hence its arguments and its answer, ``[1, tokens, heads,
    width]`` and no weights.
    """
    if getattr(module, FUSED, False):
        query, key, value = query.chunk(3, dim=1)
    window: Any = module.accel_window
    return packing.attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling, window), None
