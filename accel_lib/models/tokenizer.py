"""From texts to ragged rows of token ids, with the Rust `tokenizers` alone (no torch, no transformers)."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from accel_lib.errors import ArtifactError, ModelError, TextError
from accel_lib.models.long_texts import PIECE_CHARS, divided
from accel_lib.ragged import Ragged
from accel_lib.texts import clean

_REBUILD = "save it again: model.tokenizer.save(folder / 'tokenizer.json')"


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


class _Content(NamedTuple):
    """Tokens of one text without special tokens: those that a row can keep, and the number of all."""

    ids: NDArray[np.int64]
    total: int


_NOTHING = _Content(np.empty(0, dtype=np.int64), 0)


class _Run(NamedTuple):
    """A part of a row: special tokens, or the place of the first (0) or second (1) half."""

    half: int | None
    ids: NDArray[np.int64]
    segments: NDArray[np.int64]


class Tokenizer:
    """A model's own tokenizer: special tokens in, truncation at `max_length`, never any padding.

    Parameters
    ----------
    backend
        The tokenizer to use; it is copied, so the caller's stays as it is.
    max_length
        Longest row in tokens, special tokens included.
    pad_id
        Id that `pad` fills with; it is masked, so it never changes a result.
    segments
        Whether the model takes segment ids, which tell the texts of a pair apart.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, max_length: int, pad_id: int, segments: bool = False) -> None:
        self._side = str((backend.truncation or {}).get("direction", "right"))
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()  # `rows` cuts: the library keeps what it cuts off, for pairs every combination
        self._frames = {pair: _frame(self._backend, pair) for pair in (False, True)}
        self.max_length = max_length
        self.pad_id = pad_id
        self.segments = segments
        self._single_segments = segments and any(run.segments.any() for run in self._frames[False])

    def __call__(self, texts: Sequence[str], *, prompt: str = "") -> list[NDArray[np.int64]]:
        """Tokenize texts, each with `prompt` in front.

        Returns
        -------
        list of int64 arrays
            One row of ids a text, shape ``[tokens]``, special tokens included, at most `max_length` long.

        Raises
        ------
        TextError
            A text is blank, not a string, holds lone surrogates, or leaves no token at all.
        """
        return list(self.counted(texts, prompt=prompt)[0])

    def counted(
        self, texts: Sequence[str], *, prompt: str = "", seconds: Sequence[str | None] | None = None
    ) -> tuple[Ragged, NDArray[np.int64]]:
        """Tokenize texts or pairs, and count the tokens each had before it was cut.

        Parameters
        ----------
        seconds
            The second halves of pairs, one a text; None beside a text that is none.

        Returns
        -------
        rows
            The ids of each row; for a model that takes them, with segment ids, cut where the ids are.
        lengths
            int64 ``[n]``: more than the row has if it was cut.

        Raises
        ------
        TextError
            As `__call__`.
        """
        found = list(self.rows(texts, prompt=prompt, seconds=seconds))
        lengths = np.array([row.length for row in found], dtype=np.int64)
        return self.together(found, pairs=seconds is not None), lengths

    def together(self, rows: Sequence[Row], *, pairs: bool) -> Ragged:
        """Rows of `rows`, with segment ids if the model takes them and they are not all 0."""
        found = Ragged.of([row.ids for row in rows])
        if not rows or not (self._single_segments or (self.segments and pairs)):
            return found
        return dataclasses.replace(found, segments=np.concatenate([row.segments for row in rows]))

    def rows(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        seconds: Sequence[str | None] | None = None,
        count_to: int | None = None,
    ) -> Iterator[Row]:
        """Tokenize texts or pairs one after the other, in memory that does not grow with their number.

        Cuts as the `tokenizers` library does; of a pair, the longer half first.

        Parameters
        ----------
        count_to
            Stop counting the tokens of a long text beyond this number; None counts all.

        Raises
        ------
        TextError
            As `__call__`.
        """
        checked = clean(texts)
        halves = [None] * len(checked) if seconds is None else seconds
        firsts = self._contents([prompt + text for text in checked], count_to)
        others = self._contents(clean(half for half in halves if half is not None), count_to)
        for index, half in enumerate(halves):
            pair = half is not None
            try:
                parts = (next(firsts), next(others) if pair else _NOTHING)
            except TextError as error:
                raise TextError(f"Text {index}: {error.cause}", seen=error.seen, fix=error.fix) from error
            special = self._backend.num_special_tokens_to_add(pair)
            kept = _longest_first(parts[0].total, parts[1].total, self.max_length - special)
            row = self._framed([self._cut(part.ids, most) for part, most in zip(parts, kept, strict=True)], pair)
            if not row.ids.size:
                raise TextError(
                    f"Text {index} has no token this tokenizer knows.",
                    seen=repr(checked[index][:40]),
                    fix="leave it out",
                )
            yield row._replace(length=parts[0].total + parts[1].total + special)

    def spell(self, text: str, *, special: bool = True) -> list[dict[str, Any]]:
        """What a text becomes, uncut: of each token its id, the text that it stands for, and where that is.

        Returns
        -------
        list of dict
            ``id``, ``text``, ``special``, and ``start`` and ``stop`` in bytes of UTF-8; None for special tokens, which
            are left out unless `special`.
        """
        found = self._backend.encode(text, add_special_tokens=special)
        places = [0, *itertools.accumulate(len(character.encode()) for character in text)]
        facts = zip(found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True)
        return [
            {
                "id": number,
                "text": token if added else text[start:stop],
                "special": bool(added),
                "start": None if added else places[start],
                "stop": None if added else places[stop],
            }
            for number, token, added, (start, stop) in facts
        ]

    def read(self, rows: Sequence[Sequence[int]], *, special: bool = False) -> list[str]:
        """The texts that rows of token ids stand for, with or without special tokens; unknown ids are left out."""
        found: list[str] = self._backend.decode_batch(rows, skip_special_tokens=not special)
        return found

    def _contents(self, texts: Sequence[str], count_to: int | None) -> Iterator[_Content]:
        """The tokens of each text without special tokens; texts of some ten thousand characters at once."""
        group: list[str] = []
        chars = 0
        for text in texts:
            if group and chars + len(text) > PIECE_CHARS:
                yield from self._encoded(group, count_to)
                group, chars = [], 0
            group.append(text)
            chars += len(text)
        yield from self._encoded(group, count_to)

    def _encoded(self, group: list[str], count_to: int | None) -> Iterator[_Content]:
        if len(group) == 1 and len(group[0]) > 2 * PIECE_CHARS:
            yield self._in_pieces(group[0], count_to)
            return
        for item in self._backend.encode_batch_fast(group, add_special_tokens=False):
            ids = np.array(item.ids, dtype=np.int64)
            yield _Content(self._cut(ids, self.max_length), len(ids))

    def _in_pieces(self, text: str, count_to: int | None) -> _Content:
        def ids_of(piece: str) -> list[int]:
            found: list[int] = self._backend.encode_batch_fast([piece], add_special_tokens=False)[0].ids
            return found

        pieces = divided(text, ids_of)
        kept, total = _NOTHING
        for piece in pieces if self._side == "right" else reversed(list(pieces)):
            ids = np.array(ids_of(piece), dtype=np.int64)
            total += len(ids)
            order = (kept, ids) if self._side == "right" else (ids, kept)
            kept = self._cut(np.concatenate(order), self.max_length)
            if count_to is not None and total > max(count_to, self.max_length):
                break
        return _Content(kept, total)

    def _cut(self, ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        return ids[:most] if self._side == "right" else ids[max(0, len(ids) - most) :]

    def _framed(self, halves: Sequence[NDArray[np.int64]], pair: bool) -> Row:
        """The special tokens around the halves."""
        frame = self._frames[pair]
        ids = [run.ids if run.half is None else halves[run.half] for run in frame]
        segments = [
            run.segments if run.half is None else np.full(len(halves[run.half]), run.segments[0]) for run in frame
        ]
        row = np.concatenate(ids)
        return Row(row, np.concatenate(segments), len(row))

    def cutting(self, side: Literal["left", "right"]) -> Tokenizer:
        """The same tokenizer, which cuts what is too long at this side."""
        other = copy.copy(self)
        other._side = side
        return other

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`; truncation, lower-casing and the padding id travel inside."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.enable_truncation(self.max_length, direction=self._side)
        backend.enable_padding(pad_id=self.pad_id, pad_token=backend.id_to_token(self.pad_id) or "")
        backend.save(str(path))

    @classmethod
    def load(cls, path: str | Path, max_length: int | None = None, *, segments: bool = False) -> Tokenizer:
        """Read what `save` wrote; `max_length` shortens the file's own limit, `segments` is as for the class.

        Raises
        ------
        ArtifactError
            The file is missing, unreadable, or does not say where to truncate and what to pad with.
        """
        path = Path(path)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises the base class, for a missing file as for a broken one
            raise ArtifactError(f"{path.name} cannot be read as a tokenizer.", seen=error, fix=_REBUILD) from error
        if not backend.truncation or not backend.padding:
            missing = "truncation" if not backend.truncation else "padding id"
            raise ArtifactError(f"{path.name} was not saved by this library.", seen=f"no {missing}", fix=_REBUILD)
        limit = int(backend.truncation["max_length"])
        pad_id = int(backend.padding["pad_id"])
        return cls(backend, max_length=min(limit, max_length or limit), pad_id=pad_id, segments=segments)


def _frame(backend: tokenizers.Tokenizer, pair: bool) -> list[_Run]:
    """What this tokenizer puts around a text or a pair, read from one of its own tokens."""
    tokens = (backend.id_to_token(index) or "" for index in range(backend.get_vocab_size()))
    word = next((token for token in tokens if backend.encode(token, add_special_tokens=False).ids), "")
    framed = backend.encode(word, word if pair else None)
    runs = itertools.groupby(zip(framed.sequence_ids, framed.ids, framed.type_ids, strict=True), lambda each: each[0])
    return [_Run(half, *np.array([each[1:] for each in items], dtype=np.int64).T) for half, items in runs]


def _longest_first(first: int, second: int, most: int) -> tuple[int, int]:
    """Tokens that are kept of both halves: `tokenizers`' ``longest_first``."""
    shorter, longer = sorted((first, second))
    if first + second > most:
        longer = max(shorter, most - shorter)
        if shorter + longer > most:
            shorter, longer = most // 2, most - most // 2
    return (longer, shorter) if first > second else (shorter, longer)


def pad(rows: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stack ragged rows into one batch, filled on the right.

    Returns
    -------
    input_ids, attention_mask
        int64 arrays of shape ``[batch, longest row]``; the mask is 1 on tokens and 0 on padding.
    """
    input_ids, attention_mask = Ragged.of(rows).padded(pad_id)
    return input_ids, attention_mask


def prompt_text(prompts: Mapping[str, str], default_prompt: str | None, asked: str | None = None) -> str:
    """The text to put in front: the prompt called `asked`, else the default one, else nothing.

    Raises
    ------
    ModelError
        There is no prompt of that name; an empty string asks for none.
    """
    name = default_prompt if asked is None else asked
    if not name:
        return ""
    if name not in prompts:
        raise ModelError(
            "The model has no prompt of that name.",
            seen=f"{name!r}; it has {', '.join(prompts) or 'none'}",
            fix="pass the name of one of its prompts, or put your own words in front of each text",
        )
    return prompts[name]
