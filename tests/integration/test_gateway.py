"""The gateway in front of a real Triton, asked over real sockets: its contract, answer by answer and code by code."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

import accel_lib
from accel_lib.service.app import refresh
from accel_lib.triton.repository import default_config
from tests.gateways import gateway_on
from tests.tiny import NOISE, TABLE, WIDTH, end_at_once, tiny_artifact, tiny_model, tiny_texts, tokenizer

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)
EXPECTED = tiny_model().reference(TEXTS)
LABELS = tuple(f"label {number}" for number in range(WIDTH))
ERROR_FIELDS = {"error", "object", "message", "detail", "type"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as running:
        running.add("embedding", tiny_artifact(folder / "one", TABLE))
        running.add("embedding", tiny_artifact(folder / "two", TABLE + 0.3 * NOISE), version=2)
        classes = tiny_artifact(folder / "classes", TABLE, task="classification", labels=LABELS)
        levels = default_config("sentiment", classes).replace(priority_levels=2, default_priority_level=2)
        running.add("sentiment", classes, config=levels)
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    with gateway_on(server, folder, max_body_bytes=100_000, max_request_tokens=2_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    with gateway.client() as made:
        yield made


def ask(client, **fields):
    return client.post("/v1/embeddings", json={"model": "embedding", "input": TEXTS[0]} | fields)


def vectors(answer):
    return np.array([item["embedding"] for item in answer.json()["data"]])


def refused(answer, status, code=None, param=None):
    """Check an error's one body and return its message."""
    body = answer.json()
    assert answer.status_code == status, body
    assert set(body) == ERROR_FIELDS
    assert body["detail"] == {}
    assert body["object"] == "error"
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["message"], body["type"]) == (body["error"]["message"], body["error"]["type"])
    if code:
        assert body["error"]["code"] == code
    if param:
        assert body["error"]["param"] == param
    assert answer.headers["x-request-id"]
    return body["message"]


def test_vectors_come_back_in_order_from_the_version_that_was_asked(client):
    first = ask(client, input=TEXTS, user="somebody")
    assert first.status_code == 200
    body = first.json()
    assert (body["object"], body["model"]) == ("list", "embedding")
    assert [item["index"] for item in body["data"]] == list(range(len(TEXTS)))
    assert body["usage"]["prompt_tokens"] == sum(len(text.split()) for text in TEXTS)
    old = client.post("/v1/embeddings", json={"model": "embedding", "input": TEXTS}, headers={"x-model-version": "1"})
    np.testing.assert_allclose(vectors(old), EXPECTED, atol=1e-6)
    assert (first.headers["x-model-version"], old.headers["x-model-version"]) == ("2", "1")
    assert body["vector_space_id"] != old.json()["vector_space_id"]


def test_base64_holds_the_same_float32_in_fewer_bytes(client):
    plain, packed = ask(client, input=TEXTS[:3]), ask(client, input=TEXTS[:3], encoding_format="base64")
    read = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in packed.json()["data"]]
    np.testing.assert_array_equal(np.array(read), vectors(plain).astype(np.float32))
    assert len(packed.content) < len(plain.content)


