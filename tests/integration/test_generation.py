"""A tiny language model behind a real Triton and the gateway: streams, clients, limits, and what happens in faults."""

from __future__ import annotations

import contextlib
import json
import time

import httpx
import openai
import psutil
import pytest
import torch
from langchain_openai import ChatOpenAI

import accel_lib
from accel_lib.convert.generation_files import generation_to_transformers
from accel_lib.errors import RequestError
from accel_lib.models import load_model
from tests.gateways import gateway_on
from tests.generation import reference
from tests.tiny import TABLE, end_at_once, llama_folder, tiny_artifact

pytestmark = pytest.mark.triton
MESSAGES = [{"role": "user", "content": "w10 w11 w12"}]
LONGEST_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(llama_folder(tmp_path_factory.mktemp("llama"), max_position_embeddings=4096)))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as running:
        running.add("generation", generation_to_transformers(model, folder / "artifact"))
        running.add("embedding", tiny_artifact(folder / "embedding", TABLE))
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with gateway_on(server, tmp_path_factory.mktemp("state"), max_body_bytes=5_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    with gateway.client() as made:
        yield made


@pytest.fixture(scope="module")
def expected(model):
    """The greedy text of `MESSAGES`, 12 tokens, by transformers' ``generate``."""
    return continued(model, model.encode_chat(MESSAGES))


def continued(model, ids, max_tokens=12):
    """The greedy text after token ids; the mask says that id 0 is a token, not padding."""
    mask = torch.ones(1, len(ids), dtype=torch.int64)
    return model.decode(reference(model, ids, max_tokens, eos_token_id=None, attention_mask=mask))


def chat(client, *, path="/v1/chat/completions", **fields):
    body = {"model": "generation", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    return client.post(path, json=body | fields)


def chunks(answer):
    """The JSON of a stream's events, without the mark at its end."""
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_of(found):
    return "".join(c["delta"].get("content") or "" for chunk in found for c in chunk["choices"])


@contextlib.contextmanager
def endless(client, **fields):
    """Open a stream that would run for minutes; yields its lines once the first token is there."""
    body = {"model": "generation", "messages": MESSAGES, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body | fields) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        next(line for line in lines if '"content":"w' in line)
        yield lines


def running_rows(server):
    shown = httpx.get(server.metrics_url, trust_env=False).text
    return next(float(line.split()[-1]) for line in shown.splitlines() if line.startswith("vllm:num_requests_running{"))


def wait_for(condition):
    until = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_chat_is_answered_whole_as_transformers_generates_it(client, expected):
    answer = chat(client).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    assert answer["object"] == "chat.completion"


def test_a_stream_opens_with_the_role_and_ends_with_reason_usage_and_done(client, expected):
    answer = chat(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *middle, closing, usage = chunks(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(middle) == expected
    assert len(middle) > 1
    assert closing["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert len({chunk["id"] for chunk in chunks(answer)}) == 1


def test_usage_stands_in_every_chunk_if_asked_for(client):
    answer = chat(client, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counted = [chunk["usage"]["completion_tokens"] for chunk in chunks(answer)]
    assert counted == sorted(counted)
    assert counted[-1] == 12


def test_texts_and_token_ids_are_continued(client, model):
    prompts = ["w10 w11 w12", "w20"]
    texts = [continued(model, model.encode(each), 4) for each in prompts]
    fields = {"model": "generation", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    for sent in (prompts, [model.encode(each) for each in prompts]):
        answer = client.post("/v1/completions", json=fields | {"prompt": sent}).json()
        assert [choice["text"] for choice in answer["choices"]] == texts
        assert answer["usage"]["completion_tokens"] == 8


def test_a_stop_string_across_tokens_ends_the_text_and_is_not_shown(client, expected):
    words = expected.split(" ")
    stop = f"{words[3][-1]} {words[4][:2]}"
    end = expected.index(stop)
    whole, stream = chat(client, stop=stop).json(), chunks(chat(client, stop=[stop], stream=True))
    assert whole["choices"][0]["message"]["content"] == expected[:end] == text_of(stream)
    assert whole["choices"][0]["finish_reason"] == "stop" == stream[-1]["choices"][0]["finish_reason"]


def test_several_choices_are_several_streams_in_one(client, expected):
    found = chunks(chat(client, n=3, stream=True))
    for index in range(3):
        own = [{**chunk, "choices": [c for c in chunk["choices"] if c["index"] == index]} for chunk in found]
        assert text_of(own) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bob", "content": "w1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({"messages": [{"role": "user", "content": "w1 " * 5000}]}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["x"] * 50}, "stop"),
        ({"n": 0}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"bogus": 1}, "bogus"),
        ({"min_tokens": 100}, None),
        ({"stop_token_ids": [10**6]}, None),
        ({"model": "embedding"}, "model"),
    ],
)
def test_what_cannot_be_answered_is_a_400_that_names_it(client, fields, param):
    body = {"model": "generation", "messages": MESSAGES, "max_tokens": 12} | fields
    for stream in ({}, {"stream": True}):
        if stream and "stream_options" in fields:
            continue
        content = json.dumps(body | stream)
        answer = client.post("/v1/chat/completions", content=content)
        assert answer.status_code == 400, answer.text
        assert answer.json()["object"] == "error"
        if param:
            assert answer.json()["error"]["param"] == param


def test_an_embedding_endpoint_refuses_a_model_that_generates(client):
    answer = client.post("/v1/embeddings", json={"model": "generation", "input": "w1"})
    assert answer.status_code == 400
    assert "/v1/chat/completions" in answer.json()["message"]


def test_openai_s_client_streams_and_raises(gateway, expected):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as made:
        asked = {"model": "generation", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 12}
        extra = {"ignore_eos": True}
        assert made.chat.completions.create(**asked, extra_body=extra).choices[0].message.content == expected
        stream = made.chat.completions.create(**asked, extra_body=extra, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        with pytest.raises(openai.BadRequestError, match="context"):
            made.chat.completions.create(**asked | {"max_completion_tokens": 10**6})
        assert "generation" in [each.id for each in made.models.list()]


def test_langchain_s_chat_model_answers_and_streams(gateway, expected):
    made = ChatOpenAI(
        model="generation",
        base_url=f"{gateway.url}/v1",
        api_key=gateway.key,
        temperature=0,
        max_completion_tokens=12,
        extra_body={"ignore_eos": True},
    )
    assert made.invoke("w10 w11 w12").content == expected
    assert "".join(chunk.text for chunk in made.stream("w10 w11 w12")) == expected


def test_a_cell_gets_the_text_whole_or_in_pieces(server, expected):
    served = server.model("generation")
    asked = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    assert served.generate(MESSAGES, **asked) == expected
    pieces = list(served.generate(MESSAGES, stream=True, **asked))
    assert "".join(pieces) == expected
    assert len(pieces) > 1
    stop = expected[10:14]
    assert served.generate(MESSAGES, stop=stop, **asked) == expected[: expected.index(stop)]
    with pytest.raises(RequestError, match="context"):
        served.generate("w1", max_tokens=10**6)
    with pytest.raises(RequestError, match="no such option"):
        served.generate("w1", tokens=3)
    with pytest.raises(RequestError, match="does not generate"):
        server.model("embedding").generate("w1")


def test_an_iterator_that_is_left_frees_its_row(server):
    pieces = server.model("generation").generate("w1", stream=True, ignore_eos=True)
    next(pieces)
    wait_for(lambda: running_rows(server) == 1)
    pieces.close()
    wait_for(lambda: running_rows(server) == 0)


def test_a_client_that_leaves_frees_its_row(client, server, gateway):
    with endless(client):
        wait_for(lambda: running_rows(server) == 1)
    wait_for(lambda: running_rows(server) == 0)
    wait_for(lambda: gateway.services.limits.in_flight == 0)


def test_a_stop_string_frees_its_row(client, server, expected):
    chat(client, stop=expected.split(" ")[2], max_tokens=4000)
    wait_for(lambda: running_rows(server) == 0)


def test_a_deadline_is_to_the_first_token_not_to_the_last_one(client):
    answer = chat(client, max_tokens=12)
    late = client.post(
        "/v1/chat/completions",
        json={"messages": MESSAGES, "max_tokens": 5},
        headers={"x-request-timeout-ms": "0.001"},
    )
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert answer.status_code == 200


def test_a_viewer_may_not_generate(gateway):
    key = gateway.services.auth.keys.create("viewer", ["viewer"])
    with gateway.client(headers={"Authorization": f"Bearer {key}"}) as viewer:
        assert chat(viewer).status_code == 403


def test_the_quota_counts_tokens_both_ways(server, tmp_path):
    with gateway_on(server, tmp_path, quota_tokens_per_minute=60) as own, own.client() as made:
        assert chat(made, max_tokens=50).status_code == 200  # 7 in, 50 out
        refused = chat(made, max_tokens=1)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_metrics_have_vllm_s_names(client):
    chat(client)
    shown = client.get("/metrics").text
    for name in ("time_to_first_token_seconds_count", "inter_token_latency_seconds_count", "generation_tokens_total"):
        line = next(line for line in shown.splitlines() if line.startswith(f"vllm:{name}{{"))
        assert float(line.split()[-1]) > 0
    assert 'vllm:request_success_total{finished_reason="length",model_name="generation"}' in shown


def test_the_document_describes_both_endpoints(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {"200", "400", "429", "503", "504"} <= set(paths[path]["post"]["responses"])


def test_a_stream_that_the_drain_does_not_finish_ends_with_an_error_inside(server, tmp_path):
    with gateway_on(server, tmp_path, drain_s=0.5) as own, own.client() as made, endless(made) as lines:
        own._server.drain()
        rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "draining"
        assert rest[-1] == "data: [DONE]"


def test_a_model_s_process_that_is_killed_ends_its_streams_with_an_error_and_comes_back(client, server):
    (stub,) = [
        each
        for each in psutil.Process(server.pid).children(recursive=True)
        if "stub" in each.name() and "generation" in " ".join(each.cmdline())
    ]
    with endless(client) as lines:
        stub.kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_failed"
    wait_for(lambda: chat(client).status_code == 200)
