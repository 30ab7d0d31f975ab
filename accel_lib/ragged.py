"""Texts of any length as token ids behind each other: a batch is cut, padded or laid out by a few NumPy calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of token ids without padding.

    Parameters
    ----------
    ids
        int64 ``[tokens]``: the rows behind each other.
    lengths
        int64 ``[rows]``: tokens of each.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.int64]]) -> Ragged:
        """Rows ``[tokens]`` each, copied."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return cls(np.concatenate(rows) if len(rows) else np.empty(0, dtype=np.int64), lengths)

    @classmethod
    def masked(cls, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Ragged:
        """The tokens of a padded batch, int64 ``[batch, sequence]`` twice, wherever its padding is; copied."""
        used = attention_mask != 0
        return cls(input_ids[used], np.count_nonzero(used, axis=1))

    @classmethod
    def together(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of several, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))

    def take(self, indices: NDArray[np.int64]) -> Ragged:
        """Some rows, in the order of their indices."""
        lengths = self.lengths[indices]
        starts = (np.cumsum(self.lengths) - self.lengths)[indices]
        return Ragged(self.ids[within(lengths) + np.repeat(starts, lengths)], lengths)

    def padded(self, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One batch, filled on the right.

        Returns
        -------
        input_ids, attention_mask
            int64 arrays of shape ``[rows, longest row]``; the mask is 1 on tokens and 0 on padding.
        """
        mask = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = self.ids
        return input_ids, mask.astype(np.int64)


def within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each token in its row: ``[2, 3]`` gives ``[0, 1, 0, 1, 2]``."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
