"""A tiny language model behind a real Triton and the gateway: streams, clients, limits, and what happens in faults."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from langchain_openai import ChatOpenAI

import accel_lib
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.convert.generation_files import generation_to_transformers
from accel_lib.errors import RequestError
from accel_lib.load import GenerationLoadRun
from accel_lib.models import load_model
from accel_lib.triton.repository import default_config
from tests.gateways import gateway_on
from tests.generation import reference
from tests.rig import check_error
from tests.tiny import TABLE, end_at_once, llama_folder, tiny_artifact

pytestmark = pytest.mark.triton
MESSAGES = [{"role": "user", "content": "w10 w11 w12"}]
LONGEST_S = 60
CONTEXT = 65_536  # tokens; a text of that length takes the tiny model many seconds
ENDLESS = 60_000
CACHE = 4 * CONTEXT
ACCEL = Path(sys.executable).with_name("accel")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(llama_folder(tmp_path_factory.mktemp("llama"), max_position_embeddings=CONTEXT)))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as running:
        first = generation_to_transformers(model, folder / "transformers")
        config = default_config("generation", first).replace(cache_tokens=CACHE)
        running.add("generation", first, config=config)
        converted = generation_to_openvino(model, output=folder / "openvino", progress=False)
        running.add("generation", converted.record_validation({"passed": True}), version=2)
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


def piece_of(line):
    return text_of([json.loads(line.removeprefix("data: "))]) if line.startswith("data: {") else ""


def text_of(found):
    return "".join(c["delta"].get("content") or "" for chunk in found for c in chunk["choices"])


@contextlib.contextmanager
def endless(client, **fields):
    """Open a stream that would run for minutes; yields its lines once the first token is there."""
    body = {"model": "generation", "messages": MESSAGES, "max_tokens": ENDLESS, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body | fields) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        first = next(line for line in lines if piece_of(line))
        yield itertools.chain([first], lines)


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


def test_transformers_generates_the_same_behind_another_version(client, expected):
    pinned = client.post(
        "/v1/chat/completions",
        json={"messages": MESSAGES, "temperature": 0, "max_tokens": 12, "ignore_eos": True},
        headers={"x-model-version": "1"},
    )
    assert pinned.json()["choices"][0]["message"]["content"] == expected
    assert pinned.headers["x-model-version"] == "1"


def test_a_seed_gives_the_same_text_alone_and_among_others(client):
    def text(**fields):
        return [choice["message"]["content"] for choice in chat(client, temperature=1, **fields).json()["choices"]]

    alone = text(seed=7)
    assert text(seed=7) == alone
    among = text(seed=7, n=3)
    assert among[:1] == alone
    assert len(set(among)) == 3


def test_log_probabilities_come_with_the_tokens(client, expected):
    for stream in (False, True):
        answer = chat(client, logprobs=True, top_logprobs=0, stream=stream)
        found = chunks(answer) if stream else [answer.json()]
        rows = [row for c in found for each in c["choices"] if each["logprobs"] for row in each["logprobs"]["content"]]
        assert [row["token"] for row in rows] == expected.split(" ")
        assert all(row["logprob"] <= 0 for row in rows)
    plain = client.post("/v1/completions", json={"prompt": "w1", "max_tokens": 3, "logprobs": 0}).json()
    assert len(plain["choices"][0]["logprobs"]["token_logprobs"]) == len(plain["choices"][0]["logprobs"]["tokens"])


def test_a_stream_opens_with_the_role_and_ends_with_reason_usage_and_done(client, expected):
    answer = chat(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *middle, closing, usage = chunks(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(middle) == expected
    assert closing["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert len({chunk["id"] for chunk in chunks(answer)}) == 1


def test_a_long_text_comes_in_many_pieces(client):
    long = {"max_tokens": 500}
    pieces = [chunk for chunk in chunks(chat(client, stream=True, **long)) if text_of([chunk])]
    assert len(pieces) > 10
    assert text_of(pieces) == chat(client, **long).json()["choices"][0]["message"]["content"]


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


# What a chat with these fields is refused with: the field at fault; 400 where nothing else is said.
BAD_CHATS: list[tuple[dict, str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ""}, {"role": "user", "content": 1}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}, None),
    ({"messages": [{"role": "bob", "content": "w1"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
    ({"messages": [{"role": "user", "content": "w1 " * CONTEXT}]}, "max_tokens"),
    ({"messages": [{"role": "user", "content": "w1 " * 1_400_000}]}, "max_tokens"),
    ({"messages": [{"role": "user", "content": "w1" * 2_000_000}], "max_tokens": CONTEXT}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": "12"}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": CONTEXT}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"top_k": -2}, "top_k"),
    ({"top_p": 1.5}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["\ud83d"]}, "stop[0]"),
    ({"stop": "x" * 1001}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"n": 17}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"user": 5}, "user"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
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
    ({"model": ""}, "model"),
    ({"model": 1}, "model"),
    ({"model": "nothing"}, "model"),
]
BAD_TEXTS: list[tuple[dict, str | None]] = [
    ({"prompt": ""}, None),
    ({"prompt": " "}, None),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, None),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"text": "w1"}}, None),
    ({"prompt": ["w1", 5]}, None),
    ({"prompt": ["w1", "\ud800"]}, None),
    ({"prompt": [5, -1]}, None),
    ({"prompt": [5, 10**6]}, None),
    ({"prompt": [5, 2**70]}, None),
    ({"prompt": [5] * 64_001}, "prompt"),
    ({"prompt": ["w1", "w1 " * CONTEXT]}, "max_tokens"),
    ({"prompt": "w1 " * 1_400_000}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": -1}, "logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True}, "echo"),
    ({"messages": MESSAGES}, "messages"),
]
BAD = [
    *(("/v1/chat/completions", {"messages": MESSAGES} | fields, param) for fields, param in BAD_CHATS),
    *(("/v1/completions", {"prompt": "w1"} | fields, param) for fields, param in BAD_TEXTS),
]
BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"messages": [' + b"[" * 100_000,
    b"\xff\xfe",
    b'{"messages": "\xed\xa0\x80"}',
]


def refuse(client, path, fields, param):
    """Ask for it, whole and as a stream: a 4xx in OpenAI's shape that names the field."""
    body = {"model": "generation", "max_tokens": 12} | fields
    for stream in ({}, {"stream": True}):
        if stream and {"stream", "stream_options"} & fields.keys():
            continue
        answer = client.post(path, content=json.dumps(body | stream))
        assert answer.status_code == (404 if fields.get("model") == "nothing" else 400), answer.text[:500]
        check_error(answer)
        assert len(answer.text) < 3_000
        if param:
            assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(("path", "fields", "param"), BAD, ids=[f"{n}-{param}" for n, (_, _, param) in enumerate(BAD)])
