"""Reranking on a real Triton behind a real gateway: three contracts, one order (CrossEncoder's), bad input named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentence_transformers
import torch

import accel_lib
from accel_lib.errors import RequestError
from tests.gateways import gateway_on
from tests.tiny import TABLE, WIDTH, classifier_folder, end_at_once, tiny_artifact

pytestmark = pytest.mark.triton
QUERY = "How many people live in Berlin?"
PASSAGES = ["Berlin has 3,520,031 inhabitants.", "bananas are yellow", "The museum is closed.", "bananas are yellow"]
RANKING = {"model": "cross", "query": {"text": QUERY}, "passages": [{"text": text} for text in PASSAGES]}
TEI = {"query": QUERY, "texts": PASSAGES}
RERANK = {"model": "cross", "query": QUERY, "documents": PASSAGES}
BODIES = {"/v1/ranking": RANKING, "/rerank": TEI, "/v1/rerank": RERANK}
LONG = "word " * 3_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("models") / "cross", labels=1)


@pytest.fixture(scope="module")
def logits(folder):
    """CrossEncoder's own of the passages."""
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    return encoder.predict([(QUERY, passage) for passage in PASSAGES], activation_fn=torch.nn.Identity())


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("rerank")
    (place / "model_repository").mkdir()
    model = accel_lib.load_model(str(folder))
    artifact = accel_lib.to_onnx(model, output=place / "cross", progress=False)
    accel_lib.validate(artifact, reference=model, texts=list(accel_lib.load_texts("mixed", limit=16)))
    labels = tuple(f"label {number}" for number in range(WIDTH))
    with accel_lib.serve(place / "model_repository") as running:
        running.add("cross", artifact)
        running.add("embedding", tiny_artifact(place / "one", TABLE))
        running.add("sentiment", tiny_artifact(place / "classes", TABLE, task="classification", labels=labels))
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with gateway_on(server, tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    with gateway.client() as made:
        yield made


def best_first(logits):
    return np.argsort(-logits, kind="stable").tolist()


def test_nims_ranking_gives_cross_encoders_logits_best_first(client, logits):
    answer = client.post("/v1/ranking", json=RANKING)
    assert answer.status_code == 200, answer.text
    rankings = answer.json()["rankings"]
    assert [each["index"] for each in rankings] == best_first(logits)
    np.testing.assert_allclose([each["logit"] for each in rankings], np.sort(logits)[::-1], atol=1e-4)
    assert answer.json()["usage"]["prompt_tokens"] == answer.json()["usage"]["total_tokens"] > 0
    assert float(answer.headers["x-inference-time"]) > 0
    assert answer.headers["x-model-version"] == "1"


def test_tei_gives_sigmoids_unless_raw_and_the_texts_if_asked(client, logits):
    order = best_first(logits)
    ranks = client.post("/rerank", json=TEI).json()
    assert [each["index"] for each in ranks] == order
    assert all(set(each) == {"index", "score"} for each in ranks)
    np.testing.assert_allclose([each["score"] for each in ranks], 1 / (1 + np.exp(-logits[order])), atol=1e-4)
    raw = client.post("/rerank", json=TEI | {"raw_scores": True, "return_text": True, "unknown": 1}).json()
    np.testing.assert_allclose([each["score"] for each in raw], logits[order], atol=1e-4)
    assert [each["text"] for each in raw] == [PASSAGES[index] for index in order]


def test_coheres_rerank_gives_the_first_n_and_the_documents_if_asked(client, logits):
    order = best_first(logits)
    body = client.post("/v1/rerank", json=RERANK).json()
    assert [each["index"] for each in body["results"]] == order
    assert body["id"].startswith("rerank-")
    assert body["model"] == "cross"
    asked = {"query": QUERY, "documents": [PASSAGES[0], {"text": PASSAGES[1]}], "top_n": 1, "return_documents": True}
    (first,) = client.post("/v1/rerank", json=asked).json()["results"]
    assert first["document"] == {"text": PASSAGES[first["index"]]}
    assert first["relevance_score"] == pytest.approx(1 / (1 + np.exp(-logits[first["index"]])), abs=1e-4)


def test_the_model_may_be_left_out_and_a_classifier_beside_it_is_not_taken_for_it(client):
    assert client.post("/v1/ranking", json={**RANKING, "model": None}).status_code == 200
    assert client.post("/v1/classify", json={"input": "w1"}).json()["model"] == "sentiment"
    assert len(client.post("/predict", json={"inputs": "w1"}).json()) == WIDTH


def test_a_model_for_something_else_is_a_400_that_names_its_own_endpoint(client):
    for name, own in (("embedding", "/v1/embeddings"), ("sentiment", "/v1/classify")):
        for path in ("/v1/ranking", "/v1/rerank"):
            answer = client.post(path, json=BODIES[path] | {"model": name})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_task")
            assert own in answer.json()["message"]
    answer = client.post("/v1/embeddings", json={"model": "cross", "input": "a"})
    assert "/v1/ranking" in answer.json()["message"]
    assert client.post("/v1/ranking", json=RANKING | {"model": "nothing"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "change", "param", "words"),
    [
        ("/v1/ranking", {"passages": []}, "passages", "is empty"),
        ("/v1/ranking", {"passages": [{"text": "a"}] * 513}, "passages", "at most 512"),
        ("/v1/ranking", {"passages": [{"text": "a"}, {"text": " "}]}, "passages[1].text", "blank"),
        ("/v1/ranking", {"passages": [{"text": "a", "image": "data:"}]}, "passages[0].image", "not a field"),
        ("/v1/ranking", {"passages": ["a"]}, "passages[0]", "an object is expected"),
        ("/v1/ranking", {"query": QUERY}, "query", "an object is expected"),
        ("/v1/ranking", {"query": {}}, "query.text", "is missing"),
        ("/v1/ranking", {"query": {"text": ""}}, "query.text", "is empty"),
        ("/v1/ranking", {"query": {"text": "a" * 70_000}}, "query.text", "more than 65536 characters"),
        ("/v1/ranking", {"query": {"text": "\ud800"}}, "query.text", "lone surrogate"),
        ("/v1/ranking", {"truncate": "START"}, "truncate", "'NONE' or 'END'"),
        ("/v1/ranking", {"passages": [{"text": "a"}, {"text": LONG}]}, "passages", "Input 1 has"),
        ("/v1/ranking", {"query": {"text": LONG}}, "passages", '"truncate": "END"'),
        ("/rerank", {"texts": []}, "texts", "is empty"),
        ("/rerank", {"texts": "a"}, "texts", "a list is expected"),
        ("/rerank", {"texts": [["a"]]}, "texts[0]", "a text is expected"),
        ("/rerank", {"query": None}, "query", "is missing"),
        ("/rerank", {"raw_scores": 1}, "raw_scores", "true or false"),
        ("/rerank", {"texts": [LONG]}, "texts", '"truncate": true'),
        ("/v1/rerank", {"documents": []}, "documents", "is empty"),
        ("/v1/rerank", {"documents": [1]}, "documents[0]", "a text or"),
        ("/v1/rerank", {"documents": [{"text": "a", "title": "b"}]}, "documents[0].title", "not a field"),
        ("/v1/rerank", {"top_n": 0}, "top_n", "at least 1"),
        ("/v1/rerank", {"top_n": 1.5}, "top_n", "a whole number"),
        ("/v1/rerank", {"rank_fields": ["text"]}, "rank_fields", "not a field"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(client, path, change, param, words):
    answer = client.post(path, content=json.dumps(BODIES[path] | change))  # ASCII: a lone surrogate is escaped
    assert answer.status_code == 400, answer.text[:300]
    assert answer.json()["error"]["param"] == param, answer.text[:300]
    assert words in answer.json()["message"]


def test_what_is_too_long_is_cut_where_asked(client):
    long = [{"text": LONG}, {"text": "short"}]
    assert client.post("/v1/ranking", json=RANKING | {"passages": long, "truncate": "END"}).status_code == 200
    assert client.post("/v1/rerank", json=RERANK | {"documents": [LONG], "truncate": "START"}).status_code == 200
    for direction in ("Left", "Right"):
        way = {"texts": [LONG, "short"], "truncate": True, "truncation_direction": direction}
        assert client.post("/rerank", json=TEI | way).status_code == 200


def test_five_hundred_and_twelve_passages_are_ranked_and_a_long_query_is_tokenized_once(client):
    texts = [f"passage {number}" for number in range(512)]
    body = {"query": {"text": "w " * 30_000}, "passages": [{"text": text} for text in texts], "truncate": "END"}
    answer = client.post("/v1/ranking", json=body)
    assert answer.status_code == 200, answer.text[:300]
    assert sorted(each["index"] for each in answer.json()["rankings"]) == list(range(512))
    assert float(answer.headers["x-tokenization-time"]) < 20_000  # 512 times would be minutes
    logits = [each["logit"] for each in answer.json()["rankings"]]
    assert logits == sorted(logits, reverse=True)


def test_keys_deadlines_and_quotas_hold_as_on_every_endpoint(server, gateway, client, tmp_path):
    for path, body in BODIES.items():
        assert client.post(path, json=body, headers={"Authorization": "Bearer no"}).status_code == 401
        late = client.post(path, json=body, headers={"x-request-timeout-ms": "0.001"})
        assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
        assert client.get(path).status_code == 405
        assert client.head(path).status_code == 405
    with gateway_on(server, tmp_path, quota_tokens_per_minute=20) as own, own.client() as few:
        refused = few.post("/v1/rerank", json=RERANK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert gateway.key


def test_openapi_describes_the_three_contracts(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in BODIES:
        operation = paths[path]["post"]
        assert set(operation["responses"]) >= {"200", "400", "401", "403", "404", "413", "429", "500", "503", "504"}
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            body = {**example["value"], **({"model": "cross"} if "model" in example["value"] else {})}
            assert client.post(path, json=body).status_code == 200


def test_langchains_nvidia_reranker_orders_documents(gateway, logits):
    nvidia = pytest.importorskip("langchain_nvidia_ai_endpoints")
    documents = pytest.importorskip("langchain_core.documents")
    reranker = nvidia.NVIDIARerank(
        model="cross", base_url=f"{gateway.url}/v1", api_key=gateway.key, top_n=3, truncate="END", max_batch_size=2
    )
    given = [documents.Document(page_content=text) for text in PASSAGES]
    found = reranker.compress_documents(given, QUERY)
    assert [each.page_content for each in found] == [PASSAGES[index] for index in best_first(logits)[:3]]
    scores = [each.metadata["relevance_score"] for each in found]
    np.testing.assert_allclose(scores, np.sort(logits)[::-1][:3], atol=1e-4)


def test_a_served_model_reranks_and_one_that_is_no_reranker_says_so(server, logits):
    order = best_first(logits)
    found = server.model("cross").rerank(QUERY, PASSAGES)
    assert [each.index for each in found] == order
    assert [each.text for each in found] == [PASSAGES[index] for index in order]
    np.testing.assert_allclose([each.logit for each in found], logits[order], atol=1e-4)
    np.testing.assert_allclose([each.score for each in found], 1 / (1 + np.exp(-logits[order])), atol=1e-4)
    assert len(server.model("cross").rerank(QUERY, PASSAGES, top_n=2)) == 2
    assert server.model("cross").rerank(QUERY, []) == []
    for name in ("embedding", "sentiment"):
        with pytest.raises(RequestError, match="no reranker"):
            server.model(name).rerank(QUERY, PASSAGES)
