"""What a reranker gains over the vectors alone: the same nearest passages of each question, in both orders."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import UNCHANGED, capital
from accel_lib.measurement import Result, to_frame
from accel_lib.stats import mean_difference
from accel_lib.texts.questions import Questions

_DEEPEST = 10  # of nDCG


class Embeds(Protocol):
    """An embedding model, or one that is served."""

    def encode(self, texts: list[str], /) -> NDArray[np.float32]:
        """Vectors ``[n, dimension]``."""


class Scores(Protocol):
    """A reranker, or one that is served."""

    def encode(self, texts: list[str], seconds: list[str], /) -> NDArray[np.float32]:
        """Logits ``[n, 1]`` of pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RankingComparison(Result):
    """Two orders of the same passages, one row each, and what the second gains.

    Parameters
    ----------
    ranks
        int64 ``[2, questions]``: the place of each question's own passage, from 1.
    gain, low, high
        Of nDCG@10, with its 95% interval over the questions.
    """

    ranks: NDArray[np.int64]
    gain: float
    low: float
    high: float

    @property
    def headline(self) -> str:
        """What reranking gains, if anything."""
        first, second = self.frame["ndcg_at_10"]
        seen = f"nDCG@10 {first:.3f} by vectors, {second:.3f} reranked: {self.gain:+.3f}"
        seen += f" (95% interval {self.low:+.3f} to {self.high:+.3f}) on {self.ranks.shape[1]} questions"
        if self.low <= 0 <= self.high:
            return f"{capital(UNCHANGED)}: {seen}"
        return f"Reranking {'helps' if self.gain > 0 else 'harms'}: {seen}"


def compare_ranking(
    model: Embeds, reranker: Scores, questions: Questions, *, candidates: int = 20
) -> RankingComparison:
    """Rank passages by the vectors of a model, then the first of them again by a reranker.

    Parameters
    ----------
    model
        An embedding model, which finds the candidates: a `Model`, or a served one.
    reranker
        What scores pairs: a `Model`, or a served one.
    questions
        Questions that the reranker was not trained on: ``load_questions("test")``.
    candidates
        Passages of each question that are ranked again.

    Returns
    -------
    RankingComparison
        nDCG@10 and the reciprocal rank of each question's passage, on average, and the share that is first; with the
        interval of a paired bootstrap over the questions (`accel_lib.stats.mean_difference`).

    Raises
    ------
    AccelError
        There is no such number of candidates.
    """
    if candidates < 2:
        raise AccelError("There is nothing to rank.", seen=f"candidates={candidates}", fix="candidates=20")
    cosines = model.encode([*questions.questions]) @ model.encode([*questions.passages]).T
    order = np.argsort(-cosines, axis=1, kind="stable")
    answers = np.array(questions.answers)
    before = np.argmax(order == answers[:, None], axis=1) + 1
    after = before.copy()
    for row in np.flatnonzero(before <= candidates).tolist():
        near = [questions.passages[i] for i in order[row, :candidates].tolist()]
        logits = reranker.encode([questions.questions[row]] * len(near), near)[:, 0]
        after[row] = 1 + np.count_nonzero(logits > logits[before[row] - 1])
    gain, low, high = mean_difference(ndcg(after), ndcg(before))
    rows = [_row("by vectors", before), _row(f"the first {candidates} reranked", after)]
    ranks = np.stack([before, after])
    return RankingComparison(frame=to_frame(rows), ranks=ranks, gain=gain, low=low, high=high)


def ndcg(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """nDCG@10 of questions that one passage answers, by its rank: 1 / log2(1 + rank), 0 beyond the tenth."""
    return np.where(ranks <= _DEEPEST, 1 / np.log2(1 + ranks), 0.0)


def _row(name: str, ranks: NDArray[np.int64]) -> dict[str, object]:
    return {
        "name": name,
        "ndcg_at_10": float(ndcg(ranks).mean()),
        "reciprocal_rank": float((1 / ranks).mean()),
        "first": float((ranks == 1).mean()),
    }
