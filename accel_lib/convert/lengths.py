"""Texts of every length that a model takes, made from a few: a fault that only long texts show is then seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel_lib.models import Model

_TRIES = 6


def texts_up_to(model: Model, texts: Sequence[str], *, longest: int) -> list[str]:
    """Repeat and cut texts at their words, to a few of 32 tokens and more, each four times as long as the one before.

    Parameters
    ----------
    model
        Its tokenizer counts, and cuts what is too long.
    texts
        Whose words to take.
    longest
        Tokens of the longest one; fewer where `accel_lib.models.attention.probe_lengths` says so.

    Returns
    -------
    list of str
        The longest first.
    """
    from accel_lib.models.attention import probe_lengths

    words = " ".join(texts).split()
    lengths = probe_lengths(model.module, longest)
    starts = range(0, len(words), -(-len(words) // len(lengths)))
    turned = [words[start:] + words[:start] for start in starts]
    made = [_of_length(model, some, length) for some, length in zip(itertools.cycle(turned), lengths, strict=False)]
    return [text for text, tokens in zip(made, model.lengths(made), strict=True) if tokens <= longest]


def _of_length(model: Model, words: Sequence[str], length: int) -> str:
    """The words, repeated until they have `length` tokens or a few more."""
    count, text = length, ""
    for _ in range(_TRIES):
        text = " ".join(itertools.islice(itertools.cycle(words), count))
        ratio = length / int(model.lengths([text])[0])
        if 0.9 <= ratio <= 1:
            break
        count = max(1, math.ceil(count * ratio))
    return text
