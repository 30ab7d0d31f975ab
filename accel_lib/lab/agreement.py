"""What a candidate keeps of its reference."""

from __future__ import annotations

import numpy as np
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
    near = []
    for vectors in (a, b):
        similar = vectors @ vectors.T
        np.fill_diagonal(similar, -np.inf)
        near.append(np.argpartition(-similar, _NEAREST, axis=1)[:, :_NEAREST])
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(*near, strict=True)]))
