"""The head gives scikit-learn's probabilities inside the network, and its accuracy comes with an interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from accel_lib.errors import ModelError, TextError
from accel_lib.models import Model
from accel_lib.models.classifier import accuracy, train_classifier
from accel_lib.texts import Texts, load_texts

COLOURS = Texts(
    [
        f"{thing} {verb}"
        for thing in ("the sky", "the sea", "grass", "a leaf", "blood", "a rose")
        for verb in ("here", "there", "now")
    ],
    name="colours",
    labels=("blue",) * 6 + ("green",) * 6 + ("red",) * 6,
)


@pytest.fixture(scope="module")
def train() -> Texts:
    return load_texts("sentiment-train")


@pytest.fixture(scope="module")
def classifier(model: Model, train: Texts) -> Model:
    return train_classifier(model, train)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sklearn(model: Model, classifier: Model, train: Texts) -> LogisticRegression:
    strength = float(classifier.notes[-1].partition("C = ")[2].partition(",")[0])
    return LogisticRegression(C=strength, max_iter=2_000).fit(model.encode(train), train.labels)


@pytest.mark.parametrize("texts", [COLOURS[:12], COLOURS], ids=["two classes", "three classes"])
def test_the_softmax_of_the_logits_is_scikit_learns_probability(model: Model, texts: Texts) -> None:
    classifier = train_classifier(model, texts)
    expected = _sklearn(model, classifier, texts).predict_proba(model.encode(texts))
    assert classifier.labels == ("blue", "green", "red")[: classifier.dimension]
    np.testing.assert_allclose(_softmax(classifier.encode(texts)), expected, atol=1e-5)


def test_a_trained_classifier_is_a_model_like_any_other(model: Model, classifier: Model) -> None:
    assert (classifier.task, classifier.output_name, classifier.dimension) == ("classification", "logits", 2)
    assert classifier.labels == ("negative", "positive")
    assert classifier.source.startswith(f"{model.source} + head sha256:")
    assert model.task == "embedding"
    texts = ["I would go there again.", "It broke on the second day. " * 60]
    np.testing.assert_allclose(classifier.encode(texts), classifier.reference(texts), atol=1e-5)


def test_training_twice_gives_the_same_head(model: Model) -> None:
    assert train_classifier(model, COLOURS).source == train_classifier(model, COLOURS).source


def test_it_classifies_held_out_texts_of_another_style_far_above_chance(classifier: Model) -> None:
    held_out = load_texts("sentiment-test")
    measured = accuracy(classifier, held_out)
    assert measured.n == len(held_out)
    assert measured.low > 0.6
    assert measured.low < measured.value < measured.high
    logits = classifier.encode(held_out)
    assert accuracy(lambda _: logits, held_out) == measured
    names = [classifier.labels[column] for column in logits.argmax(axis=1)]
    assert accuracy(lambda _: names, held_out) == measured
    assert f"{measured.n} texts, 95% interval" in str(measured)


def test_it_exports_with_dynamic_batch_and_sequence(classifier: Model) -> None:
    ids, mask = torch.randint(5, 300, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    shape = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=2, max=256)}
    exported = torch.export.export(
        classifier.module, (ids, mask), dynamic_shapes={"input_ids": shape, "attention_mask": shape}
    ).module()
    ids, mask = torch.randint(5, 300, (3, 40)), torch.ones(3, 40, dtype=torch.int64)
    torch.testing.assert_close(exported(ids, mask), classifier.module(ids, mask), atol=1e-5, rtol=0)


def test_labels_are_compared_without_their_case() -> None:
    shouted = Texts(["a", "b"], labels=("POSITIVE", "Negative"))
    assert accuracy(lambda _: ["positive", "negative"], shouted).value == 1.0


def test_what_cannot_be_trained_or_counted_is_refused(model: Model, classifier: Model, train: Texts) -> None:
    with pytest.raises(ModelError, match="a classifier already"):
        train_classifier(classifier, train)
    with pytest.raises(TextError, match="no labels"):
        train_classifier(model, load_texts("short"))
    with pytest.raises(TextError, match="each 5 times or more"):
        train_classifier(model, Texts(["a"] * 9, labels=("x",) * 5 + ("y",) * 4))
    with pytest.raises(TextError, match="does not know a label"):
        accuracy(classifier, COLOURS)
    with pytest.raises(TextError, match="another number of columns"):
        accuracy(lambda texts: np.zeros((len(texts), 2)), COLOURS)  # type: ignore[return-value]