def test_fewer_dimensions_are_the_first_ones_at_length_one(client):
    whole, half = vectors(ask(client))[0], vectors(ask(client, dimensions=WIDTH // 2))[0]
    np.testing.assert_allclose(half, whole[: WIDTH // 2] / np.linalg.norm(whole[: WIDTH // 2]), atol=1e-6)
    refused(ask(client, dimensions=WIDTH + 1), 400, "unsupported_dimensions", "dimensions")


def test_the_headers_say_where_the_time_went(client):
    answer = client.post(
        "/v1/embeddings", json={"model": "embedding", "input": "w1"}, headers={"x-request-id": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    names = ("x-tokenization-time", "x-queue-time", "x-inference-time")
    parts = [float(answer.headers[name]) for name in names]
    assert 0 < sum(parts) < float(answer.headers["x-total-time"])


@pytest.mark.parametrize("suffix", ["-query", "-passage"])
def test_a_symmetric_model_embeds_queries_and_passages_alike(client, suffix):
    np.testing.assert_array_equal(vectors(ask(client, model=f"embedding{suffix}")), vectors(ask(client)))
    np.testing.assert_array_equal(vectors(ask(client, input_type=suffix[1:])), vectors(ask(client)))


def test_a_models_own_name_may_end_like_a_suffix(server, gateway, client, tmp_path):
    server.add("embedding-query", tiny_artifact(tmp_path / "other", NOISE))
    refresh(gateway.services)
    try:
        own = vectors(ask(client, model="embedding-query"))
        sums = NOISE[tokenizer()([TEXTS[0]])[0]].sum(axis=0)
        np.testing.assert_allclose(own[0], sums / np.linalg.norm(sums), atol=1e-6)
        np.testing.assert_array_equal(vectors(ask(client, model="embedding-query-passage")), own)
        assert "embedding, embedding-query" in refused(ask(client, model=None), 400, "missing", "model")
        server.unload("embedding-query")
        refresh(gateway.services)
        refused(ask(client, model="embedding-query"), 404, "model_not_found", "model")
    finally:
        shutil.rmtree(server.repository / "embedding-query")


def test_a_text_that_is_too_long_is_refused_or_cut_where_asked(client):
    words = [f"w{1 + i % 150}" for i in range(90)]
    assert "90 tokens" in refused(ask(client, input=["w1", " ".join(words)]), 400, "context_length_exceeded", "input")
    for truncate, kept in (("END", words[:64]), ("START", words[-64:])):
        cut = ask(client, input=" ".join(words), truncate=truncate)
        np.testing.assert_allclose(vectors(cut), vectors(ask(client, input=" ".join(kept))), atol=1e-6)
        assert cut.json()["usage"]["total_tokens"] == 64


def test_a_model_may_be_left_out_where_one_is_for_the_task(client):
    named, left_out, null = ask(client), ask(client, model=None), client.post("/embeddings", json={"input": TEXTS[0]})
    assert {answer.json()["model"] for answer in (named, left_out, null)} == {"embedding"}
    np.testing.assert_array_equal(vectors(left_out), vectors(null))
    classes = client.post("/v1/classify", json={"input": TEXTS[0], "model": None, "truncate": None}).json()
    assert classes["model"] == "sentiment"


def test_a_classification_names_label_and_probabilities(client):
    body = client.post("/v1/classify", json={"model": "sentiment", "input": TEXTS[:2]}).json()
    assert set(body) == {"id", "object", "created", "model", "data", "usage"}
    one = body["data"][1]
    assert set(one) == {"index", "label", "probs", "num_classes", "scores"}
    assert sum(one["probs"]) == pytest.approx(1, abs=1e-5)
    assert one["label"] == LABELS[int(EXPECTED[1].argmax())] == max(one["scores"], key=one["scores"].get)
    raw = client.post("/v1/classify", json={"input": TEXTS[1], "raw_scores": True}).json()["data"][0]
    np.testing.assert_allclose(raw["probs"], EXPECTED[1], atol=1e-6)
    assert raw["label"] == one["label"]


def test_text_embeddings_inference_shapes(client):
    one, many = client.post("/embed", json={"inputs": "w1 w2"}), client.post("/embed", json={"inputs": TEXTS[:2]})
    assert np.array(one.json()).shape == (1, WIDTH)
    assert np.array(many.json()).shape == (2, WIDTH)
    single, pair, batch = (
        client.post("/predict", json={"inputs": inputs}).json()
        for inputs in ("w1 w2", ["w1", "w2"], [["w1 w2"], ["w3"]])
    )
    assert single[0]["score"] >= single[1]["score"]
    assert (len(single), len(pair)) == (WIDTH, WIDTH)
    assert [len(classes) for classes in batch] == [WIDTH, WIDTH]
    assert {one["label"]: one["score"] for one in batch[0]} == pytest.approx({o["label"]: o["score"] for o in single})
    raw = client.post("/predict", json={"inputs": "w1 w2", "raw_scores": True}).json()
    assert sum(one["score"] for one in raw) != pytest.approx(1)
    mixed = client.post("/predict", json={"inputs": [["w1 w2"], ["w1", "w2"]]}).json()
    for found, alone in zip(mixed, (single, pair), strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in alone]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in alone])


def test_tokens_of_a_text_and_the_text_of_tokens(client):
    tokens = client.post("/tokenize", json={"inputs": ["w1 w2", "w3"], "prompt_name": None}).json()
    assert [[each["id"] for each in row] for row in tokens] == [[1, 2], [3]]
    assert tokens[0][1] == {"id": 2, "text": "w2", "special": False, "start": 3, "stop": 5}
    assert client.post("/decode", json={"ids": [[1, 2], [3]]}).json() == ["w1 w2", "w3"]
    assert client.post("/decode", json={"ids": [1, 2]}).json() == ["w1 w2"]
    refused(client.post("/tokenize", json={"inputs": ["w1 " * 30_000]}), 400, "too_many_tokens", "inputs")
    refused(client.post("/decode", json={"ids": [-1]}), 400, "invalid_value", "ids[0]")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, None, "input"),
        ({"input": ""}, None, "input"),
        ({"input": []}, None, "input"),
        ({"input": ["w1"] * 2049}, None, "input"),
        ({"input": "   "}, "invalid_text", "input"),
        ({"input": ["w1 " * 60] * 400 + [" "], "truncate": "END"}, "invalid_text", "input[400]"),
        ({"dimensions": "16"}, "wrong_type", "dimensions"),
        ({"input": ["w1 w2 w3"] * 700}, "too_many_tokens", "input"),
        ({"input": [[1, 2, 3]]}, "token_ids", "input"),
        ({"encoding_format": "hex"}, None, "encoding_format"),
        ({"dimensions": 0}, None, "dimensions"),
        ({"truncate": "MIDDLE"}, None, "truncate"),
        ({"modality": "image"}, None, "modality"),
        ({"embedding_type": "binary"}, None, "embedding_type"),
        ({"truncat": "END"}, "extra_forbidden", "truncat"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, fields, code, param):
    refused(ask(client, **fields), 400, code, param)


def test_what_is_no_json_is_a_400(client):
    refused(client.post("/v1/embeddings", content=b"{"), 400, "invalid_json")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_read_whatever_the_client_calls_it(client, kind):
    headers = {"content-type": kind} if kind else {}
    body = json.dumps({"model": "embedding", "input": "w1"}).encode()
    assert client.post("/v1/embeddings", content=body, headers=headers).status_code == 200
    answer = client.put("/v1/models/sentiment/batching", content=b'{"instance_group": {"count": "2"}}', headers=headers)
    refused(answer, 400, "wrong_type", "instance_group.count")


def test_token_ids_name_the_setting_that_sends_text(client):
    assert "check_embedding_ctx_length=False" in refused(ask(client, input=[1, 2]), 400, "token_ids")


def test_a_key_is_needed_before_anything_is_read(gateway):
    with httpx.Client(base_url=gateway.url) as stranger:
        answer = stranger.post("/v1/embeddings", content=b"{")
        refused(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        viewer = gateway.services.auth.keys.create("viewer", ["viewer"])
        answer = stranger.post("/v1/embeddings", content=b"{", headers={"Authorization": f"Bearer {viewer}"})
        refused(answer, 403, "insufficient_role")


def test_what_is_not_there_is_a_404(client):
    refused(ask(client, model="nothing"), 404, "model_not_found", "model")
    answer = client.post("/v1/embeddings", json={"model": "embedding", "input": "w1"}, headers={"x-model-version": "9"})
    refused(answer, 404, "version_not_found")
    assert "/v1/nothing" in refused(client.get("/v1/nothing"), 404)
    assert "/embed takes no PUT" in refused(client.put("/embed", json={}), 405)
    refused(ask(client, model="sentiment"), 400, "wrong_task", "model")


def test_a_body_over_the_limit_is_a_413_with_and_without_a_length(client):
    refused(client.post("/v1/embeddings", content=b"x" * 150_000), 413, "body_too_large")
    refused(client.post("/v1/embeddings", content=iter([b"x" * 50_000] * 3)), 413, "body_too_large")


def test_a_priority_is_one_of_the_models_levels(client):
    body = {"model": "sentiment", "input": "w1"}
    assert client.post("/v1/classify", json=body, headers={"x-request-priority": "1"}).status_code == 200
    answer = client.post("/v1/classify", json=body, headers={"x-request-priority": "3"})
    refused(answer, 400, "invalid_header", "x-request-priority")


def test_a_deadline_that_passes_is_a_504_that_must_not_be_retried(client):
    answer = client.post(
        "/v1/embeddings", json={"model": "embedding", "input": TEXTS}, headers={"x-request-timeout-ms": "0.01"}
    )
    refused(answer, 504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    wrong = client.post("/v1/embeddings", json={}, headers={"x-request-timeout-ms": "soon"})
    refused(wrong, 400, "invalid_header", "x-request-timeout-ms")


def test_a_quota_gives_the_time_to_come_back(server, tmp_path):
    with gateway_on(server, tmp_path, quota_tokens_per_minute=60) as own, own.client() as client:
        began = time.monotonic()
        assert ask(client, input=" ".join(["w1"] * 50)).status_code == 200
        late = ask(client, input=" ".join(["w1"] * 40))
        refused(late, 429, "rate_limit_exceeded")
        spent = time.monotonic() - began  # in which the bucket filled again, by one token a second
        assert 30 - spent <= int(late.headers["retry-after"]) <= 31
        assert int(late.headers["retry-after-ms"]) <= 30_000
        assert "accel_quota_rejections_total" in client.get("/metrics").text


def test_health_asks_triton_for_every_model(server, gateway):
    with httpx.Client(base_url=gateway.url) as stranger:
        live, ready = stranger.get("/v1/health/live"), stranger.get("/v1/health/ready")
        assert (live.status_code, ready.status_code) == (200, 200)
        assert ready.json() == {"object": "health.response", "message": "ready", "ready": True}
        server.unload("sentiment")
        try:
            gone = stranger.get("/v1/health/ready")
            assert (gone.status_code, gone.json()["ready"]) == (503, False)
        finally:
            server.load("sentiment")


def test_the_metrics_count_by_endpoint_model_version_and_code(client):
    assert (ask(client).status_code, client.get("/v1/health/ready").status_code) == (200, 200)
    text = client.get("/v1/metrics").text
    assert 'accel_requests_total{code="200",endpoint="/v1/embeddings",model="embedding",version="2"}' in text
    assert 'accel_stage_duration_seconds_count{model="embedding",stage="inference"}' in text
    for name in ("accel_tokens_total", "accel_batch_padding_ratio_bucket", "accel_ready 1.0", "process_cpu_seconds"):
        assert name in text


def test_openapi_shows_every_code_with_an_example_of_the_request(client):
    document = client.get("/openapi.json").json()
    for path in ("/v1/embeddings", "/embeddings", "/v1/classify", "/embed", "/predict", "/similarity", "/"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) >= {"200", "400", "401", "403", "404", "413", "429", "500", "503", "504"}
        assert operation["requestBody"]["content"]["application/json"]["examples"]
        assert operation["security"]
        assert "422" not in str(sorted(operation["responses"]))


def peak_mb():
    """The most memory that this process had since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


LONG, SPACES, MANY = "w1 " * 35_000, "w1" + " " * 2_000_000 + "w2", ["w1 " * 1_000] * 2_048
PAIR, PAIRS = ["w1 " * 2_000, "w2 " * 50_000], [["w1 " * 60, "w2 " * 500]] * 2_048
CUT_IN_NIM, CUT_IN_TEI = ({}, {"truncate": "END"}), ({}, {"truncate": True})


@pytest.mark.parametrize(
    ("path", "bodies", "ways"),
    [
        ("/v1/embeddings", [{"model": "embedding", "input": each} for each in (LONG, SPACES, MANY)], CUT_IN_NIM),
        ("/v1/classify", [{"model": "sentiment", "input": each} for each in (LONG, SPACES)], CUT_IN_NIM),
        ("/embed", [{"inputs": each} for each in (LONG, SPACES, MANY)], CUT_IN_TEI),
        ("/predict", [{"inputs": each} for each in (LONG, SPACES, PAIR, PAIRS)], CUT_IN_TEI),
        ("/similarity", [{"inputs": {"source_sentence": LONG, "sentences": MANY}}], ({},)),
        ("/tokenize", [{"inputs": each} for each in (LONG, SPACES, MANY)], ({},)),
    ],
)
def test_a_large_request_takes_memory_by_its_size_on_every_path_of_texts(server, tmp_path, path, bodies, ways):
    with gateway_on(server, tmp_path) as own, own.client() as client:
        assert client.post("/embed", json={"inputs": "w1"}).status_code == 200
        forget_peak()
        before = peak_mb()
        for body in bodies:
            for way in ways:
                answer = client.post(path, json=body | way)
                assert answer.status_code in (200, 400), answer.text[:300]
        assert peak_mb() - before < 150


@pytest.mark.parametrize(("allowed", "sent", "status"), [(4, 5, 400), (5_000, 3_000, 200)])
def test_a_request_has_as_many_inputs_as_the_settings_allow(server, tmp_path, allowed, sent, status):
    with gateway_on(server, tmp_path, max_inputs=allowed) as own, own.client() as client:
        for path, name in (("/v1/embeddings", "input"), ("/v1/classify", "input"), ("/embed", "inputs")):
            model = {"model": "sentiment" if "classify" in path else "embedding"} if name == "input" else {}
            answer = client.post(path, json=model | {name: ["w1"] * sent})
            assert answer.status_code == status, answer.text[:300]
            assert status == 200 or f"at most {allowed}" in answer.json()["message"]
        batch = client.post("/predict", json={"inputs": [["w1"]] * sent})
        assert batch.status_code == status
