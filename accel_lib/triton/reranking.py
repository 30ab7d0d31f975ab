"""Passages in the order in which a reranker finds them relevant to a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.scores import to_scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedPassage:
    """One passage: its place in what was asked, its logit, the logit's sigmoid (0 to 1), and its text."""

    index: int
    logit: float
    score: float
    text: str


def ranked(passages: Sequence[str], logits: NDArray[np.float32]) -> list[RankedPassage]:
    """Passages, the best first, of equal ones the earlier one; `logits` is float32 ``[n, 1]``."""
    scores = to_scores(logits, "sigmoid")
    order = np.argsort(-logits[:, 0], kind="stable").tolist()
    return [
        RankedPassage(index=i, logit=float(logits[i, 0]), score=float(scores[i, 0]), text=passages[i]) for i in order
    ]
