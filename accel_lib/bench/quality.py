"""What a candidate's vectors are judged by: shipped texts, the reference's vectors of them, and a sentiment head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.models import Model
from accel_lib.stats import Quality, measure_quality
from accel_lib.texts import load_texts

# Sentences on many subjects, queries, reviews and messages, 1,866 different texts. Documents made of the same sentences
# ("mixed") would have neighbours that hardly any rounding moves: 97% of them stay where of these 92% do.
_CORPORA = ("passages", "short", "sentiment-train", "sentiment-test")
_MOST_ITERATIONS = 2_000

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def judged_texts() -> list[str]:
    """The 1,866 texts that ship which neighbours are compared on, the held-out labelled ones at the end."""
    return [text for name in _CORPORA for text in load_texts(name)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityJudge:
    """A reference's vectors of the texts that candidates are judged by; made by `quality_judge`.

    Parameters
    ----------
    texts, vectors
        Texts whose neighbours are compared, and the reference's vectors of them, float32 ``[n, dimension]``.
    labels
        Labels of the last texts, which the head was not trained on, str ``[m]``.
    predict
        The head: labels of vectors.
    """

    texts: list[str]
    vectors: NDArray[np.float32]
    labels: NDArray[np.str_]
    predict: Callable[[NDArray[np.float32]], NDArray[np.str_]]

    def quality(self, encode: Encode) -> Quality:
        """Judge a candidate by its vectors of the same texts, whatever computes them."""
        seen = encode(self.texts)
        return measure_quality(seen, self.vectors, correct=(self._correct(seen), self._correct(self.vectors)))

    def _correct(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.predict(vectors[-len(self.labels) :]) == self.labels
        return right


def quality_judge(model: Model) -> QualityJudge:
    """Encode the texts that ship with a model's own reference, and train a head for sentiment on its vectors.

    The head is trained on the reference's vectors alone: a candidate takes the reference's place in front of it, as a
    new version of an embedding does in front of what was built on the old one.

    Parameters
    ----------
    model
        An embedding model.
    """
    linear_model = require("sklearn.linear_model", extra="models")
    texts, train, test = judged_texts(), load_texts("sentiment-train"), load_texts("sentiment-test")
    vectors = model.reference(texts)
    trained_on = vectors[-len(train) - len(test) : -len(test)]
    head = linear_model.LogisticRegression(max_iter=_MOST_ITERATIONS, C=10).fit(trained_on, train.labels)
    return QualityJudge(texts=texts, vectors=vectors, labels=np.array(test.labels), predict=head.predict)
