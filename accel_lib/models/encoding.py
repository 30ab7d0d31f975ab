"""Token ids of texts in bounded memory, cut as the `tokenizers` library cuts, and what a tokenizer puts around them.

The library keeps what it cuts off, and of pairs every combination of it: a hundred kilobytes of text take gigabytes. So
it is asked for all tokens without special ones, some ten thousand characters at a time, and the rest is done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from accel_lib.models.long_texts import PIECE_CHARS, divided


class Row(NamedTuple):
    """One text, or one pair, as a model takes it.

    Parameters
    ----------
    ids, segments
        int64 ``[tokens]``, special tokens included: token ids, and which half of a pair each token is of.
    length
        Tokens that it had before it was cut; counting may end early, see `Tokenizer.rows`.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    length: int


class Content(NamedTuple):
    """Tokens of one text without special tokens: those that a row can keep, and the number of all."""

    ids: NDArray[np.int64]
    total: int


NOTHING = Content(np.empty(0, dtype=np.int64), 0)


class _Run(NamedTuple):
    """A part of a row: special tokens, or the place of the first (0) or second (1) half."""

    half: int | None
    ids: NDArray[np.int64]
    segments: NDArray[np.int64]


class Encoder:
    """Tokenize with a backend that neither cuts nor pads.

    Parameters
    ----------
    backend
        Used as it is.
    side
        ``"left"`` or ``"right"``: where what is too long is cut.
    most
        Tokens that a row can keep.

    Attributes
    ----------
    single_segments
        Whether a text that is no pair has segment ids other than 0.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, side: str, most: int) -> None:
        self.side = side
        self._backend = backend
        self._most = most
        self._frames = {pair: _frame(backend, pair) for pair in (False, True)}
        self.single_segments = any(run.segments.any() for run in self._frames[False])

    def contents(self, texts: Sequence[str], count_to: int | None) -> Iterator[Content]:
        """The tokens of each text without special tokens; one that follows itself is tokenized once."""
        runs = [(text, sum(1 for _ in same)) for text, same in itertools.groupby(texts)]
        found = self._contents([text for text, _ in runs], count_to)
        return itertools.chain.from_iterable(
            itertools.repeat(each, times) for each, (_, times) in zip(found, runs, strict=True)
        )

    def _contents(self, texts: Sequence[str], count_to: int | None) -> Iterator[Content]:
        """Texts of some ten thousand characters at once."""
        group: list[str] = []
        chars = 0
        for text in texts:
            if group and chars + len(text) > PIECE_CHARS:
                yield from self._encoded(group, count_to)
                group, chars = [], 0
            group.append(text)
            chars += len(text)
        yield from self._encoded(group, count_to)

    def _encoded(self, group: list[str], count_to: int | None) -> Iterator[Content]:
        if len(group) == 1 and len(group[0]) > 2 * PIECE_CHARS:
            yield self._in_pieces(group[0], count_to)
            return
        for item in self._backend.encode_batch_fast(group, add_special_tokens=False):
            ids = np.array(item.ids, dtype=np.int64)
            yield Content(self.cut(ids, self._most), len(ids))

    def _in_pieces(self, text: str, count_to: int | None) -> Content:
        def ids_of(piece: str) -> list[int]:
            found: list[int] = self._backend.encode_batch_fast([piece], add_special_tokens=False)[0].ids
            return found

        pieces = divided(text, ids_of)
        kept, total = NOTHING
        for piece in pieces if self.side == "right" else reversed(list(pieces)):
            ids = np.array(ids_of(piece), dtype=np.int64)
            total += len(ids)
            order = (kept, ids) if self.side == "right" else (ids, kept)
            kept = self.cut(np.concatenate(order), self._most)
            if count_to is not None and total > max(count_to, self._most):
                break
        return Content(kept, total)

    def cut(self, ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """The first or last `most` ids."""
        return ids[:most] if self.side == "right" else ids[max(0, len(ids) - most) :]

    def framed(self, halves: Sequence[NDArray[np.int64]], pair: bool) -> Row:
        """The special tokens around the halves."""
        frame = self._frames[pair]
        row = np.concatenate([run.ids if run.half is None else halves[run.half] for run in frame])
        if not pair and not self.single_segments:
            return Row(row, np.zeros_like(row), len(row))
        segments = [
            run.segments if run.half is None else np.full(len(halves[run.half]), run.segments[0]) for run in frame
        ]
        return Row(row, np.concatenate(segments), len(row))


def _frame(backend: tokenizers.Tokenizer, pair: bool) -> list[_Run]:
    """What this tokenizer puts around a text or a pair, read from one of its own tokens."""
    tokens = (backend.id_to_token(index) or "" for index in range(backend.get_vocab_size()))
    word = next((token for token in tokens if backend.encode(token, add_special_tokens=False).ids), "")
    framed = backend.encode(word, word if pair else None)
    runs = itertools.groupby(zip(framed.sequence_ids, framed.ids, framed.type_ids, strict=True), lambda each: each[0])
    return [_Run(half, *np.array([each[1:] for each in items], dtype=np.int64).T) for half, items in runs]


def longest_first(first: int, second: int, most: int) -> tuple[int, int]:
    """Tokens that are kept of both halves: `tokenizers`' ``longest_first``."""
    shorter, longer = sorted((first, second))
    if first + second > most:
        longer = max(shorter, most - shorter)
        if shorter + longer > most:
            shorter, longer = most // 2, most - most // 2
    return (longer, shorter) if first > second else (shorter, longer)
