"""A cross-encoder on a real Triton behind a real gateway: pairs are ranked as CrossEncoder ranks them everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

import accel_lib
from accel_lib.errors import RequestError
from accel_lib.ragged import SEGMENTS
from tests.gateways import gateway_on
from tests.tiny import classifier_folder, end_at_once

pytestmark = pytest.mark.triton
TEXTS = list(accel_lib.load_texts("mixed", limit=24))
SECONDS = [*TEXTS[1:], TEXTS[0]]
PAIRS = list(zip(TEXTS, SECONDS, strict=True))
QUERY = "How many people live in Berlin?"
PASSAGES = ["Berlin has 3,520,031 inhabitants.", "bananas are yellow", "The museum is closed on Mondays."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("models") / "cross", labels=1)


@pytest.fixture(scope="module")
def raw(folder):
    """CrossEncoder's own logits of `PAIRS`."""
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    return encoder.predict(PAIRS, activation_fn=torch.nn.Identity())


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("pairs")
    (place / "model_repository").mkdir()
    model = accel_lib.load_model(str(folder))
    artifact = accel_lib.to_onnx(model, output=place / "cross", progress=False)
    accel_lib.validate(artifact, reference=model, texts=TEXTS)
    with accel_lib.serve(place / "model_repository") as running:
        running.add("cross", artifact)
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    with gateway_on(server, tmp_path_factory.mktemp("state")) as running, running.client() as made:
        yield made


def test_triton_takes_segment_ids_as_a_third_tensor(server, raw):
    served = server.model("cross")
    assert [spec.name for spec in served.config.inputs] == ["input_ids", "attention_mask", SEGMENTS]
    np.testing.assert_allclose(served.encode(TEXTS, SECONDS)[:, 0], raw, atol=1e-4)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_token_ids_without_segment_ids_are_single_texts(server, folder, protocol):
    tokens = transformers.AutoTokenizer.from_pretrained(folder)([QUERY], return_tensors="np")
    answer = server.model("cross").infer(tokens["input_ids"], protocol=protocol)
    np.testing.assert_allclose(answer, server.model("cross").encode([QUERY]), atol=1e-5)


def test_bad_segment_ids_are_refused_and_spoil_no_other_request(server):
    ids = np.array([[101, 2054, 102]])
    for segments in ([[0, 0, -1]], [[0, 0, 7]], [[0, 0]]):
        with pytest.raises(RequestError):
            server.model("cross").infer(ids, token_type_ids=np.array(segments))
    assert np.isfinite(server.model("cross").infer(ids)).all()


def test_the_clients_scores_are_cross_encoders(server, folder):
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    scores = [next(iter(one.values())) for one in server.model("cross").classify(TEXTS, SECONDS)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_predict_ranks_pairs_as_cross_encoder_does(client, folder):
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    pairs = [[QUERY, passage] for passage in PASSAGES]
    for body, activation in (({"raw_scores": True}, torch.nn.Identity()), ({}, None)):
        answer = client.post("/predict", json={"inputs": pairs} | body).json()
        expected = encoder.predict(pairs, activation_fn=activation)
        np.testing.assert_allclose([one[0]["score"] for one in answer], expected, atol=1e-4)


def test_classify_gives_the_pipelines_score_of_one_label(client, folder):
    said = transformers.pipeline("text-classification", model=str(folder))(TEXTS[:3])
    data = client.post("/v1/classify", json={"model": "cross", "input": TEXTS[:3]}).json()["data"]
    np.testing.assert_allclose([one["probs"][0] for one in data], [one["score"] for one in said], atol=1e-4)
