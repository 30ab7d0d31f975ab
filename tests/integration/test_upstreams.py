"""A model that is elsewhere, behind the same gateway: what passes through, and which rules of the gateway hold."""

from __future__ import annotations

import json
import time

import openai
import pytest

import accel_lib
from accel_lib.errors import AccelError
from accel_lib.service.app import create_app
from accel_lib.service.settings import Settings
from tests.gateways import gateway_on
from tests.rig import check_error
from tests.tiny import TABLE, end_at_once, tiny_artifact
from tests.upstream import KEY, USAGE, WORDS, StandIn

pytestmark = pytest.mark.triton
TEXT = "".join(WORDS)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upstreams")
    (folder / "model_repository").mkdir()
    with accel_lib.serve(folder / "model_repository") as running:
        running.add("embedding", tiny_artifact(folder / "embedding", TABLE))
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def stand_in():
    with StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def elsewhere(stand_in):
    """Two versions of one model, the second under the name that it has there; and one that nobody answers."""
    two = [{"url": stand_in.url}, {"url": f"{stand_in.url}/", "key": KEY, "model": "meta/llama"}]
    return {"llama": two, "away": {"url": "http://127.0.0.1:9/v1"}}


@pytest.fixture(scope="module")
def gateway(server, elsewhere, tmp_path_factory):
    with gateway_on(server, tmp_path_factory.mktemp("state"), upstreams=elsewhere, deadline_s=20) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    with gateway.client() as made:
        yield made


def body(text="hello", **fields):
    return {"model": "llama", "messages": [{"role": "user", "content": text}]} | fields


def values(lines):
    found = [line.removeprefix("data: ") for line in lines if line]
    assert found[-1] == "[DONE]"
    return [json.loads(value) for value in found[:-1]]


def text_of(found):
    return "".join(choice["delta"].get("content", "") for each in found for choice in each["choices"])


def streamed(client, text="hello", **fields):
    answer = client.post(CHAT, json=body(text, stream=True, **fields))
    assert answer.status_code == 200, answer.text
    return values(answer.text.split("\n\n"))


