"""From texts to ragged rows of token ids, with the Rust `tokenizers` alone (no torch, no transformers)."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from accel_lib.errors import ArtifactError, ModelError, TextError
from accel_lib.models.encoding import NOTHING, Encoder, Row, longest_first
from accel_lib.ragged import Ragged
from accel_lib.texts import clean

_REBUILD = "save it again: model.tokenizer.save(folder / 'tokenizer.json')"


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
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()  # `rows` cuts: the library keeps what it cuts off, for pairs every combination
        self.max_length = max_length
        self.pad_id = pad_id
        self.segments = segments
        side = str((backend.truncation or {}).get("direction", "right"))
        self._encoder = Encoder(self._backend, side=side, most=max_length)

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
        return list(self.encode_with_lengths(texts, prompt=prompt)[0])

    def encode_with_lengths(
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
        found = Ragged.from_rows([row.ids for row in rows])
        if not rows or not (self.segments and (pairs or self._encoder.single_segments)):
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
        firsts = self._encoder.contents([prompt + text for text in checked], count_to)
        others = self._encoder.contents(clean(half for half in halves if half is not None), count_to)
        for index, half in enumerate(halves):
            pair = half is not None
            try:
                parts = (next(firsts), next(others) if pair else NOTHING)
            except TextError as error:
                raise TextError(f"Text {index}: {error.cause}", seen=error.seen, fix=error.fix) from error
            special = self._backend.num_special_tokens_to_add(pair)
            kept = longest_first(parts[0].total, parts[1].total, self.max_length - special)
            cut = [self._encoder.cut(part.ids, most) for part, most in zip(parts, kept, strict=True)]
            row = self._encoder.framed(cut, pair)
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

    def cutting(self, side: Literal["left", "right"]) -> Tokenizer:
        """The same tokenizer, which cuts what is too long at this side."""
        other = copy.copy(self)
        other._encoder = copy.copy(self._encoder)
        other._encoder.side = side
        return other

    def with_segments(self) -> Tokenizer:
        """The same tokenizer for a model that takes segment ids."""
        other = copy.copy(self)
        other.segments = True
        return other

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`; truncation, lower-casing and the padding id travel inside."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.enable_truncation(self.max_length, direction=self._encoder.side)
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


def pad(rows: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stack ragged rows into one batch, filled on the right.

    Returns
    -------
    input_ids, attention_mask
        int64 arrays of shape ``[batch, longest row]``; the mask is 1 on tokens and 0 on padding.
    """
    input_ids, attention_mask = Ragged.from_rows(rows).padded(pad_id)
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
