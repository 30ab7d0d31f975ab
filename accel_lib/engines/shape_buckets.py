"""Few shapes for engines that compile kernels for each shape they meet: batches rounded up, and little in vain.

OpenVINO generates code for every new number of tokens, rows or places of a row: measured on a 6-layer INT8 encoder, a
batch of 320 tokens takes 15 ms in a shape that has been there, and 5 to 10 ms more for each of the three that is new.
A packed batch of mixed texts hardly ever has the shape of another one.
"""

from __future__ import annotations

import collections
import functools

import numpy as np
from numpy.typing import NDArray

_STEPS = 8  # sizes from a power of two to the next
_LEAST_TOKENS = 8
_OFTEN = 4  # times after which a shape is worth kernels of its own
_MOST_SHAPES = 10_000  # to remember
_Arrays = tuple[NDArray[np.int64], ...]


class ShapeBuckets:
    """Rounds batches up, all but those of a shape that comes again and again, such as a corpus that is encoded daily.

    Parameters are those of `to_bucket`.
    """

    def __init__(self, *, pad_id: int, max_length: int, packed: bool) -> None:
        self._round = functools.partial(to_bucket, pad_id=pad_id, max_length=max_length, packed=packed)
        self._seen: collections.Counter[tuple[int, ...]] = collections.Counter()

    def __call__(self, *rows: NDArray[np.int64]) -> _Arrays:
        """Token ids, attention mask and segment ids, as they are or with more rows and places."""
        shape = (*rows[1].shape, int(rows[1].sum()))
        if len(self._seen) > _MOST_SHAPES:
            self._seen.clear()
        self._seen[shape] += 1
        return rows if self._seen[shape] > _OFTEN else self._round(rows)


def round_up(size: int, *, least: int = 1, steps: int = _STEPS) -> int:
    """The next of `steps` sizes between powers of two, all of them multiples of `least`.

    >>> [round_up(size) for size in (7, 17, 33, 130)], round_up(33, least=16)
    ([7, 18, 36, 144], 48)
    """
    step = max(least, (1 << (size.bit_length() - 1)) // steps)
    return -(-size // step) * step


def to_bucket(rows: _Arrays, *, pad_id: int, max_length: int, packed: bool) -> _Arrays:
    """Pad a batch to a shape out of few; what its engine makes of rows that are added at the end is to be dropped.

    Parameters
    ----------
    rows
        Token ids, attention mask and, where the model has them, segment ids, int64 ``[batch, sequence]`` each.
    pad_id
        Token id of what is added.
    max_length
        Longest row that the model takes.
    packed
        The engine computes real tokens only: rows are added so that their number, too, is one of few. A text that comes
        alone gets no company, as there are few lengths.

    Returns
    -------
    tuple of int64 arrays
        The same arrays with at least as many rows and places.
    """
    mask = rows[1]
    batch, longest = mask.shape
    if packed and batch == 1:
        return rows
    places = max(longest, min(max_length, round_up(longest, least=_LEAST_TOKENS)))
    added = _added(batch, int(mask.sum()), places) if packed else []
    ids, *others = (np.pad(each, ((0, len(added)), (0, places - longest))) for each in rows)
    ids[others[0] == 0] = pad_id
    for row, tokens in enumerate(added, start=batch):
        others[0][row, :tokens] = 1
    return ids, *others


def _added(batch: int, tokens: int, places: int) -> list[int]:
    """Tokens of each row that brings a packed batch into its bucket; none is empty."""
    rows = round_up(batch)
    while True:
        count = rows - batch
        missing = round_up(tokens + count, least=_LEAST_TOKENS, steps=2 * _STEPS) - tokens
        if count and missing <= count * places:
            return [missing // count + (row < missing % count) for row in range(count)]
        if not missing:
            return []
        rows = round_up(rows + 1)
