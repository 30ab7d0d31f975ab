"""What a candidate's vectors are judged by: shipped texts, the reference's vectors of them, and a sentiment head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import require
from accel_lib.models import Model
from accel_lib.stats import Quality, measure_quality
from accel_lib.texts import Texts, load_texts

JUDGED_TEXTS = 1_024
_MOST_ITERATIONS = 2_000

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityJudge:
    """A reference's vectors of the texts that candidates are judged by; made by `quality_judge`.

    Parameters
    ----------
    texts, vectors
        Texts whose neighbours are compared, and the reference's vectors of them, float32 ``[n, dimension]``.
    labelled, correct
        Held-out labelled texts, and which of them the head gets right on the reference's vectors, bool ``[m]``.
    predict
        The head: labels of vectors.
    """

    texts: Texts
    vectors: NDArray[np.float32]
    labelled: Texts
    correct: NDArray[np.bool_]
    predict: Callable[[NDArray[np.float32]], NDArray[np.str_]]

    def quality(self, encode: Encode) -> Quality:
        """Judge a candidate by its vectors of the same texts, whatever computes them."""
        right = self.predict(encode(self.labelled)) == np.array(self.labelled.labels)
        return measure_quality(encode(self.texts), self.vectors, correct=(right, self.correct))


def quality_judge(model: Model, *, texts: int = JUDGED_TEXTS) -> QualityJudge:
    """Encode the shipped texts with a model's own reference, and train a head for sentiment on its vectors.

    The head is trained on the reference's vectors alone: a candidate takes the reference's place in front of it, as a
    new version of an embedding does in front of what was built on the old one.

    Parameters
    ----------
    model
        An embedding model.
    texts
        How many of the ``"mixed"`` documents to compare neighbours on.
    """
    linear_model = require("sklearn.linear_model", extra="models")
    judged, train = load_texts("mixed", limit=texts), load_texts("sentiment-train")
    labelled = load_texts("sentiment-test")
    head = linear_model.LogisticRegression(max_iter=_MOST_ITERATIONS, C=10).fit(model.reference(train), train.labels)
    return QualityJudge(
        texts=judged,
        vectors=model.reference(judged),
        labelled=labelled,
        correct=head.predict(model.reference(labelled)) == np.array(labelled.labels),
        predict=head.predict,
    )