def test_what_cannot_be_answered_is_a_400_that_names_it(client, path, fields, param):
    refuse(client, path, fields, param)


def test_a_stream_that_runs_meanwhile_is_not_disturbed(client):
    count = 3_000
    with endless(client, temperature=0) as lines:
        for path, fields, param in BAD:
            refuse(client, path, fields, param)
        for content in BAD_BODIES:
            answer = client.post("/v1/chat/completions", content=content)
            assert answer.status_code == 400, answer.text[:500]
            check_error(answer)
        too_large = json.dumps({"messages": [{"role": "user", "content": "w1 " * 1_700_000}]})
        assert client.post("/v1/chat/completions", content=too_large).status_code == 413
        found = ""
        while found.count(" ") <= count:
            found += piece_of(next(lines))
    whole = chat(client, max_tokens=count).json()["choices"][0]["message"]["content"]
    assert found[: len(whole)] == whole


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
    assert "".join(served.generate(MESSAGES, stream=True, **asked)) == expected
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


def test_streams_that_are_left_at_any_moment_do_no_harm_to_triton(client, server):
    """Triton 24.10 crashed after some ninety, as gRPC's cancellations met tokens; the model starved its own sender."""
    served = server.model("generation")

    def leave_often(number):
        for turn in range(20):
            if number % 2:
                with endless(client):
                    time.sleep(turn / 500)
            else:
                pieces = served.generate("w1", stream=True, ignore_eos=True)
                for _ in zip(range(1 + turn), pieces, strict=False):
                    pass
                pieces.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(leave_often, range(6)))
    wait_for(lambda: running_rows(server) == 0)
    assert server.running
    assert chat(client).status_code == 200


def test_a_stop_string_frees_its_row(client, server, expected):
    stopped = chat(client, stop=expected.split(" ")[2], max_tokens=ENDLESS)
    assert stopped.status_code == 200
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


