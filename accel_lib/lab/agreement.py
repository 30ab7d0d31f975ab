"""What a candidate keeps of its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_NEAREST = 10


def agreement(seen: NDArray[np.float32], reference: NDArray[np.float32], *, task: str) -> dict[str, float]:
    """Compare answers with the reference's.

    Parameters
    ----------
    seen, reference
        Vectors or logits of the same texts, float32 ``[n, dimension]``.
    task
        ``"embedding"`` or ``"classification"``.

    Returns
    -------
    dict
        ``cosine_mean``, ``cosine_min`` and ``top10_overlap`` for embeddings, ``same_label`` for classification.
    """
    if task == "classification":
        return {"same_label": float(np.mean(seen.argmax(axis=1) == reference.argmax(axis=1)))}
    a, b = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (seen, reference))
    cosine = np.sum(a * b, axis=1, dtype=np.float64)
    return {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()), "top10_overlap": overlap(a, b)}


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share of each text's ten nearest neighbours that are the same in both, the text itself left out.

    Parameters
    ----------
    a, b
        Unit vectors of the same texts, float32 ``[n, dimension]``.

    Returns
    -------
    float
        NaN under 12 texts, among which ten neighbours say nothing.
    """
    if len(a) < _NEAREST + 2:
        return float("nan")
    return float(_kept(_nearest(a), _nearest(b)).mean())


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
    theirs, ours = _nearest(reference), _nearest(seen)
    query = int(_kept(ours, theirs).argmin()) if query is None else query
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
