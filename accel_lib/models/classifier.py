"""A classifier trained in seconds: logistic regression on the vectors of a frozen encoder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import ModelError, TextError, require
from accel_lib.models.model import Model
from accel_lib.stats import wilson
from accel_lib.texts import Texts

_FOLDS = 5
_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000)  # scikit-learn's C: small is strongly regularized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers on `n` texts, with the 95% Wilson interval from `low` to `high`."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} of {self.n} texts, 95% interval {self.low:.1%} to {self.high:.1%}"


def train_classifier(model: Model, texts: Texts, *, seed: int = 0) -> Model:
    """Train a linear head on the model's vectors; the encoder stays as it is.

    Parameters
    ----------
    model
        An embedding model.
    texts
        Labelled texts, such as ``load_texts("sentiment-train")``; at least five of each label.
    seed
        Shuffles the folds in which the regularization is chosen.

    Returns
    -------
    Model
        With task ``"classification"``: its logits, one column a label in sorted order, are such that their softmax is
        what scikit-learn's ``predict_proba`` returns.

    Raises
    ------
    ModelError
        The model is a classifier already.
    TextError
        The texts have no labels, only one, or too few of one.
    """
    if model.task != "embedding":
        raise ModelError(
            f"{model.name} is a classifier already.",
            seen=model.output_name,
            fix="pass a model that embeds: load_model()",
        )
    labels = _labels(texts)
    linear_model = require("sklearn.linear_model", extra="models")
    selection = require("sklearn.model_selection", extra="models")
    search = selection.GridSearchCV(
        linear_model.LogisticRegression(max_iter=2_000),
        {"C": _STRENGTHS},
        cv=selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
    ).fit(model.encode(texts), labels)
    return _with_head(model, search, texts)


def accuracy(predict: Model | Callable[[Sequence[str]], Sequence[str] | NDArray[np.float32]], texts: Texts) -> Accuracy:
    """Share of labelled texts that are classified rightly, with its interval.

    Parameters
    ----------
    predict
        A classifier, or a function from texts to label names or to logits (one column a label, in sorted order).
    texts
        Texts with labels, none of which the classifier was trained on.

    Returns
    -------
    Accuracy
        Upper and lower case of label names are the same to it.
    """
    labels = _labels(texts, least=1)
    if isinstance(predict, Model):
        names: Sequence[str] = predict.labels
        answers: Sequence[str] | NDArray[np.float32] = predict.encode(texts)
    else:
        names, answers = sorted(set(labels)), predict(texts)
    if isinstance(answers, np.ndarray) and answers.ndim == 2:
        if answers.shape[1] != len(names):
            raise TextError(
                "The logits have another number of columns than the texts have labels.",
                seen=f"{answers.shape[1]} columns, labels {', '.join(names)}",
                fix="return label names instead of logits",
            )
        answers = [names[column] for column in answers.argmax(axis=1)]
    unknown = {name.casefold() for name in labels} - {str(name).casefold() for name in (*names, *answers)}
    if unknown:
        raise TextError(
            "The classifier does not know a label of these texts.",
            seen=f"{', '.join(sorted(unknown))}; it knows {', '.join(names)}",
            fix="pass texts labelled with the classifier's own names",
        )
    right = sum(a.casefold() == str(b).casefold() for a, b in zip(labels, answers, strict=True))
    low, high = wilson(right, len(labels))
    return Accuracy(value=right / len(labels), low=low, high=high, n=len(labels))


def _with_head(model: Model, search: Any, texts: Texts) -> Model:
    import torch

    from accel_lib.models.modules import Head
    from accel_lib.models.reference import HeadReference

    found = search.best_estimator_
    weight, bias = np.asarray(found.coef_), np.asarray(found.intercept_)
    if len(found.classes_) == 2:  # one score z becomes (-z/2, z/2): the softmax of both is the sigmoid of z
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    fingerprint = hashlib.sha256(weight.tobytes() + bias.tobytes()).hexdigest()[:16]
    how = (
        f"head: logistic regression on frozen vectors of {len(texts)} texts ({texts.name}), C = "
        f"{search.best_params_['C']:g}, cross-validated accuracy {search.best_score_:.1%}"
    )
    return dataclasses.replace(
        model,
        name=f"{model.name}-classifier",
        source=f"{model.source} + head sha256:{fingerprint}",
        task="classification",
        module=Head(model.module, linear).eval().requires_grad_(False),
        output_name="logits",
        dimension=len(found.classes_),
        labels=tuple(str(name) for name in found.classes_),
        activation="softmax",
        pairs=False,
        notes=(*model.notes, how),
        reference=HeadReference(model.reference, weight=weight, bias=bias),
    )


def _labels(texts: Texts, least: int = _FOLDS) -> tuple[str, ...]:
    fix = "load texts with labels: load_texts('sentiment-train'), or a file with label_column="
    if not texts.labels:
        raise TextError("These texts have no labels.", seen=texts.name, fix=fix)
    counts = Counter(texts.labels)
    if least > 1 and (len(counts) < 2 or min(counts.values()) < least):
        raise TextError(f"Training needs two labels, each {least} times or more.", seen=dict(counts), fix=fix)
    return tuple(texts.labels)