def test_a_priority_is_one_of_three(client, expected):
    for asked in ("0", "1", "3"):
        body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
        answer = client.post("/v1/chat/completions", json=body, headers={"x-request-priority": asked})
        assert answer.json()["choices"][0]["message"]["content"] == expected
    refused = client.post("/v1/chat/completions", json={"messages": MESSAGES}, headers={"x-request-priority": "4"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-priority")


@pytest.mark.parametrize("way", ["triton", "gateway", "url"])
def test_load_on_every_way_to_the_model_counts_each_token(server, gateway, way):
    target = {"triton": server.model("generation"), "gateway": gateway, "url": f"{gateway.url}/v1"}[way]
    how = {"prompt_tokens": (20, 60), "output_tokens": (1, 30), "key": gateway.key, "seed": 4}
    run = accel_lib.generation_load_test(target, arrivals=[0.01 * place for place in range(24)], **how)
    assert not run.errors
    again = accel_lib.generation_load_test(target, clients=6, requests=24, **how)
    assert again.frame["output_tokens"].sum() == run.frame["output_tokens"].sum()
    assert run.tokens["tokens"].sum() == run.frame["output_tokens"].sum()
    assert run.frame["output_tokens"].between(1, 30).all()
    assert run.frame["prompt_tokens"].between(15, 66).all()
    assert (run.frame["first_token_s"] <= run.frame["end_s"]).all()


def test_two_hundred_streams_at_once_are_all_answered(server):
    served = server.model("generation")
    run = accel_lib.generation_load_test(served, arrivals=[0.0] * 200, prompt_tokens=16, output_tokens=8)
    assert run.frame["output_tokens"].tolist() == [8] * 200


def test_load_says_what_is_wrong_with_its_target(server, gateway):
    with pytest.raises(RequestError, match="does not generate"):
        accel_lib.generation_load_test(server.model("embedding"))
    with pytest.raises(RequestError, match=r"refused a request[\s\S]*key"):
        accel_lib.generation_load_test(gateway.url, key="wrong", requests=1)
    with pytest.raises(RequestError, match="context"):
        accel_lib.generation_load_test(gateway, requests=2, output_tokens=10**6, warmup=0)


def test_the_command_puts_load_on_a_gateway_that_runs(gateway, tmp_path):
    kept = tmp_path / "run.json"
    asked = ["--url", gateway.url, "--rate", "20", "--seconds", "1", "--output-tokens", "exponential:8:20"]
    done = subprocess.run(
        [ACCEL, "load", "generation", *asked, "--prompt-tokens", "20-40", "--ttft-ms", "60000", "--save", kept],
        env=os.environ | {"ACCEL_KEY": gateway.key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = GenerationLoadRun.open(kept)
    assert run.headline in done.stdout
    assert "keep TTFT ≤ 60,000 ms" in done.stdout
    assert run.frame["output_tokens"].max() <= 20


def test_the_command_starts_a_triton_for_a_model_that_generates(server, tmp_path):
    shutil.copytree(server.repository / "generation", tmp_path / "generation")
    asked = ["--repository", tmp_path, "--clients", "3", "--seconds", "1", "--output-tokens", "8"]
    done = subprocess.run([ACCEL, "load", "generation", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "with 3 clients" in done.stdout
    assert "time to first token (TTFT)" in done.stdout


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


def test_an_experiment_splits_chats_by_weight_and_sticks_to_a_user(client):
    plan = {"model": "generation", "weights": {"1": 50, "2": 50}, "sticky": "user"}
    assert client.put("/v1/experiments/chats", json=plan).status_code == 200
    try:
        seen = {user: {chat(client, user=user).headers["x-model-version"] for _ in range(3)} for user in "abcdefgh"}
        assert all(len(versions) == 1 for versions in seen.values())
        assert set.union(*seen.values()) == {"1", "2"}
        shadow = plan | {"weights": {"2": 1}, "shadow": "1"}
        assert client.put("/v1/experiments/chats", json=shadow).status_code == 409
    finally:
        assert client.put("/v1/experiments/chats", json={"action": "rollback"}).status_code == 200


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


def test_a_request_that_the_cache_has_no_room_for_waits_until_its_deadline_or_somebody_leaves(client):
    asked = {"messages": MESSAGES, "max_tokens": ENDLESS, "stream": True, "ignore_eos": True}
    with contextlib.ExitStack() as others:
        for _ in range(CACHE // CONTEXT):
            others.enter_context(endless(client))
        late = client.post("/v1/chat/completions", json=asked, headers={"x-request-timeout-ms": "300"})
        assert late.status_code == 504
        assert "vllm:num_requests_running" in client.get("/metrics").text
    assert chat(client).status_code == 200


def test_a_reader_that_is_slow_gets_all_of_its_text_and_holds_up_nobody(client, expected):
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as slow:
        assert chat(client).json()["choices"][0]["message"]["content"] == expected
        time.sleep(1)
        found = [json.loads(line[6:]) for line in slow.iter_lines() if line.startswith("data: {")]
    assert text_of(found) == chat(client, max_tokens=2000).json()["choices"][0]["message"]["content"]


def test_a_model_s_process_that_is_killed_ends_its_streams_with_an_error_and_comes_back(client, server):
    (stub,) = [
        each
        for each in psutil.Process(server.pid).children(recursive=True)
        if "stub" in each.name() and "generation/2" in " ".join(each.cmdline())
    ]
    with endless(client) as lines:
        stub.kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_failed"
    wait_for(lambda: chat(client).status_code == 200)
