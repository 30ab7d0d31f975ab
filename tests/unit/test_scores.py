"""From logits to scores, as transformers' pipeline and CrossEncoder, whatever the head; pairs and their segment ids."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from accel_lib import load_model, load_texts, to_onnx, to_torch
from accel_lib.artifact import Manifest
from accel_lib.convert.partition import cut
from accel_lib.engines import open_engine
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ModelError
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import Ragged
from accel_lib.scores import logit_errors, to_scores, unique_labels
from tests.tiny import classifier_folder

TEXTS = list(load_texts("mixed", limit=8))
SECONDS = [*TEXTS[1:], TEXTS[0]]


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    """A BERT cross-encoder with one label, its weights random."""
    return load_model(str(classifier_folder(tmp_path_factory.mktemp("models") / "cross", labels=1)))


@pytest.fixture(scope="module")
def onnx_cross(cross, tmp_path_factory):
    return to_onnx(cross, output=tmp_path_factory.mktemp("artifacts") / "cross", progress=False)


def changed(folder, file="config.json", **settings):
    """Write settings into one of a folder's JSON files."""
    path = folder / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | settings))
    return folder


@pytest.mark.parametrize(
    ("labels", "problem_type", "activation"),
    [
        (1, None, "sigmoid"),
        (1, "regression", "identity"),
        (2, None, "softmax"),
        (3, "single_label_classification", "softmax"),
        (3, "multi_label_classification", "sigmoid"),
        (2, "regression", "identity"),
    ],
)
def test_scores_are_those_of_transformers_pipeline(tmp_path, labels, problem_type, activation):
    folder = classifier_folder(tmp_path / "head", labels=labels, problem_type=problem_type)
    model = load_model(str(folder))
    assert model.activation == activation
    said = transformers.pipeline("text-classification", model=str(folder), top_k=None)(TEXTS)
    expected = [[{one["label"]: one["score"] for one in text}[label] for label in model.labels] for text in said]
    np.testing.assert_allclose(to_scores(model.encode(TEXTS), model.activation), expected, atol=1e-5)


@pytest.mark.parametrize("named", ["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"])
@pytest.mark.parametrize("layout", ["4", "old", "6"])
def test_a_cross_encoders_own_activation_counts(tmp_path, named, layout):
    folder = classifier_folder(tmp_path / "head", labels=1)
    setting = {"sentence_transformers": {"activation_fn": named}}
    changed(folder, **({"sbert_ce_default_activation_function": named} if layout == "old" else setting))
    if layout == "6":
        sentence_transformers.CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    model = load_model(str(folder), task="classification")
    pairs = list(zip(TEXTS, SECONDS, strict=True))
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(pairs)
    np.testing.assert_allclose(to_scores(model.encode(TEXTS, SECONDS), model.activation)[:, 0], expected, atol=1e-5)


def test_an_activation_that_is_not_known_is_refused_by_name(tmp_path):
    folder = classifier_folder(tmp_path / "head", labels=1)
    changed(folder, sentence_transformers={"activation_fn": "mine.Squash"})
    with pytest.raises(ModelError, match=r"scores by mine\.Squash"):
        load_model(str(folder))


def test_large_logits_neither_overflow_nor_lose_their_order():
    logits = np.array([[-1e4, 0, 1e4]], dtype=np.float32)
    for activation in ("sigmoid", "softmax"):
        scores = to_scores(logits, activation)
        assert np.isfinite(scores).all()
        assert (np.diff(scores[0]) >= 0).all()


def test_labels_of_one_name_all_keep_a_key_of_their_own():
    assert unique_labels(["a", "a", "b"]) == ["a", "a (1)", "b"]
    assert len(set(unique_labels(["a", "a", "a (1)", "a"]))) == 4


def test_pairs_are_those_of_transformers_and_of_cross_encoder(cross):
    expected = cross.reference(TEXTS, seconds=SECONDS)
    folder = cross.reference.loaded.name_or_path
    theirs = sentence_transformers.CrossEncoder(folder, device="cpu").predict(
        list(zip(TEXTS, SECONDS, strict=True)), activation_fn=torch.nn.Identity()
    )
    np.testing.assert_allclose(cross.encode(TEXTS, SECONDS), expected, atol=1e-5)
    np.testing.assert_allclose(theirs, expected[:, 0], atol=1e-5)
    without = cross.module(*(torch.from_numpy(part) for part in cross.tokenize(TEXTS, SECONDS).padded(0)[:2]))
    assert logit_errors(without.numpy(), expected).typical > 0.1


