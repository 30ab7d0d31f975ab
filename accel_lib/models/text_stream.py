"""From token ids that come a few at a time to text, no character cut in two; and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


class TextStream:
    """The text of one answer: what `push` gives, one after the other, and `flush` in the end, is its `decode`.

    A token may hold part of a character, and its text may depend on the token before it (a space in front), so the
    tokens since the last piece of text are decoded together with those of that piece.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # of the last piece, then the new ones
        self._known = 0  # how many are of the last piece
        self._given = ""  # what of their text was given

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain now; empty in the middle of a character."""
        pieces = []
        for token in ids:
            self._ids.append(token)
            pieces.append(self._next())
        return "".join(pieces)

    def flush(self) -> str:
        """What was held back: a character that nobody completed."""
        rest = self._decode(self._ids)[len(self._given) :]
        self._given += rest
        return rest

    def _next(self) -> str:
        text = self._decode(self._ids)
        held = _held_back(text) if len(self._ids) - self._known > _LONGEST_CHARACTER else len(text)
        if not text.endswith(_REPLACEMENT):
            held = 0
        piece = text[len(self._given) : len(text) - held]
        if held == 0 and piece:
            del self._ids[: self._known]
            self._known = len(self._ids)
            self._given = self._decode(self._ids)
        else:
            self._given += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class StopStrings:
    """Ends a text at the first of some strings, also where it lies across pieces.

    Of several, the one that is complete first counts, so the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """What may be shown now: nothing of a stop string, nor what might be the beginning of one."""
        if not self._stops or self.found is not None:
            return piece if self.found is None else ""
        text = self._held + piece
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end - len(self.found)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back and began no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop string, not complete, begins."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def _held_back(text: str) -> int:
    """Characters at the end that may still become another one."""
    marks = len(text) - len(text.rstrip(_REPLACEMENT))
    return min(marks, _LONGEST_CHARACTER - 1)
