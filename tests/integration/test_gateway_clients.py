"""Clients that other people wrote, unmodified, against the gateway."""

from __future__ import annotations

import numpy as np
import pytest

import accel_lib
from tests.tiny import TABLE, WIDTH, tiny_artifact, tiny_model, tiny_texts

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.triton
TEXTS = tiny_texts(5)
EXPECTED = tiny_model().reference(TEXTS)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as server:
        server.add("embedding", tiny_artifact(folder / "one", TABLE))
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