def test_every_engine_feeds_segment_ids(cross, onnx_cross, tmp_path):
    expected, rows = cross.encode(TEXTS, SECONDS), cross.tokenize(TEXTS, SECONDS)
    program = to_torch(cross, output=tmp_path / "program", progress=False)
    for candidate in (cross, onnx_cross, program):
        np.testing.assert_allclose(run_batches(open_engine(candidate, device="cpu"), rows), expected, atol=1e-4)


def test_a_quantized_file_keeps_the_third_input(cross, tmp_path):
    made = to_onnx(cross, precision="int8-qdq", output=tmp_path / "int8", progress=False)
    seen = run_batches(open_engine(made, device="cpu"), cross.tokenize(TEXTS, SECONDS))
    assert logit_errors(seen, cross.encode(TEXTS, SECONDS)).typical < 0.6
    assert Manifest.from_json(made.manifest.to_json()).inputs == cross.inputs


def test_a_single_text_needs_no_segment_ids(cross, onnx_cross):
    engine, rows = open_engine(onnx_cross, device="cpu"), cross.tokenizer(TEXTS)
    np.testing.assert_allclose(run_batches(engine, rows), cross.reference(TEXTS), atol=1e-4)
    assert cross.tokenize(TEXTS).segments is None


def test_halves_take_segment_ids_too(onnx_cross):
    first, second = cut(onnx_cross.record_validation({"passed": True}))
    assert first.validated
    assert second.validated


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_cut_is_cut_from_ids_and_segments_alike(cross, side):
    pairs = ["one two three four " * 12], ["five six seven " * 9]
    theirs = cross.reference.loaded.tokenizer
    short = Tokenizer(theirs.backend_tokenizer, max_length=24, pad_id=0, segments=True).cutting(side)
    rows, lengths = short.encode_with_lengths(pairs[0], seconds=pairs[1])
    theirs.truncation_side = side
    expected = theirs(*pairs, truncation=True, max_length=24)
    theirs.truncation_side = "right"
    assert rows.ids.tolist() == expected["input_ids"][0]
    assert rows.segments.tolist() == expected["token_type_ids"][0]
    assert lengths[0] > 24


def test_segments_stay_beside_their_ids_through_every_cut(cross):
    rows = cross.tokenize(TEXTS, SECONDS)
    back = Ragged.concat([rows.take(np.array([index])) for index in range(len(rows))])
    assert np.array_equal(back.segments, rows.segments)
    assert np.array_equal(Ragged.from_padded(*rows.padded(7)).segments, rows.segments)
    mixed = Ragged.concat([cross.tokenize(TEXTS[:1]), rows])
    assert mixed.segments.sum() == rows.segments.sum()


def test_a_network_without_segment_ids_gets_none(tmp_path):
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "num_labels": 1}
    network = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**shape))
    model = load_model(str(classifier_folder(tmp_path / "distil", network=network)))
    reference: Any = model.reference
    assert model.inputs == ("input_ids", "attention_mask")
    np.testing.assert_allclose(model.encode(TEXTS, SECONDS), reference(TEXTS, seconds=SECONDS), atol=1e-5)


def test_pairs_for_a_model_that_takes_none_are_refused(tiny_model):
    with pytest.raises(ModelError, match="takes single texts"):
        tiny_model.encode(["a"], ["b"])


def test_an_old_manifest_reads_and_its_pairs_are_refused_until_it_is_converted_again(onnx_cross):
    old = json.loads(onnx_cross.manifest.to_json())
    for name in ("inputs", "activation", "pairs"):
        del old[name]
    read = Manifest.from_json(json.dumps(old))
    assert (read.inputs, read.activation, read.pairs) == (("input_ids", "attention_mask"), "sigmoid", False)
    assert dataclasses.replace(onnx_cross.manifest).pairs
