"""A reranker trained in seconds: a few weights on how the tokens of a question and a passage match, layer by layer."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import ModelError, TextError, require
from accel_lib.models.model import Model
from accel_lib.models.reference import LateInteractionReference, compared, encoded
from accel_lib.ragged import IDS_AND_MASK, SEGMENTS
from accel_lib.texts.questions import Questions

_CANDIDATES = 50  # passages beside which a question's own one is learned: those that the vectors rank first
_REGULARIZATION = 1e-3  # of standardized weights; from 0 to 0.1 hardly matters with so few of them
_FEWEST = 8


def train_reranker(model: Model, questions: Questions, *, candidates: int = _CANDIDATES) -> Model:
    """Train a reranker on an embedding model, which stays as it is: late interaction (`modules.LateInteraction`).

    Learned are as few weights as the model has layers and two more, so that some hundred questions are enough: each
    question's own passage shall get a higher logit than those that the vectors take for near. With the bias, the
    sigmoid of a logit is the share of a passage in a question with typical others.

    A cross-encoder, whose layers read both texts together, needs far more: fine-tuned from the default model, one pass
    over the same questions left it at chance.

    Parameters
    ----------
    model
        An embedding model whose tokenizer marks the halves of a pair, as BERT's does; without prompts.
    questions
        Questions with their passages, such as ``load_questions("train")``; at least eight that the vectors find.
    candidates
        Passages to learn from, of each question the nearest ones.

    Returns
    -------
    Model
        With task ``"classification"``, one label, and pairs: ``encode(questions, passages)`` gives logits.

    Raises
    ------
    ModelError
        The model is no embedding model, or one that this cannot be built on.
    TextError
        There are too few questions.
    """
    _check(model)
    encoder = model.reference.loaded
    asked, told = ([encoded(encoder, ids) for ids in model.tokenizer(texts)] for texts in (
        questions.questions, questions.passages
    ))  # fmt: skip
    cosines = np.stack([each.vector for each in asked]) @ np.stack([each.vector for each in told]).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :candidates]
    right = nearest == np.array(questions.answers)[:, None]
    found = np.flatnonzero(right.any(axis=1))
    if len(found) < _FEWEST or nearest.shape[1] < 2:
        seen = f"{len(found)} questions with their passage among the {nearest.shape[1]} nearest"
        raise TextError("There are too few questions.", seen=seen, fix=f"pass {_FEWEST} or more, and two passages")
    features = np.array([[compared(asked[index], told[place]) for place in nearest[index]] for index in found])
    weight, bias = _fit(features, right[found].argmax(axis=1))
    return _with_head(model, questions, weight, bias)


def _check(model: Model) -> None:
    if model.task != "embedding":
        raise ModelError("A reranker is trained on a model that embeds.", seen=model.name, fix="pass load_model()")
    if any(model.prompts.values()):
        raise ModelError(
            f"{model.name} puts prompts in front of texts, which a pair has no place for.",
            seen=", ".join(model.prompts),
            fix="pass a model without prompts: load_model()",
        )
    pairs = model.tokenizer.with_segments()
    single, pair = (pairs.encode_with_lengths(["a"], seconds=more)[0] for more in (None, ["b"]))
    other = pairs.encode_with_lengths(["b"])[0]
    joined = [*single.ids, *other.ids[1:]]
    marks = [0] * len(single.ids) + [1] * (len(other.ids) - 1)
    if pair.segments is None or pair.ids.tolist() != joined or pair.segments.tolist() != marks:
        raise ModelError(
            f"The tokenizer of {model.name} does not mark the halves of a pair as BERT's does.",
            seen=f"ids {pair.ids.tolist()} of a pair",
            fix="pass a model of BERT's kind: load_model(); or load a cross-encoder",
        )


def _fit(features: NDArray[np.float64], right: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights ``[1, n]`` and bias ``[1]`` with which the softmax over a question's candidates favours the right one.

    The bias takes off what the others weigh on average: the sigmoid of a logit is then the share of this passage.
    """
    optimize, special = (require(f"scipy.{name}", extra="models") for name in ("optimize", "special"))
    middle, scale = features.mean(axis=(0, 1)), features.std(axis=(0, 1)) + 1e-9
    given = (features - middle) / scale
    wanted = np.eye(features.shape[1])[right]

    def loss(weight: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = given @ weight
        shares = special.softmax(logits, axis=1)
        cost = special.logsumexp(logits, axis=1) - (logits * wanted).sum(axis=1)
        slope = ((shares - wanted)[..., None] * given).sum(axis=1).mean(axis=0)
        return cost.mean() + _REGULARIZATION * weight @ weight, slope + 2 * _REGULARIZATION * weight

    weight = optimize.minimize(loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B").x / scale
    others = special.logsumexp(np.where(wanted, -np.inf, features @ weight), axis=1)
    return weight[None], -others.mean(keepdims=True)


def _with_head(model: Model, questions: Questions, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> Model:
    import torch

    from accel_lib.models.modules import LateInteraction

    linear = torch.nn.Linear(weight.shape[1], 1)
    linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    encoder: Any = model.module
    fingerprint = hashlib.sha256(weight.tobytes() + bias.tobytes()).hexdigest()[:16]
    how = f"late interaction, {weight.size + 1} weights learned from {len(questions)} questions ({questions.name})"
    return dataclasses.replace(
        model,
        name=f"{model.name}-reranker",
        source=f"{model.source} + late interaction sha256:{fingerprint}",
        task="classification",
        module=LateInteraction(encoder, linear).eval().requires_grad_(False),
        tokenizer=model.tokenizer.with_segments(),
        inputs=(*IDS_AND_MASK, SEGMENTS),
        output_name="logits",
        dimension=1,
        labels=("relevance",),
        activation="sigmoid",
        pairs=True,
        prompts={},
        default_prompt=None,
        notes=(*model.notes, how),
        reference=LateInteractionReference(model.reference, max_length=model.max_length, weight=weight, bias=bias),
    )
