"""Clients that other people wrote, unmodified, against the gateway."""

from __future__ import annotations

import numpy as np
import pytest

import accel_lib
from tests.tiny import LONGEST, TABLE, WIDTH, tiny_artifact, tiny_model, tiny_texts, tokenizer

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.triton
TEXTS = tiny_texts(5)
EXPECTED = tiny_model().reference(TEXTS)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as server:
        prompts = {"query": "w7 ", "document": "w8 ", "clustering": "w9 "}
        own = tiny_artifact(folder / "own", TABLE, unit=False, prompts=prompts, default_prompt="document")
        server.add("embedding", own)
        server.add("embedding", tiny_artifact(folder / "one", TABLE), version=2)
        labels = tuple(f"label {number}" for number in range(WIDTH))
        server.add("sentiment", tiny_artifact(folder / "classes", TABLE, task="classification", labels=labels))
        with accel_lib.serve_gateway(server) as running:
            yield running


@pytest.fixture(scope="module")
def client(gateway):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)


def test_openais_client_gets_vectors_by_its_default_base64(client):
    answer = client.embeddings.create(model="embedding", input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in answer.data], EXPECTED, atol=1e-6)
    assert answer.usage.total_tokens > 0


def test_openais_client_gets_floats_and_fewer_dimensions(client):
    answer = client.embeddings.create(model="embedding", input=TEXTS[0], encoding_format="float", dimensions=8)
    assert len(answer.data[0].embedding) == 8


def test_openais_client_raises_its_own_errors(client, gateway):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="nothing", input="w1")
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="embedding", input="w1 " * 200)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="no").embeddings.create(model="embedding", input="w1")


def test_langchains_nvidia_embeddings(gateway):
    nvidia = pytest.importorskip("langchain_nvidia_ai_endpoints")
    embedder = nvidia.NVIDIAEmbeddings(
        model="embedding", base_url=f"{gateway.url}/v1", api_key=gateway.key, truncate="END"
    )
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), EXPECTED, atol=1e-6)
    assert len(embedder.embed_query("w1 w2")) == WIDTH


def test_langchains_openai_embeddings_with_and_without_token_ids(gateway):
    langchain = pytest.importorskip("langchain_openai")
    where = {"model": "embedding", "base_url": f"{gateway.url}/v1", "api_key": gateway.key}
    embedder = langchain.OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), EXPECTED, atol=1e-6)


@pytest.fixture(scope="module")
def hugging_face(gateway):
    """Hugging Face's client of a URL, as it asks text-embeddings-inference, for a version of the model."""
    hub = pytest.importorskip("huggingface_hub")

    def made(path="", version="2"):
        headers = {"x-model-version": version}
        return hub.InferenceClient(
            model=gateway.url + path, provider="hf-inference", token=gateway.key, headers=headers
        )

    return made


@pytest.mark.parametrize("path", ["", "/embed"])
def test_hugging_faces_client_gets_vectors(hugging_face, path):
    np.testing.assert_allclose(hugging_face(path).feature_extraction(TEXTS), EXPECTED, atol=1e-6)


def test_vectors_have_length_one_unless_the_models_own_are_asked_for(hugging_face):
    client, unit = hugging_face("/embed", version="1"), hugging_face("/embed")
    words = [f"w8 {text}" for text in TEXTS]  # with the model's default prompt
    own = client.feature_extraction(TEXTS, normalize=False)
    np.testing.assert_allclose(own, [TABLE[row].sum(axis=0) for row in tokenizer()(words)], atol=1e-4)
    np.testing.assert_allclose(client.feature_extraction(TEXTS), unit.feature_extraction(words), atol=1e-6)
    np.testing.assert_array_equal(client.feature_extraction(TEXTS, normalize=False, dimensions=8), own[:, :8])
    short = own[:, :8] / np.linalg.norm(own[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(client.feature_extraction(TEXTS, dimensions=8), short, atol=1e-6)


def test_a_prompt_is_any_that_the_model_has_and_without_one_its_default(hugging_face):
    client = hugging_face(version="1")
    for prompt_name, words in (("clustering", "w9 w1"), ("query", "w7 w1"), (None, "w8 w1")):
        with_prompt = client.feature_extraction("w1", prompt_name=prompt_name)
        np.testing.assert_allclose(with_prompt, hugging_face().feature_extraction(words), atol=1e-6)
    with pytest.raises(Exception, match="query, document, clustering"):
        client.feature_extraction("w1", prompt_name="passage")


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_hugging_faces_client_compares_sentences(hugging_face, path):
    found = hugging_face(path).sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    np.testing.assert_allclose(found, EXPECTED[1:] @ EXPECTED[0], atol=1e-6)


def test_hugging_faces_client_classifies(hugging_face):
    best = hugging_face("/predict", version="1").text_classification(TEXTS[0])
    assert best.label == f"label {EXPECTED[0].argmax()}"


def test_hugging_faces_client_asks_what_is_served_and_whether_it_is_well(hugging_face):
    info = hugging_face().get_endpoint_info()
    assert (info["model_id"], info["max_input_length"], info["auto_truncate"]) == ("tiny", LONGEST, False)
    assert hugging_face().health_check()


def test_hugging_faces_client_shows_the_message_of_an_error(hugging_face):
    with pytest.raises(Exception, match=r"inputs\[1\] is blank"):
        hugging_face().feature_extraction(["w1", " "])
