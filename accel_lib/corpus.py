"""The corpora that ship with the package, and the documents of mixed length that are assembled from them.

Passages, queries and reviews in ``accel_lib/data`` were written for this project; they are MIT-licensed like the code.
"""

from __future__ import annotations

import csv
import importlib.resources
import io
import math
import re
from collections.abc import Iterator

import numpy as np

from accel_lib.errors import TextError

SHIPPED = ("mixed", "short", "sentiment-train", "sentiment-test")
MIXED_COUNT = 512

_DATA = importlib.resources.files("accel_lib") / "data"
# Lengths in tokens: log-normal with a mean of 40. The limits are those of the estimate below; counted by a WordPiece
# tokenizer, documents have 3 to 256 tokens.
_MEAN_TOKENS, _SIGMA = 40.0, 0.9
_LIMITS = (3.0, 240.0)
_TRIES = 20
_WORD = re.compile(r"\w+|[^\w\s]")
_TOKENS_PER_WORD, _SPECIAL_TOKENS = 1.08, 2
# A phrase that ends in one of these is cut in the wrong place.
_DANGLING = frozenset(  # noqa: SIM905
    "a an the and or but nor of in on at to by for from with without into than that which who whose when where while"
    " because if as is are was were be it its their his her this these so not no".split()
)


def lines(corpus: str) -> list[str]:
    """Lines of a shipped text file, such as ``"short"``."""
    return (_DATA / f"{corpus}.txt").read_text(encoding="utf-8").splitlines()


def sentiment(split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels of one split of the sentiment set, ``"train"`` or ``"test"``."""
    text = (_DATA / "sentiment.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["split"] == split]
    return tuple(row["text"] for row in rows), tuple(row["label"] for row in rows)


def mixed(count: int, *, seed: int) -> list[str]:
    """Documents of mixed length, each from the sentences of one subject, none twice.

    The first documents are the same whatever the count.

    Raises
    ------
    TextError
        The passages do not make so many different documents.
    """
    subjects = _subjects()
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            return list(found)
        mu = math.log(_MEAN_TOKENS) - _SIGMA**2 / 2
        target = float(np.clip(random.lognormal(mu, _SIGMA), *_LIMITS))
        sentences = subjects[random.integers(len(subjects))]
        document = _document([sentences[i] for i in random.permutation(len(sentences))], target)
        found.setdefault(document)
    raise TextError(
        "The corpus is too small for so many different documents.",
        seen=f"{len(found):,} of {count:,} found",
        fix=f'load_texts("mixed", limit={MIXED_COUNT})',
    )


def _subjects() -> list[list[str]]:
    """Sentences by subject: a blank line ends a subject."""
    blocks = "\n".join(lines("passages")).split("\n\n")
    return [block.split("\n") for block in blocks]


def _document(sentences: list[str], target_tokens: float) -> str:
    """Whole sentences as far as they fit; where none does, the beginning of the first."""
    chosen: list[str] = []
    room = target_tokens - _SPECIAL_TOKENS
    for sentence in sentences:
        tokens = _tokens(sentence)
        if tokens <= room:
            chosen.append(sentence)
            room -= tokens
    return " ".join(chosen) or _phrase(sentences[0], room)


def _phrase(sentence: str, target_tokens: float) -> str:
    words = sentence.split()
    fitting = max(1, sum(1 for _ in _within(words, target_tokens)))
    kept = words[:fitting]
    while len(kept) > 1 and kept[-1].strip(",;:").lower() in _DANGLING:
        kept.pop()
    return " ".join(kept).rstrip(",;:.")


def _within(words: list[str], target_tokens: float) -> Iterator[str]:
    spent = 0.0
    for word in words:
        spent += _tokens(word)
        if spent > target_tokens:
            return
        yield word


def _tokens(text: str) -> float:
    """Estimated WordPiece tokens, special tokens left out."""
    return _TOKENS_PER_WORD * len(_WORD.findall(text))
