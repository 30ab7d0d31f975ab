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
