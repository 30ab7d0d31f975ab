"""Scores from a classifier's logits, as transformers and CrossEncoder compute them, and errors between logits."""

from __future__ import annotations

import dataclasses
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


def same_answers(seen: NDArray[np.float32], wanted: NDArray[np.float32], activation: Activation) -> NDArray[np.float64]:
    """How much of each text's answer two models share, 0 to 1, float64 ``[n]``; 0 where their labels differ in number.

    Of softmax that is the likeliest label; of sigmoids the share of labels on the same side of one half; of numbers the
    share that are within a tenth.
    """
    if seen.shape != wanted.shape:
        return np.zeros(len(wanted))
    if activation == "softmax":
        same = seen.argmax(axis=1, keepdims=True) == wanted.argmax(axis=1, keepdims=True)
    elif activation == "sigmoid":
        same = (seen > 0) == (wanted > 0)
    else:
        same = np.abs(seen - wanted) <= 0.1 * np.maximum(np.abs(wanted), 1)
    share: NDArray[np.float64] = same.mean(axis=1)
    return share


def unique_labels(labels: Sequence[str]) -> list[str]:
    """Label names as the keys of a mapping: one that occurred before carries its index, as in ``"a", "a (1)"``."""
    names: list[str] = []
    for index, label in enumerate(labels):
        name = label
        while name in names or (name != label and name in labels):
            name = f"{name} ({index})"
        names.append(name)
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitErrors:
    """How far logits are from others, in shares of the others' spread.

    Parameters
    ----------
    worst, typical
        Largest difference, and root of the mean square of the label that differs most.
    scale
        By what factor they are too large, from a line through all of them; 1 where they are not.
    """

    worst: float
    typical: float
    scale: float


def logit_errors(seen: NDArray[np.float32], wanted: NDArray[np.float32]) -> LogitErrors:
    """Compare logits ``[n, labels]`` of the same texts.

    A label is judged by how far its own logits lie apart from text to text: that decides which text gets which label,
    whatever the softmax of one, two or many of them makes of it. A label that hardly moves is judged by a quarter of
    what all labels do, and a head that hardly does by a fiftieth of its logits' size: to it all texts look alike.
    """
    true, given = wanted.astype(np.float64), seen.astype(np.float64)
    middle = true.mean(axis=0)
    all_labels = spread(wanted)
    own = np.maximum(np.sqrt(np.mean((true - middle) ** 2, axis=0)), all_labels / 4)
    off = given - true
    line = true - middle if np.sqrt(np.mean((true - middle) ** 2)) >= all_labels else true
    return LogitErrors(
        worst=float(np.abs(off / own).max()),
        typical=float(np.sqrt(np.mean((off / own) ** 2, axis=0)).max()),
        scale=float((given * line).sum() / (true * line).sum()),
    )


def spread(logits: NDArray[np.float32]) -> float:
    """How far logits ``[n, labels]`` lie from their label's mean, or a fiftieth of their size where that is more."""
    true = logits.astype(np.float64)
    around = np.sqrt(np.mean((true - true.mean(axis=0)) ** 2))
    return float(max(around, np.sqrt(np.mean(true**2)) / 50, np.finfo(np.float32).tiny))
