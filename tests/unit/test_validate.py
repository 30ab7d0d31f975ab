"""What may not be served: each kind of broken artifact is refused, by the check that is there for it."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from accel_lib import load_model, load_texts, open_engine, to_onnx, to_torch, train_classifier, validate
from accel_lib.artifact import Artifact, write_manifest
from accel_lib.errors import ValidationError
from tests.tiny import NOISE, TABLE, WIDTH, classifier_folder, tiny_artifact, tiny_model, tiny_texts

TEXTS = tiny_texts(24)


@pytest.fixture
def reference():
    return tiny_model()


@pytest.fixture
def sound(tmp_path):
    return tiny_artifact(tmp_path / "tiny", TABLE, validated=False)


def resealed(artifact, **facts):
    """The artifact with a manifest that fits its files, as if somebody had made it so."""
    return Artifact(artifact.folder, write_manifest(artifact.folder, dataclasses.replace(artifact.manifest, **facts)))


def rewritten(artifact, change):
    model = onnx.load(artifact.path)
    change(model.graph)
    onnx.save(model, artifact.path)
    return resealed(artifact)


def times(value):
    """Multiply the answer by a number."""

    def change(graph):
        graph.node[-1].output[0] = "before"
        graph.initializer.append(numpy_helper.from_array(np.float32(value), name="factor"))
        graph.node.append(helper.make_node("Mul", ["before", "factor"], ["sentence_embedding"]))

    return change


def constant(graph):
    """The same row for every text."""
    times(0)(graph)
    graph.node[-1].output[0] = "zeros"
    graph.initializer.append(numpy_helper.from_array(np.ones(WIDTH, np.float32) / WIDTH**0.5, name="row"))
    graph.node.append(helper.make_node("Add", ["zeros", "row"], ["sentence_embedding"]))


def maskless(graph):
    """Padding counts as words."""
    next(node for node in graph.node if node.op_type == "ReduceSum").input[0] = "words"


def other_weights(graph):
    next(weight for weight in graph.initializer if weight.name == "table").CopyFrom(
        numpy_helper.from_array(NOISE, name="table")
    )


def test_a_sound_artifact_passes_and_its_manifest_says_so(sound, reference):
    verdict = validate(sound, reference=reference, texts=TEXTS)
    assert verdict.passed
    assert verdict.cosine_min > 0.9999
    assert verdict.top1_agreement == 1
    recorded = Artifact.load(sound.folder)
    assert recorded.validated
    assert recorded.manifest.validation["texts"] == len(TEXTS)


def test_the_reference_answers_the_same_texts_once_for_all_candidates(sound, reference):
    asked = []

    def counting(texts, **how):
        asked.append(len(texts))
        return reference.reference(texts, **how)

    model = dataclasses.replace(reference, reference=counting)
    first, again = (validate(sound, reference=model, texts=TEXTS) for _ in range(2))
    assert asked[0] == len(TEXTS)
    assert len(asked) == 2  # the texts, and the longer ones made of them
    assert first.checks == again.checks
    validate(sound, reference=model, texts=TEXTS[:8])
    assert len(asked) > 2


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (times(np.nan), "finite NaN"),
        (times(np.inf), "finite NaN or infinity"),
        (times(0), r"least length \(norm\) of a vector 0"),
        (constant, "texts give different rows spread 0"),
        (maskless, "padding and batch mates"),
        (other_weights, "least cosine"),
    ],
    ids=["nan", "infinite", "zero", "constant", "padding counted", "other weights"],
)
def test_a_broken_graph_is_refused_by_the_check_for_it_and_not_recorded(sound, reference, change, check):
    broken = rewritten(sound, change)
    with pytest.raises(ValidationError, match=check):
        validate(broken, reference=reference, texts=TEXTS)
    assert not Artifact.load(broken.folder).validated


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-qdq"])
def test_a_file_in_another_precision_than_its_manifest_says_is_refused(sound, reference, precision):
    with pytest.raises(ValidationError, match="precision of the graph .*, allowed " + precision):
        validate(resealed(sound, precision=precision), reference=reference, texts=TEXTS)


def test_a_half_precision_file_is_not_taken_for_full(tiny_model):
    half = to_onnx(tiny_model, precision="fp16", progress=False)
    lying = resealed(half.copy_to(half.folder.with_name("lying")), precision="fp32")
    with pytest.raises(ValidationError, match="precision of the graph fp16, allowed fp32"):
        validate(lying, reference=tiny_model, texts=load_texts("mixed", limit=8))


def test_a_torch_program_of_other_weights_is_refused(tiny_model, tmp_path):
    torch.manual_seed(1)
    twisted = torch.nn.Sequential(*tiny_model.module.steps, torch.nn.Linear(32, 32))
    odd = type(tiny_model.module)(
        tiny_model.module.transformer, pooling=["mean"], steps=twisted, segments=tiny_model.module.segments
    )
    program = to_torch(dataclasses.replace(tiny_model, module=odd.eval()), output=tmp_path / "odd", progress=False)
    with pytest.raises(ValidationError, match="least cosine"):
        validate(program, reference=tiny_model, texts=load_texts("mixed", limit=8), device="cpu")


def test_swapped_labels_are_refused(tiny_model, tmp_path):
    classifier = train_classifier(tiny_model, load_texts("sentiment-train", limit=60))
    texts = load_texts("sentiment-test", limit=16)
    artifact = to_onnx(classifier, output=tmp_path / "classifier", progress=False)
    assert validate(artifact, reference=classifier, texts=texts).passed
    swapped = resealed(artifact, labels=artifact.manifest.labels[::-1])
    with pytest.raises(ValidationError, match=r"labels \('positive', 'negative'\)"):
        validate(swapped, reference=classifier, texts=texts)


def test_an_engine_can_be_judged_too(sound, reference):
    engine = open_engine(sound)
    assert validate(engine, reference=reference, texts=TEXTS).artifact is None


def test_too_few_texts_are_no_verdict(sound, reference):
    with pytest.raises(ValidationError, match="Too few texts"):
        validate(sound, reference=reference, texts=["w1 w2"] * 30)


def test_the_verdict_is_a_table_with_what_is_allowed(sound, reference):
    verdict = validate(sound, reference=reference, texts=TEXTS)
    assert "≥ 0.9999" in verdict._repr_html_()
    assert set(verdict.to_frame().columns) == {"name", "seen", "limit", "passed"}
    assert str(verdict).endswith("checks passed")


@pytest.fixture(scope="module", params=[1, 2, 28], ids="{} labels".format)
def heads(request, tmp_path_factory):
    """Two classifiers of one shape, their weights random."""
    folder = tmp_path_factory.mktemp("heads")
    return [
        load_model(str(classifier_folder(folder / f"seed{seed}", labels=request.param, seed=seed))) for seed in (0, 1)
    ]


def head_times(value):
    return lambda head: [weight.mul_(value) for weight in head.parameters()]


def swapped(head):
    """Labels change places; one label's order of texts is turned round."""
    if head.out_features == 1:
        head.weight.neg_()
    for weight in head.parameters():
        weight.copy_(weight.roll(1, 0))


