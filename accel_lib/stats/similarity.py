"""How well vectors agree with a reference: cosine, the nearest neighbours that stay, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accel_lib.scores import Activation, same_answers

if TYPE_CHECKING:
    import pandas as pd

_NEAREST = 10  # neighbours of a text that count


def agreement(
    seen: NDArray[np.float32], reference: NDArray[np.float32], *, task: str, activation: Activation = "softmax"
) -> dict[str, float]:
    """Compare outputs with the reference's, both float32 ``[n, dimension]``.

    Returns ``cosine_mean``, ``cosine_min`` and ``top10_overlap`` for the task ``"embedding"``, ``same_label`` for
    ``"classification"``, whose `activation` makes scores of its logits (`accel_lib.scores.same_answers`).
    """
    if task == "classification":
        return {"same_label": float(same_answers(seen, reference, activation).mean())}
    near = cosine(seen, reference)
    return {
        "cosine_mean": float(near.mean()),
        "cosine_min": float(near.min()),
        "top10_overlap": overlap(seen, reference),
    }


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of `a` to the same row of `b`, both ``[n, dimension]``; 0 to a row of zeros."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: NDArray[np.float64] = (a * b).sum(axis=1, dtype=np.float64) / np.maximum(norms, 1e-12)
    return products


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share of each text's ten nearest neighbours that are the same in both, the text itself left out.

    Both hold vectors of the same texts, float32 ``[n, dimension]``. NaN under 12 texts, where it says nothing.
    """
    return float(kept_neighbours(a, b).mean()) if len(a) >= _NEAREST + 2 else float("nan")


def kept_neighbours(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of each text's ten nearest neighbours by cosine that both have, float64 ``[n]``; rows of any length."""
    a, b = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) for vectors in (a, b))
    return _kept(_nearest(a), _nearest(b))


def neighbours(texts: Sequence[str], seen: NDArray[np.float32], reference: NDArray[np.float32]) -> pd.DataFrame:
    """The ten nearest neighbours of the text that loses most of them, by the reference and by a candidate.

    Parameters
    ----------
    texts
        The texts, at least 12.
    seen, reference
        Their unit vectors by the candidate and by the reference, float32 ``[n, dimension]``.

    Returns
    -------
    DataFrame
        One row a rank: ``reference`` and ``candidate`` hold texts, ``lost`` and ``new`` mark those that only one side
        has among its ten. ``attrs["query"]`` is the text that was looked at.
    """
    import pandas as pd

    theirs, ours = _nearest(reference), _nearest(seen)
    query = int(_kept(ours, theirs).argmin())
    lost, new = (~np.isin(x[query], y[query]) for x, y in ((theirs, ours), (ours, theirs)))
    frame = pd.DataFrame(
        {
            "reference": [texts[i] for i in theirs[query]],
            "lost": np.where(lost, "lost", ""),
            "candidate": [texts[i] for i in ours[query]],
            "new": np.where(new, "new", ""),
        },
        index=pd.RangeIndex(1, _NEAREST + 1, name="rank"),
    )
    frame.attrs["query"] = texts[query]
    return frame


def _nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ten nearest others of each, nearest first."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    order: NDArray[np.int64] = np.argsort(-similar, axis=1, kind="stable")[:, :_NEAREST]
    return order


def _kept(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each row of `a` that is in the same row of `b`."""
    return np.array([np.isin(x, y).mean() for x, y in zip(a, b, strict=True)])
