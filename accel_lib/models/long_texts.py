"""Divide a long text into pieces that can be tokenized one after the other, to the same token ids as the whole text.

The memory that `tokenizers` takes for a text is several hundred times the text. A text is divided at the end of a word,
and only where its neighbourhood shows that the tokenizer gives the same ids with and without the division.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from accel_lib.errors import TextError

PIECE_CHARS = 32_768  # tokenized at once; at 200 to 650 bytes per character that is 7 to 21 MB
_LONGEST_PIECE_CHARS = 16 * PIECE_CHARS  # where no division is found earlier; more would take hundreds of MB
_NEIGHBOURHOOD_CHARS = 1024  # on each side of a division, tokenized to check it
_TRIES = 4  # divisions that are checked before the piece is made longer
_WORD_END = re.compile(r"(?<=\S)\s|(?<=[^\w\s])")  # or a mark of punctuation, for languages without spaces


def divided(text: str, ids_of: Callable[[str], list[int]]) -> Iterator[str]:
    """Pieces of a text whose token ids, one after the other, are those of the text.

    Parameters
    ----------
    ids_of
        The token ids of a text, without special tokens.

    Raises
    ------
    TextError
        There is no place to divide the text for half a million characters.
    """
    start = 0
    while start < len(text):
        end, following = _division(text, start, ids_of)
        yield text[start:end]
        start = following


def _division(text: str, start: int, ids_of: Callable[[str], list[int]]) -> tuple[int, int]:
    """Where the piece that begins at `start` ends, and where the next one begins."""
    length = PIECE_CHARS
    while start + length < len(text):
        before = start + length - _NEIGHBOURHOOD_CHARS
        ends = [before + found.start() for found in _WORD_END.finditer(text[before : start + length])]
        for end in ends[: -_TRIES - 1 : -1] or [start + length]:
            for following in (end, end + 1):  # a tokenizer that puts a space in front of every text gets none
                left, right = text[max(start, end - _NEIGHBOURHOOD_CHARS) : end], text[end : end + _NEIGHBOURHOOD_CHARS]
                together, apart = ids_of(left + right), ids_of(left) + ids_of(right[following - end :])
                if together == apart and (ends or not together):  # not at the end of a word: only where no token is
                    return end, following
        if length >= _LONGEST_PIECE_CHARS:
            raise TextError(
                f"It cannot be tokenized in pieces: no word ends within {_LONGEST_PIECE_CHARS:,} characters.",
                seen=f"{len(text):,} characters",
                fix="put spaces or line breaks between its words, or send it in parts",
            )
        length *= 2
    return len(text), len(text)
