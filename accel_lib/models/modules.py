"""The network: a transformer with its pooling, dense layers and unit length, or its head, in one graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Token ids to one vector a text: transformer, pooling, then `steps`.

    Parameters
    ----------
    transformer
        Returns ``last_hidden_state``; its own pooler is not used.
    pooling
        Names of pooling modes; several are joined in this order.
    steps
        What follows the pooling.
    segments
        Whether the transformer wants ``token_type_ids``; they are zeros, made inside.
    """

    def __init__(
        self, transformer: nn.Module, *, pooling: Sequence[str], steps: Sequence[nn.Module], segments: bool
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = tuple(pooling)
        self.steps = nn.Sequential(*steps)
        self.segments = segments

    @property
    def tail(self) -> str:
        """What comes after the transformer, in words."""
        return ", then ".join([" and ".join(self.pooling), *map(str, self.steps)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 ``[batch, sequence]`` twice, padding on the right, to float32 ``[batch, dimension]``."""
        extra = {"token_type_ids": torch.zeros_like(input_ids)} if self.segments else {}
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state.float()
        pooled = [pool(tokens, attention_mask, mode) for mode in self.pooling]
        vectors: Tensor = self.steps(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


class Classifier(nn.Module):
    """Token ids to one row of logits a text, by a transformer that has its own head.

    Parameters
    ----------
    transformer
        Returns ``logits``.
    segments
        Whether it wants ``token_type_ids``; they are zeros where none are given.
    """

    def __init__(self, transformer: nn.Module, *, segments: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.segments = segments

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """int64 ``[batch, sequence]`` each, padding on the right, to float32 ``[batch, labels]``."""
        zeros = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        extra = {"token_type_ids": zeros} if self.segments else {}
        logits: Tensor = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **extra).logits
        return logits


class Head(nn.Module):
    """A linear layer on the vectors of a frozen encoder."""

    def __init__(self, encoder: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = linear

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 ``[batch, sequence]`` twice, padding on the right, to float32 ``[batch, labels]``."""
        logits: Tensor = self.linear(self.encoder(input_ids, attention_mask))
        return logits


class LateInteraction(nn.Module):
    """One logit a pair, from the token vectors of both texts, each encoded by itself as the encoder was trained to.

    What is compared is the cosine of the two vectors, and after each layer, the embeddings first, MaxSim: for each
    token of the first text the cosine of its nearest token in the second, on average. A linear layer weighs them.

    Source: O. Khattab and M. Zaharia, "ColBERT", https://arxiv.org/abs/2004.12832 (MaxSim, of the last layer).

    Parameters
    ----------
    encoder
        Its transformer gives ``hidden_states``, and puts one token in front of a text.
    linear
        From the cosine and one MaxSim a layer to the logit.
    """

    def __init__(self, encoder: Encoder, linear: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = linear

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """int64 ``[batch, sequence]`` each, padding on the right, to float32 ``[batch, 1]``."""
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        logits: Tensor = self.linear(self.features(*halves(input_ids, attention_mask, segments)))
        return logits

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """First texts, and behind them as many second ones, to float32 ``[batch, 1 + layers]``."""
        extra = {"token_type_ids": torch.zeros_like(input_ids)} if self.encoder.segments else {}
        asked = {"input_ids": input_ids, "attention_mask": attention_mask, "output_hidden_states": True}
        states = self.encoder.transformer(**asked, **extra).hidden_states
        pooled = torch.cat([pool(states[-1].float(), attention_mask, mode) for mode in self.encoder.pooling], dim=-1)
        first, second = two(nn.functional.normalize(self.encoder.steps(pooled), dim=-1))
        found = [(first * second).sum(dim=-1), *(max_sim(layer.float(), attention_mask) for layer in states)]
        return torch.stack(found, dim=-1)


def halves(input_ids: Tensor, attention_mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask of the first texts of pairs, and behind them of the second ones, each as a row of its own.

    A second text gets the token in front that the pair has: ``[CLS] a [SEP] b [SEP]`` gives ``[CLS] a [SEP]`` and
    ``[CLS] b [SEP]``; of a single text the second one is that token alone.
    """
    first = attention_mask * (segments == 0)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    places = columns + first.sum(dim=1, keepdim=True) - 1
    second = (places < attention_mask.sum(dim=1, keepdim=True)).to(attention_mask.dtype)
    moved = input_ids.gather(1, places.clamp(min=0, max=input_ids.shape[1] - 1))
    moved = torch.where(columns == 0, input_ids[:, :1], moved)
    return torch.cat([input_ids, moved]), torch.cat([first, second])


def max_sim(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """MaxSim of the first half of rows ``[2 · batch, sequence, width]`` with the second half, ``[batch]``."""
    first, second = two(nn.functional.normalize(tokens, dim=-1))
    mask, other = two(attention_mask.to(first.dtype))
    cosines = first @ second.transpose(1, 2) - 2 * (1 - other)[:, None]  # below any cosine where there is no token
    nearest: Tensor = cosines.amax(dim=-1)
    return (nearest * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def two(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[2 · batch, ...]`` as those of the first texts and those of the second ones."""
    first, second = rows.reshape(2, -1, *rows.shape[1:]).unbind()
    return first, second


class Normalize(nn.Module):
    """Unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """``[batch, dimension]`` to the same shape."""
        return nn.functional.normalize(vectors, p=2.0, dim=-1)


class Truncate(nn.Module):
    """The first `dimension` numbers of each vector, as sentence-transformers' ``truncate_dim`` takes them."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def extra_repr(self) -> str:
        """The dimension, where the module is printed."""
        return str(self.dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[batch, wide]`` to ``[batch, dimension]``."""
        return vectors[:, : self.dimension]


def pool(tokens: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Token vectors ``[batch, sequence, width]`` to ``[batch, width]``; masked tokens count for nothing."""
    if mode == "cls":
        return tokens[:, 0]
    if mode == "lasttoken":
        last = attention_mask.sum(dim=1) - 1
        return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)
    mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
    if mode == "max":
        return tokens.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        mask = mask * mask.cumsum(dim=1)
    weight = mask.sum(dim=1).clamp(min=1e-9)
    return (tokens * mask).sum(dim=1) / (weight.sqrt() if mode == "mean_sqrt_len_tokens" else weight)
