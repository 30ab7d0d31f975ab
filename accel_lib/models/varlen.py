"""Without padding anywhere: texts concatenated, attention by segments, for GPUs whose kernels know segments.

Sizes are the number of tokens and the number of texts, so a few graphs serve every mix of lengths; see
`accel_lib.engines.cuda_graphs`. Compare `accel_lib.models.packed`, which brings padding back around attention.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accel_lib.models.attention import CLOSE, EVERYTHING, Window, base_of, check_same, difference, refused
from accel_lib.models.fusion import fuse_gelu, fuse_projections
from accel_lib.models.modules import Classifier, Encoder, Head
from accel_lib.models.packed import Pooler, first_position, with_packed_attention
from accel_lib.ragged import Ragged, within

_READS = ("cls", "lasttoken", "mean")  # what heads of classifiers read, of all tokens
_FEW = (5, 3, 1, 8)


class VarlenBatch(NamedTuple):
    """Where texts begin and end: int32 ``[texts + 1]``, and the most tokens that one may have."""

    offsets: Tensor
    longest: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: Window) -> Tensor:
        """As `accel_lib.models.packed.Attends` says."""
        rows = (each.transpose(1, 2)[0] for each in (query, key, value))
        mixed: Tensor = varlen_attention(*rows, self.offsets, self.longest, scaling, *window)
        return mixed[None]


class VarlenEncoder(nn.Module):
    """A network over concatenated texts.

    Parameters
    ----------
    transformer
        It is changed for good.
    pooling
        Names of pooling modes; several are joined in this order.
    after
        What follows the pooling: an encoder's steps, a classifier's head.
    segments
        Whether the transformer wants ``token_type_ids``.
    longest
        Most tokens of one text.
    """

    def __init__(
        self, transformer: nn.Module, *, pooling: Iterable[str], after: nn.Module, segments: bool, longest: int
    ) -> None:
        super().__init__()
        self.pooling, self.after, self.segments, self.longest = tuple(pooling), after, segments, longest
        self.first_position = first_position(transformer)
        self.transformer = with_packed_attention(transformer, longest=longest)
        fuse_projections(self.transformer)
        fuse_gelu(self.transformer)

    def forward(
        self, ids: Tensor, positions: Tensor, texts: Tensor, offsets: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids, their positions and the number of their text, int64 ``[tokens]``, to ``[texts, dimension]``.

        Tokens behind the last offset belong to no text and change nothing; their text is number ``len(offsets) - 1``.
        Segment ids are zeros where none are given.
        """
        kinds = torch.zeros_like(ids) if token_type_ids is None else token_type_ids
        extra = {"token_type_ids": kinds[None]} if self.segments else {}
        tokens = self.transformer(
            input_ids=ids[None],
            position_ids=positions[None] + self.first_position,
            packing=VarlenBatch(offsets.to(torch.int32), self.longest),  # as the kernel takes them
            **extra,
        ).last_hidden_state.float()[0]
        pooled = [pool_varlen(tokens, positions, texts, offsets, mode) for mode in self.pooling]
        vectors: Tensor = self.after(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


class FromOffsets(nn.Module):
    """A `VarlenEncoder` that is told only where texts begin: positions and text numbers are computed on its device."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, offsets: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Token ids int64 ``[tokens]`` and offsets int64 ``[texts + 1]`` to ``[texts, dimension]``."""
        places = torch.arange(ids.shape[0], device=ids.device)
        texts = torch.searchsorted(offsets, places, right=True) - 1
        positions = (places - offsets[texts]) * (texts < offsets.shape[0] - 1)  # 0 behind the last text
        segments = () if token_type_ids is None else (token_type_ids,)
        vectors: Tensor = self.module(ids, positions, texts, offsets, *segments)
        return vectors


class ClassifierHead(nn.Module):
    """The head of a transformers' classifier on one vector a text: its own code, over texts of one token.

    Parameters
    ----------
    classifier
        It is left without its transformer.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        holder, name = classifier, classifier.base_model_prefix
        setattr(holder, name, _Given(Pooler(getattr(holder, name))))
        self.head = classifier

    def forward(self, vectors: Tensor) -> Tensor:
        """``[texts, width]`` to logits ``[texts, labels]``."""
        ones = torch.ones(vectors.shape[0], 1, dtype=torch.int64, device=vectors.device)
        logits: Tensor = self.head(input_ids=ones, inputs_embeds=vectors[:, None], attention_mask=ones).logits
        return logits


class _Given(nn.Module):
    """In a transformer's place: answers what it is given as embeddings."""

    def __init__(self, pooler: Pooler) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.pooler(inputs_embeds)


def to_varlen(module: nn.Module, *, longest: int) -> VarlenEncoder:
    """A copy of a network over concatenated texts, tried against the original on the CPU.

    Raises
    ------
    ModelError
        The network is of a kind that cannot be packed, or gives other numbers.
    """
    for reads in _READS if isinstance(module, Classifier) else ("",):
        made = _varlen(module, reads, longest).eval()

        def numbers(*inputs: Tensor, made: VarlenEncoder = made) -> Tensor:
            rows = Ragged.from_padded(*(each.numpy() for each in inputs))
            vectors: Tensor = made(*map(torch.from_numpy, flatten(rows, segments=len(inputs) > 2)))
            return vectors

        if not reads or difference(module, numbers, _FEW) < CLOSE:
            check_same(module, numbers, longest=longest)
            return made
    raise refused("neither the first token, nor the last one, nor the mean of all gives the numbers of its head")


def _varlen(module: nn.Module, reads: str, longest: int) -> VarlenEncoder:
    """A copy of a network over concatenated texts; of a classifier, whose head reads so."""
    taken = copy.deepcopy(module)
    holder, name = base_of(taken)
    transformer = getattr(holder, name)
    if isinstance(taken, Classifier):
        after: nn.Module = ClassifierHead(taken.transformer)
        return VarlenEncoder(transformer, pooling=[reads], after=after, segments=taken.segments, longest=longest)
    encoder = cast("Encoder", holder)
    after = nn.Sequential(*encoder.steps, *([taken.linear] if isinstance(taken, Head) else []))
    return VarlenEncoder(transformer, pooling=encoder.pooling, after=after, segments=encoder.segments, longest=longest)


def flatten(rows: Ragged, *, tokens: int = 0, texts: int = 0, segments: bool = False) -> tuple[NDArray[np.int64], ...]:
    """A batch as `VarlenEncoder` takes it, filled up to that many tokens and texts where that is more.

    Returns
    -------
    int64 arrays
        Token ids, positions and text numbers ``[tokens]``; offsets ``[texts + 1]``; if asked for, segment ids
        ``[tokens]``.
    """
    real, held = len(rows.ids), max(texts, len(rows))
    arrays = np.zeros((3 + segments, max(tokens, real)), dtype=np.int64)
    arrays[0, :real] = rows.ids
    arrays[1, :real] = within(rows.lengths)
    arrays[2, :real] = np.repeat(np.arange(len(rows)), rows.lengths)
    arrays[2, real:] = held
    offsets = np.full(held + 1, real, dtype=np.int64)
    offsets[: len(rows)] = np.cumsum(rows.lengths) - rows.lengths
    if segments and rows.segments is not None:
        arrays[3, :real] = rows.segments
    return (*arrays[:3], offsets, *arrays[3:])


def pool_varlen(tokens: Tensor, positions: Tensor, texts: Tensor, offsets: Tensor, mode: str) -> Tensor:
    """Token vectors ``[tokens, width]`` to ``[texts, width]``, as `accel_lib.models.modules.pool` does it."""
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


@torch.library.custom_op("accel_lib::varlen_attention", mutates_args=())
def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scaling: float,
    before: int = -1,
    behind: int = -1,
) -> Tensor:
    """Attention inside each segment; ``[tokens, heads, width]`` each, offsets int32 ``[texts + 1]``.

    Keys and values may have fewer heads, each for several of the queries'. A token sees `before` tokens before it and
    `behind` it, -1 meaning all. On a GPU this is one kernel of FlashAttention 2 (compute capability 8.0 and up, half
    precision); on a CPU a loop, which is there to be compared with.
    Source: https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
    """
    shared, window = query.shape[1] // key.shape[1], (before, behind)
    if shared > 1:
        key, value = (rows.repeat_interleave(shared, dim=1) for rows in (key, value))
    if query.is_cuda:
        return _flash_attention(query, key, value, offsets, longest, scaling, window)
    output = query.new_zeros(*query.shape[:2], value.shape[2])
    for start, end in itertools.pairwise(offsets.tolist()):
        q, k, v = (rows[start:end].transpose(0, 1) for rows in (query, key, value))
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        seen = (ahead >= (-before if before >= 0 else start - end)) & (ahead <= (behind if behind >= 0 else end))
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=None if window == EVERYTHING else seen, scale=scaling
        )
        output[start:end] = mixed.transpose(0, 1)
    return output


@varlen_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,
    offsets: Tensor,  # noqa: ARG001
    longest: int,  # noqa: ARG001
    scaling: float,  # noqa: ARG001
    before: int = -1,  # noqa: ARG001
    behind: int = -1,  # noqa: ARG001
) -> Tensor:
    return query.new_empty(*query.shape[:2], value.shape[2])


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scaling: float, window: Window
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` calls, without the random state that it fills in every layer."""
    ends = offsets.to(torch.int32)
    mixed: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, 0.0, False, False,  # no dropout, causal only by its window
        scale=scaling, window_size_left=window[0], window_size_right=window[1],
    )[0]  # fmt: skip
    return mixed
