"""What a candidate keeps of its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from accel_lib.scores import Activation, same_answers
from accel_lib.stats import NEAREST, kept, nearest
from accel_lib.stats import overlap as overlap


def agreement(
    seen: NDArray[np.float32], reference: NDArray[np.float32], *, task: str, activation: Activation = "softmax"
) -> dict[str, float]:
    """Compare answers with the reference's.

    Parameters
    ----------
    seen, reference
        Vectors or logits of the same texts, float32 ``[n, dimension]``.
    task
        ``"embedding"`` or ``"classification"``.
    activation
        Of a classifier: what makes scores of its logits, see `accel_lib.scores.same_answers`.

    Returns
    -------
    dict
        ``cosine_mean``, ``cosine_min`` and ``top10_overlap`` for embeddings, ``same_label`` for classification.
    """
    if task == "classification":
        return {"same_label": float(same_answers(seen, reference, activation).mean())}
    a, b = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (seen, reference))
    cosine = np.sum(a * b, axis=1, dtype=np.float64)
    return {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()), "top10_overlap": overlap(a, b)}


def neighbours(
    texts: Sequence[str], seen: NDArray[np.float32], reference: NDArray[np.float32], *, query: int | None = None
) -> pd.DataFrame:
    """One text's ten nearest neighbours by the reference and by a candidate, side by side.

    Parameters
    ----------
    texts
        The texts, at least 12.
    seen, reference
        Their unit vectors by the candidate and by the reference, float32 ``[n, dimension]``.
    query
        Position of the text to look at; None takes the one that loses most neighbours.

    Returns
    -------
    DataFrame
        One row a rank: ``reference`` and ``candidate`` hold texts, ``lost`` and ``new`` mark those that only one side
        has among its ten. ``attrs["query"]`` is the text that was looked at.
    """
    theirs, ours = nearest(reference), nearest(seen)
    query = int(kept(ours, theirs).argmin()) if query is None else query
    lost, new = (~np.isin(x[query], y[query]) for x, y in ((theirs, ours), (ours, theirs)))
    frame = pd.DataFrame(
        {
            "reference": [texts[i] for i in theirs[query]],
            "lost": np.where(lost, "lost", ""),
            "candidate": [texts[i] for i in ours[query]],
            "new": np.where(new, "new", ""),
        },
        index=pd.RangeIndex(1, NEAREST + 1, name="rank"),
    )
    frame.attrs["query"] = texts[query]
    return frame
