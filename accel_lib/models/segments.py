"""Without padding anywhere: texts behind each other, attention by segments, for GPUs whose kernels know segments.

Sizes are the number of tokens and the number of texts, so a few graphs serve every mix of lengths; see
`accel_lib.engines.graphs`. Compare `accel_lib.models.packed`, which brings padding back around attention.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accel_lib.models.network import Encoder, Head
from accel_lib.models.packed import check_same, first_position, packable, use_packed_attention
from accel_lib.ragged import Ragged, within


class Segments(NamedTuple):
    """Where texts begin and end: int32 ``[texts + 1]``, and the most tokens that one may have."""

    offsets: Tensor
    longest: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention inside each text: ``[1, heads, tokens, width]`` each, to ``[1, tokens, heads, width]``."""
        rows = (each.transpose(1, 2)[0] for each in (query, key, value))
        mixed: Tensor = segment_attention(*rows, self.offsets, self.longest, scaling)
        return mixed[None]


class SegmentEncoder(Encoder):
    """An `Encoder` over texts behind each other.

    Parameters
    ----------
    encoder
        What to take over; its transformer must be set to packed attention already.
    after
        Further steps behind the encoder's own, such as a classifier's linear layer.
    longest
        Most tokens of one text.
    """

    def __init__(self, encoder: Encoder, *, after: Sequence[nn.Module], longest: int) -> None:
        steps = [*encoder.steps, *after]
        super().__init__(encoder.transformer, pooling=encoder.pooling, steps=steps, segments=encoder.segments)
        self.longest = longest
        self.first_position = first_position(encoder.transformer)

    def forward(self, ids: Tensor, positions: Tensor, texts: Tensor, offsets: Tensor) -> Tensor:  # type: ignore[override]
        """Token ids, their positions and the number of their text, int64 ``[tokens]``, to ``[texts, dimension]``.

        Tokens behind the last offset belong to no text and change nothing; their text is number ``len(offsets) - 1``.
        """
        extra = {"token_type_ids": torch.zeros_like(ids)[None]} if self.segments else {}
        tokens = self.transformer(
            input_ids=ids[None],
            position_ids=positions[None] + self.first_position,
            packing=Segments(offsets.to(torch.int32), self.longest),  # as the kernel takes them
            **extra,
        ).last_hidden_state.float()[0]
        pooled = [pool_segments(tokens, positions, texts, offsets, mode) for mode in self.pooling]
        vectors: Tensor = self.steps(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


def segment(module: nn.Module, *, longest: int) -> SegmentEncoder:
    """A copy of a network over texts behind each other, tried against the original on the CPU.

    Raises
    ------
    ModelError
        The network is of a kind that cannot be packed, or gives other numbers.
    """
    after: list[nn.Module] = []
    encoder = module
    if isinstance(encoder, Head):
        after, encoder = [encoder.linear], encoder.encoder
    taken = copy.deepcopy(packable(encoder))
    use_packed_attention(taken.transformer)
    made = SegmentEncoder(taken, after=copy.deepcopy(after), longest=longest).eval()

    def numbers(ids: Tensor, mask: Tensor) -> Tensor:
        vectors: Tensor = made(*map(torch.from_numpy, flatten(Ragged.masked(ids.numpy(), mask.numpy()))))
        return vectors

    check_same(module, numbers)
    return made


def flatten(
    rows: Ragged, *, tokens: int = 0, texts: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """A batch as `SegmentEncoder` takes it, filled up to so many tokens and texts where that is more.

    Returns
    -------
    int64 arrays
        Token ids, positions and text numbers ``[tokens]``; offsets ``[texts + 1]``.
    """
    real, held = len(rows.ids), max(texts, len(rows))
    arrays = np.zeros((3, max(tokens, real)), dtype=np.int64)
    arrays[0, :real] = rows.ids
    arrays[1, :real] = within(rows.lengths)
    arrays[2, :real] = np.repeat(np.arange(len(rows)), rows.lengths)
    arrays[2, real:] = held
    offsets = np.full(held + 1, real, dtype=np.int64)
    offsets[: len(rows)] = np.cumsum(rows.lengths) - rows.lengths
    return arrays[0], arrays[1], arrays[2], offsets


def pool_segments(tokens: Tensor, positions: Tensor, texts: Tensor, offsets: Tensor, mode: str) -> Tensor:
    """Token vectors ``[tokens, width]`` to ``[texts, width]``, as `accel_lib.models.network.pool` does it."""
    count, last = offsets.shape[0] - 1, tokens.shape[0] - 1
    if mode in ("cls", "lasttoken"):
        places = offsets[:-1] if mode == "cls" else offsets[1:] - 1
        return tokens.index_select(0, places.clamp(min=0, max=last))
    if mode == "max":
        lowest = tokens.new_full((count + 1, tokens.shape[1]), float("-inf"))
        return lowest.index_reduce(0, texts, tokens, "amax")[:-1]
    weights = positions + 1.0 if mode == "weightedmean" else torch.ones_like(positions, dtype=tokens.dtype)
    sums = tokens.new_zeros((count + 1, tokens.shape[1])).index_add(0, texts, tokens * weights[:, None])[:-1]
    weight = tokens.new_zeros(count + 1).index_add(0, texts, weights.to(tokens.dtype))[:-1, None].clamp(min=1e-9)
    return sums / (weight.sqrt() if mode == "mean_sqrt_len_tokens" else weight)


@torch.library.custom_op("accel_lib::segment_attention", mutates_args=())
def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scaling: float
) -> Tensor:
    """Attention inside each segment; ``[tokens, heads, width]`` each, offsets int32 ``[texts + 1]``.

    On a GPU this is one kernel of FlashAttention 2 (compute capability 8.0 and up, half precision); on a CPU a loop,
    which is there to be compared with.
    Source: https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
    """
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        own = query.shape[-1] ** -0.5  # the scale that the kernel takes by itself
        ends = offsets.to(torch.int32)
        scaled = query if math.isclose(scaling, own) else query * (scaling / own)
        return cast("Tensor", varlen_attn(scaled, key, value, ends, ends, longest, longest)).contiguous()
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for start, end in itertools.pairwise(offsets.tolist()):
        q, k, v = (rows[start:end].transpose(0, 1) for rows in (query, key, value))
        output[start:end] = (torch.softmax(q @ k.transpose(1, 2) * scaling, dim=-1) @ v).transpose(0, 1)
    return output


@segment_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scaling: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(query, memory_format=torch.contiguous_format)
