"""Rows of token ids of any length, concatenated without padding; cut into batches and padded by a few NumPy calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

IDS_AND_MASK = ("input_ids", "attention_mask")
SEGMENTS = "token_type_ids"


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of token ids without padding.

    Parameters
    ----------
    ids
        int64 ``[tokens]``: the rows, concatenated.
    lengths
        int64 ``[rows]``: tokens of each.
    segments
        int64 ``[tokens]``: which text of a pair each token belongs to; None where all are 0.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    segments: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """The token ids of each row."""
        yield from np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self) else ()

    @classmethod
    def from_rows(cls, rows: Sequence[NDArray[np.int64]]) -> Ragged:
        """Rows ``[tokens]`` each, copied."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return cls(np.concatenate(rows) if len(rows) else np.empty(0, dtype=np.int64), lengths)

    @classmethod
    def from_padded(
        cls,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> Ragged:
        """The tokens of a padded batch, int64 ``[batch, sequence]`` each, wherever its padding is.

        Copied, but for batches without padding, of which views are taken.
        """
        used = attention_mask != 0
        if used.all():  # of full rows, which need no selection
            lengths = np.full(len(used), used.shape[1], dtype=np.int64)
            return cls(input_ids.reshape(-1), lengths, None if token_type_ids is None else token_type_ids.reshape(-1))
        segments = None if token_type_ids is None else token_type_ids[used]
        return cls(input_ids[used], np.count_nonzero(used, axis=1), segments)

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of several, in order."""
        if len(parts) == 1:
            return parts[0]
        segments = None
        if any(part.segments is not None for part in parts):
            segments = np.concatenate([np.zeros_like(p.ids) if p.segments is None else p.segments for p in parts])
        ids, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "lengths"))
        return cls(ids, lengths, segments)

    def take(self, indices: NDArray[np.int64]) -> Ragged:
        """Some rows, in the order of their indices."""
        lengths = self.lengths[indices]
        starts = (np.cumsum(self.lengths) - self.lengths)[indices]
        tokens = within(lengths) + np.repeat(starts, lengths)
        return Ragged(self.ids[tokens], lengths, None if self.segments is None else self.segments[tokens])

    def cut(self, max_tokens: int) -> list[Ragged]:
        """The rows in their order, cut where `max_tokens` would be exceeded; a longer row stands alone."""
        parts, ends, start = [], np.concatenate([[0], np.cumsum(self.lengths)]), 0
        while start < len(self):
            end = max(start + 1, int(np.searchsorted(ends, ends[start] + max_tokens, side="right")) - 1)
            tokens = slice(ends[start], ends[end])
            segments = None if self.segments is None else self.segments[tokens]
            parts.append(Ragged(self.ids[tokens], self.lengths[start:end], segments))
            start = end
        return parts

    def padded(self, pad_id: int) -> tuple[NDArray[np.int64], ...]:
        """One batch, filled on the right.

        Returns
        -------
        input_ids, attention_mask
            int64 arrays of shape ``[rows, longest row]``; the mask is 1 on tokens and 0 on padding.
        token_type_ids
            The same of the segments, 0 on padding, where there are any.
        """
        mask = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = self.ids
        if self.segments is None:
            return input_ids, mask.astype(np.int64)
        token_type_ids = np.zeros(mask.shape, dtype=np.int64)
        token_type_ids[mask] = self.segments
        return input_ids, mask.astype(np.int64), token_type_ids


def by_name(names: Sequence[str], arrays: Sequence[NDArray[np.int64] | None]) -> dict[str, NDArray[np.int64]]:
    """A padded batch as a model takes it: each of its inputs by name.

    Parameters
    ----------
    names
        Of the model's inputs: `IDS_AND_MASK`, and `SEGMENTS` where it tells the texts of a pair apart.
    arrays
        Token ids, mask and, where there are any, segments, as `Ragged.padded` gives them. Segments that a model takes
        and that are not given are zeros. Whatever else it takes is missing, as the model will say.
    """
    held = {name: array for name, array in zip((*IDS_AND_MASK, SEGMENTS), arrays, strict=False) if array is not None}
    if SEGMENTS in names and SEGMENTS not in held:
        held[SEGMENTS] = np.zeros_like(held["input_ids"])
    return {name: held[name] for name in names if name in held}


def within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each token in its row: ``[2, 3]`` gives ``[0, 1, 0, 1, 2]``."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
