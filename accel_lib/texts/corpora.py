"""Corpora that ship with the package, and documents of mixed length assembled from them.

Passages, questions, queries and reviews in ``accel_lib/data`` were written for this project; they are MIT-licensed like
the code.
"""

from __future__ import annotations

import csv
import importlib.resources
import io
import math
import re

import numpy as np

from accel_lib.errors import TextError

SHIPPED = ("mixed", "short", "passages", "sentiment-train", "sentiment-test")
MIXED_COUNT = 512

_DATA = importlib.resources.files("accel_lib") / "data"
# Lengths in tokens, log-normal, as `_tokens` estimates them; MiniLM's tokenizer counts 3 to 256, 40 on average.
_MEAN_TOKENS, _SIGMA = 42.0, 0.9
_LIMITS = (3.0, 240.0)
_SLACK = 0.1  # room that may stay empty, as a share of the target
_MOST_MISSES = 1_000  # documents drawn in a row that were drawn before
_WORD = re.compile(r"\w+|[^\w\s]")
_TOKENS_PER_WORD, _SPECIAL_TOKENS = 1.05, 2
_MARKS = ",;:."


def lines(corpus: str) -> list[str]:
    """Lines of a shipped text file, such as ``"short"``."""
    return (_DATA / f"{corpus}.txt").read_text(encoding="utf-8").splitlines()


def blocks(corpus: str) -> list[list[str]]:
    """Lines of a shipped text file by subject, of which an empty line separates two."""
    return [block.split("\n") for block in "\n".join(lines(corpus)).strip().split("\n\n")]


# A phrase must not end in one of these words.
_DANGLING = frozenset(" ".join(lines("function-words")).split())


def table(name: str) -> list[dict[str, str]]:
    """Rows of a shipped table, such as ``"sentiment"``."""
    return list(csv.DictReader(io.StringIO((_DATA / f"{name}.csv").read_text(encoding="utf-8"))))


def sentiment(split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels of one split of the sentiment set, ``"train"`` or ``"test"``."""
    rows = [row for row in table("sentiment") if row["split"] == split]
    return tuple(row["text"] for row in rows), tuple(row["label"] for row in rows)


def mixed(count: int, *, seed: int) -> list[str]:
    """Different documents of mixed length, each from the sentences of one subject; `TextError` if there are too few.

    The first documents are the same whatever the count.
    """
    subjects = blocks("passages")
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    target, misses = _length(random), 0
    while len(found) < count and misses < _MOST_MISSES:
        sentences = subjects[random.integers(len(subjects))]
        document = _document([sentences[i] for i in random.permutation(len(sentences))], target)
        if document in found:
            misses += 1
            continue
        found[document] = None
        target, misses = _length(random), 0
    if len(found) == count:
        return list(found)
    raise TextError(
        "The passages do not make that many different documents.",
        seen=f"{len(found):,} of {count:,}",
        fix=f'load_texts("mixed", limit={len(found)})',
    )


def _length(random: np.random.Generator) -> float:
    mu = math.log(_MEAN_TOKENS) - _SIGMA**2 / 2
    return float(np.clip(random.lognormal(mu, _SIGMA), *_LIMITS))


def _document(sentences: list[str], tokens: float) -> str:
    """Whole sentences while they fit, then the beginning of the next one if much room is left."""
    room = tokens - _SPECIAL_TOKENS
    chosen: list[str] = []
    for sentence in sentences:
        if _tokens(sentence) > room:
            break
        chosen.append(sentence)
        room -= _tokens(sentence)
    if room > _SLACK * tokens and len(chosen) < len(sentences):
        chosen.append(_phrase(sentences[len(chosen)].split(), room))
    return " ".join(chosen)


def _phrase(words: list[str], tokens: float) -> str:
    """The words that fit, at least one, cut back to where a phrase may end."""
    spent = np.cumsum([_tokens(word) for word in words])
    kept = words[: int(np.searchsorted(spent, tokens, side="right"))]
    while kept and kept[-1].strip(_MARKS).lower() in _DANGLING:
        kept = kept[:-1]
    for end in range(len(kept) - 1, max(2, len(kept) - 4), -1):
        if kept[end - 1][-1] in _MARKS:
            kept = kept[:end]
    kept = kept or [word for word in words if word.lower() not in _DANGLING][:1]
    return " ".join(kept).rstrip(_MARKS)


def _tokens(text: str) -> float:
    """Estimated WordPiece tokens, special tokens left out."""
    return _TOKENS_PER_WORD * len(_WORD.findall(text))
