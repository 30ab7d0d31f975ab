"""From a classifier's logits to its scores: softmax, sigmoid or none, as transformers and CrossEncoder apply them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["softmax", "sigmoid", "identity"]


def to_scores(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Scores of the labels.

    Parameters
    ----------
    logits
        float32 ``[n, labels]``.
    activation
        ``"softmax"`` (one label of several is right), ``"sigmoid"`` (each label by itself) or ``"identity"``.

    Returns
    -------
    float32 array ``[n, labels]``

    Examples
    --------
    >>> to_scores(np.array([[0.0, 0.0]], dtype=np.float32), "softmax")
    array([[0.5, 0.5]], dtype=float32)
    """
    if activation == "identity":
        return np.ascontiguousarray(logits, dtype=np.float32)
    if activation == "sigmoid":
        falling = np.exp(-np.abs(logits))  # of magnitudes, which never overflows
        return np.ascontiguousarray(np.where(logits < 0, falling, 1) / (1 + falling), dtype=np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.ascontiguousarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def unique_labels(labels: Sequence[str]) -> list[str]:
    """Label names as the keys of a mapping: one that occurred before carries its index, as in ``"a", "a (1)"``."""
    names: list[str] = []
    for index, label in enumerate(labels):
        name = label
        while name in names or (name != label and name in labels):
            name = f"{name} ({index})"
        names.append(name)
    return names