def test_a_body_and_its_answer_pass_as_they_are_but_for_the_model_and_the_key(client, gateway, stand_in):
    own = {"tools": [{"type": "function", "function": {"name": "f"}}], "guided_json": {}, "temperature": 0.3}
    answer = client.post(CHAT, json=body(**own), headers={"x-request-id": "mine"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert answer.json()["usage"] == USAGE
    assert answer.headers["x-model-version"] == "2"
    assert stand_in.asked[-1] == body(**own) | {"model": "meta/llama"}
    assert stand_in.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert stand_in.headers[-1]["x-request-id"] == "mine"
    client.post(CHAT, json=body(), headers={"x-model-version": "1"})
    assert stand_in.asked[-1]["model"] == "llama"
    assert gateway.key not in json.dumps(stand_in.headers)


def test_a_text_to_continue_passes_too_and_the_only_model_that_generates_needs_no_name(
    server, client, stand_in, tmp_path
):
    answer = client.post("/v1/completions", json={"model": "llama", "prompt": "once"})
    assert answer.status_code == 200, answer.text
    with gateway_on(server, tmp_path, upstreams={"only": {"url": stand_in.url}}) as own, own.client() as made:
        assert made.post(CHAT, json=body(model=None)).json()["model"] == "only"


def test_events_come_as_they_are_sent(client, stand_in):
    stand_in.go_on.clear()
    with client.stream("POST", CHAT, json=body("hold", stream=True)) as answer:
        lines = answer.iter_lines()
        seen = []
        while WORDS[0] not in "".join(seen):
            seen.append(next(lines))
        stand_in.go_on.set()  # only now does the stand-in go on
        seen += lines
    assert b"".join(each.encode() for each in seen).decode().count("data: {") == len(WORDS) + 2


def test_the_text_is_whole_and_usage_is_told_to_those_who_ask(client, stand_in):
    found = streamed(client)
    assert text_of(found) == TEXT
    assert all(each["choices"] for each in found)
    assert stand_in.asked[-1]["stream_options"] == {"include_usage": True}
    asked = streamed(client, stream_options={"include_usage": True})
    assert asked[-1]["usage"] == USAGE
    assert asked[:-1] == found


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("status 400", 400, "there"),
        ("status 422", 400, "there"),
        ("status 404", 404, "there"),
        ("status 429", 429, "there"),
        ("status 401", 500, "upstream_refused"),
        ("status 500", 503, "upstream_failed"),
        ("status 418", 503, "upstream_failed"),
        ("no json", 500, "upstream_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_there_has_its_status_here(client, said, status, code, stream):
    answer = client.post(CHAT, json=body(said, stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    check_error(answer)
    assert ("said there" in answer.text) == (code == "there")
    if status == 429:
        assert answer.headers["retry-after"] == "7"


def test_one_that_is_away_is_a_503_and_the_others_answer(client):
    answer = client.post(CHAT, json=body(model="away"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_failed")
    check_error(answer)
    assert client.post(CHAT, json=body()).status_code == 200
    assert client.get("/v1/health/ready").status_code == 200


@pytest.mark.parametrize("way", ["break", "error inside"])
def test_a_stream_that_breaks_off_says_so_inside(client, way):
    found = streamed(client, way)
    assert found[-1]["error"]["code"] == "upstream_failed"
    assert text_of(found[:-1]) == WORDS[0]


def test_a_client_that_leaves_ends_the_request_there(client, gateway, stand_in):
    stand_in.go_on.clear()
    stand_in.left.clear()
    with client.stream("POST", CHAT, json=body("hold", stream=True)) as answer:
        next(answer.iter_lines())
    assert stand_in.left.wait(20)
    stand_in.go_on.set()
    began = time.monotonic()
    while gateway.services.limits.in_flight:  # counted down once the connection there is closed
        assert time.monotonic() - began < 20, "its place is still taken"
        time.sleep(0.01)


def test_the_deadline_is_the_gateway_s(client):
    for stream in (False, True):
        late = client.post(CHAT, json=body("hang", stream=stream), headers={"x-request-timeout-ms": "300"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_keys_roles_and_quotas_hold(server, elsewhere, gateway, client, tmp_path):
    assert client.post(CHAT, json=body(), headers={"Authorization": "Bearer no"}).status_code == 401
    key = gateway.services.auth.keys.create("viewer", ["viewer"])
    assert client.post(CHAT, json=body(), headers={"Authorization": f"Bearer {key}"}).status_code == 403
    with gateway_on(server, tmp_path, upstreams=elsewhere, quota_tokens_per_minute=30) as own, own.client() as made:
        assert len(streamed(made)) > 1  # 18 tokens in all
        assert made.post(CHAT, json=body()).status_code == 200  # these are owed
        refused = made.post(CHAT, json=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_it_is_listed_measured_and_split_by_weight(client):
    assert {"llama", "away", "embedding"} <= {each["id"] for each in client.get("/v1/models").json()["data"]}
    assert [each["version"] for each in client.get("/v1/models/llama").json()["versions"]] == ["1", "2"]
    plan = {"model": "llama", "weights": {"1": 50, "2": 50}, "sticky": "user"}
    assert client.put("/v1/experiments/where", json=plan).status_code == 200
    try:
        seen = {u: {client.post(CHAT, json=body(user=u)).headers["x-model-version"] for _ in "ab"} for u in "abcdefgh"}
        assert all(len(versions) == 1 for versions in seen.values())
        assert set.union(*seen.values()) == {"1", "2"}
    finally:
        assert client.put("/v1/experiments/where", json={"action": "rollback"}).status_code == 200
    streamed(client, "cut")
    shown = client.get("/metrics").text
    assert 'vllm:time_to_first_token_seconds_count{model_name="llama"}' in shown
    assert 'vllm:request_success_total{finished_reason="length",model_name="llama"} 1.0' in shown


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {}}, "stream_options"),
        ({"stream": 1}, "stream"),
        ({"user": 7}, "user"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
    ],
)
def test_what_the_gateway_reads_is_checked(client, fields, param):
    answer = client.post(CHAT, json=body(**fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"model": ["llama"], "messages": []}', b'{"model": {"llama": 1}}',
        b'{"model": "llama", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "llama", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)  # fmt: skip
def test_what_is_no_request_at_all_is_refused_here(client, content):
    answer = client.post(CHAT, content=content)
    assert answer.status_code == 400, answer.text
    check_error(answer)


def test_it_answers_nothing_but_chats_and_texts(client):
    answer = client.post("/v1/embeddings", json={"model": "llama", "input": "w1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_task")
    assert client.post("/v1/models/llama/unload").status_code == 404


def test_openai_s_client_streams_from_it(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as made:
        messages = [{"role": "user", "content": "hello"}]
        stream = made.chat.completions.create(model="llama", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT


def test_an_upstream_with_the_name_of_a_model_here_is_refused_at_the_start(server, tmp_path):
    settings = Settings(upstreams={"embedding": {"url": "http://x/v1"}}, state_file=tmp_path / "state.sqlite3")
    with pytest.raises(AccelError, match="name of an upstream"):
        create_app(settings, triton=server)