@pytest.mark.parametrize(
    "ruin", [head_times(0), swapped, head_times(2), head_times(0.5), head_times(1.2)],
    ids=["zeroed", "swapped", "twice", "half", "a fifth more"],
)  # fmt: skip
def test_a_ruined_head_is_refused_by_the_widest_tolerance_too(heads, ruin):
    model, texts = heads[0], load_texts("mixed", limit=16)
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        ruin(module.transformer.classifier)
    engine = open_engine(dataclasses.replace(model, module=module), device="cpu")
    engine.precision = "int8-qdq"
    with pytest.raises(ValidationError, match="logits"):
        validate(engine, reference=model, texts=texts)


@pytest.mark.parametrize("precision", ["fp32", "int8-qdq"])
def test_another_models_file_is_refused(heads, precision):
    engine, texts = open_engine(heads[0], device="cpu"), load_texts("mixed", limit=16)
    engine.precision = precision
    assert validate(engine, reference=heads[0], texts=texts).passed
    with pytest.raises(ValidationError, match="logits differ"):
        validate(engine, reference=heads[1], texts=texts)


def test_a_file_of_other_labels_is_refused_and_not_broadcast(tmp_path):
    one, two = (load_model(str(classifier_folder(tmp_path / str(n), labels=n))) for n in (1, 2))
    with pytest.raises(ValidationError, match="numbers in a vector 1, allowed 2"):
        validate(open_engine(one, device="cpu"), reference=two, texts=load_texts("mixed", limit=8))


def test_a_cross_encoder_is_validated_on_pairs_too(tmp_path, monkeypatch):
    model = load_model(str(classifier_folder(tmp_path / "cross", labels=1)))
    engine, texts = open_engine(model, device="cpu"), load_texts("mixed", limit=8)
    with_segments = engine.run
    monkeypatch.setattr(engine, "run", lambda ids, mask, _segments=None: with_segments(ids, mask))
    with pytest.raises(ValidationError, match="logits differ"):
        validate(engine, reference=model, texts=texts)
    single = dataclasses.replace(model, pairs=False)
    assert validate(engine, reference=single, texts=texts).passed


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_honest_files_of_a_cross_encoder_pass(tmp_path, precision):
    model, texts = load_model(str(classifier_folder(tmp_path / "cross", labels=1))), load_texts("mixed", limit=16)
    made = to_onnx(model, precision=precision, output=tmp_path / precision, progress=False)
    assert validate(made, reference=model, texts=texts, device="cpu").passed
