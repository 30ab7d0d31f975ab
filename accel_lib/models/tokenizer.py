"""From texts to ragged rows of token ids, with the Rust `tokenizers` alone (no torch, no transformers)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from accel_lib.errors import ArtifactError, ModelError, TextError
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
        side = (self._backend.truncation or {}).get("direction", "right")
        self._backend.no_padding()
        self._backend.enable_truncation(max_length, direction=side)
        self.max_length = max_length
        self.pad_id = pad_id
        self.segments = segments
        self._single_segments = segments and any(self._backend.encode("a").type_ids)

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
        self, texts: Sequence[str], *, prompt: str = "", seconds: Sequence[str] | None = None
    ) -> tuple[Ragged, NDArray[np.int64]]:
        """Tokenize texts or pairs, and count the tokens each had before it was cut.

        Parameters
        ----------
        seconds
            The second halves of pairs, one a text.

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
        checked = clean(texts)
        firsts = [prompt + text for text in checked]
        encoded = self._backend.encode_batch(
            firsts if seconds is None else list(zip(firsts, clean(seconds), strict=True))
        )
        special = self._backend.num_special_tokens_to_add(seconds is not None)
        rows = Ragged.of([np.array(item.ids, dtype=np.int64) for item in encoded])
        if not rows.lengths.all():
            index = int(rows.lengths.argmin())
            raise TextError(
                f"Text {index} has no token this tokenizer knows.",
                seen=repr(checked[index][:40]),
                fix="leave it out",
            )
        if self._single_segments or (self.segments and seconds is not None):
            segments = Ragged.of([np.array(item.type_ids, dtype=np.int64) for item in encoded]).ids
            rows = dataclasses.replace(rows, segments=segments)
        lengths = [len(item.ids) + sum(len(rest.ids) - special for rest in item.overflowing) for item in encoded]
        return rows, np.array(lengths, dtype=np.int64)

    def cutting(self, side: Literal["left", "right"]) -> Tokenizer:
        """The same tokenizer, which cuts what is too long at this side."""
        other = Tokenizer(self._backend, max_length=self.max_length, pad_id=self.pad_id, segments=self.segments)
        other._backend.enable_truncation(self.max_length, direction=side)
        return other

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`; truncation, lower-casing and the padding id travel inside."""
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.enable_padding(pad_id=self.pad_id, pad_token=copy.id_to_token(self.pad_id) or "")
        copy.save(str(path))

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
