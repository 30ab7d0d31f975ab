"""What the endpoints that generate read and write, without a model: fields, events, the message to Triton."""

import asyncio
import collections
import contextlib
import json
import time
import types

import orjson
import pytest

from accel_lib.errors import RequestError
from accel_lib.generate import Sampling, wire
from accel_lib.generate.json_schema import normalized
from accel_lib.service.chat_schemas import ChatRequest, CompletionRequest
from accel_lib.service.errors import Problem
from accel_lib.service.fields import parse
from accel_lib.service.generation import problem_of
from accel_lib.service.limits import Deadline, Limits, Quota
from accel_lib.service.metrics import Metrics
from accel_lib.service.streaming import EventStream, event
from accel_lib.service.upstreams import events_of
from accel_lib.service.watch import Watch, merged

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**fields):
    return parse(ChatRequest, orjson.dumps({"messages": MESSAGES} | fields))


def test_defaults_are_openai_s():
    asked = chat()
    sampling = asked.sampling(max_tokens=5, logprobs=None)
    assert sampling == Sampling(max_tokens=5)
    assert asked.most_tokens is None
    assert parse(CompletionRequest, b'{"prompt": "a"}').most_tokens == 16


def test_null_and_neutral_values_ask_for_nothing():
    asked = chat(tools=None, n=None, logit_bias={}, response_format=None, stop=None, seed=None)
    assert asked == chat()
    assert chat(response_format={"type": "text"}).sampling(max_tokens=5, logprobs=None) == Sampling(max_tokens=5)


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_format_of_the_response_is_a_schema(asked, schema):
    sampling = chat(response_format=asked).sampling(max_tokens=5, logprobs=None)
    assert json.loads(sampling.json_schema) == schema
    assert wire.sampling_from_json(wire.sampling_to_json(sampling)) == sampling


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "json_schema"}, {"type": "json_object", "json_schema": {"schema": {}}}, {"type": "xml"}, {},
        {"type": "json_schema", "json_schema": {"name": "n"}},
        {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 20_000]}}},
    ],
)  # fmt: skip
def test_a_format_that_has_no_meaning_is_refused_by_name(asked):
    with pytest.raises(Problem) as caught:
        chat(response_format=asked)
    assert caught.value.status == 400
    assert str(caught.value.param).startswith("response_format")


def test_a_schema_is_read_before_an_engine_sees_it():
    person = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    assert json.loads(normalized(json.dumps(person | {"title": "T"}))) == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
    }


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"), ("[]", "an object"), ('{"type": "nope"}', "type is"), ('{"type": []}', "type is"),
        ('{"pattern": "a"}', "not honoured"), ('{"$ref": "#/x"}', "a reference"), ('{"$ref": "http://x"}', "reference"),
        ('{"$ref": "#"}', "reference"), ('{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "itself"),
        ('{"properties": {"a\\"b": {}}}', "quotes"), ('{"enum": []}', "enum has"), ('{"enum": [[1]]}', "a value is"),
        ('{"required": ["a"]}', "required names"), ('{"const": "\\ud800"}', "characters"),
        ('{"items": 1}', "an object"),
        ('{"items": ' * 40 + "{}" + "}" * 40, "too large"), ('{"anyOf": []}', "anyOf"), ("[" * 100_000, "not JSON"),
        ('{"additionalProperties": {}}', "true or false"), ('{"properties": []}', "properties is"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none_or_asks_for_more_is_refused_by_name(schema, words):
    with pytest.raises(RequestError, match=words):
        normalized(schema)


def test_parts_of_a_content_and_the_developer_become_what_a_template_reads():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    asked = chat(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    assert [message.plain() for message in asked.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one two"},
    ]


def test_the_newer_name_of_the_limit_goes_before_the_older_one():
    assert chat(max_tokens=5, max_completion_tokens=7).most_tokens == 7
    assert chat(max_tokens=5).most_tokens == 5


def test_each_choice_has_a_seed_of_its_own_that_an_engine_takes():
    seeds = [chat(seed=-1).sampling(max_tokens=1, logprobs=None, choice=choice).seed for choice in range(3)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_is_a_text_or_ids_or_a_list_of_either(prompt, expected):
    assert parse(CompletionRequest, orjson.dumps({"prompt": prompt})).prompts == expected


@pytest.mark.parametrize("field", ["tools", "functions", "audio", "best_of", "suffix", "guided_json"])
def test_what_is_not_honoured_is_refused_by_name(field):
    with pytest.raises(Problem) as caught:
        chat(**{field: [{"x": 1}]})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "unsupported")


def test_a_sampling_crosses_triton_as_it_is():
    sampling = Sampling(max_tokens=3, temperature=0.5, seed=2**62, stop_ids=(4, 5), ignore_eos=True, logprobs=0)
    assert wire.sampling_from_json(wire.sampling_to_json(sampling)) == sampling
    assert json.loads(wire.sampling_to_json(Sampling(max_tokens=3))) == {"max_tokens": 3}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"max_tokens": "3"}', '{"max_tokens": 3, "x": 1}', '{"max_tokens": 3, "temperature": NaN}',
        '{"max_tokens": true}', '{"max_tokens": 3, "stop_ids": ["a"]}', '{"max_tokens": 3, "ignore_eos": 1}',
        '{"max_tokens": null}', '{"max_tokens": 3, "json_schema": {}}', '{"max_tokens": 3, "priority": "1"}',
    ],
)  # fmt: skip
def test_what_is_no_sampling_is_refused(text):
    with pytest.raises(RequestError):
        wire.sampling_from_json(text)


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("The queue is full.\n  seen: 9 requests wait\n  fix:  try again later", 429, "queue_full"),
        ("The engine failed and is being started again (EngineError); send the request again.", 503, "engine_failed"),
        ("The engine took more than 60 s for a step.", 503, "engine_failed"),
        ("top_p has no meaning.\n  seen: top_p=7\n  fix:  top_p: at most 1", 400, "invalid_value"),
        ("Stub process 'generation_0' is not healthy.", 503, "not_ready"),
        ("something else", 500, "model_error"),
    ],
)
def test_what_triton_s_model_says_has_a_status(message, status, code):
    problem = problem_of("generation", message)
    assert (problem.status, problem.code) == (status, code)


def test_generated_tokens_are_owed_after_they_were_given():
    now = [0.0]
    quota = Quota(60, lambda: now[0])
    assert quota.try_acquire("a", 10) == 0
    quota.spend("a", 110)
    assert quota.try_acquire("a", 1) == pytest.approx(61)
    assert quota.try_acquire("b", 1) == 0
    now[0] = 61
    assert quota.try_acquire("a", 1) == 0


def sent(source, *, comment_s=60.0):
    """Everything that a client would get, and whether the source was closed."""

    async def all_of_it():
        messages = []

        async def send(message):
            messages.append(message)

        response = await EventStream.opened(source, {"x-model-version": "1"}, comment_s=comment_s)
        await response({}, None, send)
        return messages

    messages = asyncio.run(all_of_it())
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


async def two_events_and(error=None, pause_s=0.0):
    yield event({"n": 1})
    await asyncio.sleep(pause_s)
    if error:
        raise error
    yield event({"n": 2})


def test_a_stream_has_its_events_and_the_mark_at_the_end():
    start, body = sent(two_events_and())
    assert start["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert (b"x-model-version", b"1") in start["headers"]
    assert body == b'data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'


def test_an_error_after_the_first_event_stands_inside():
    _, body = sent(two_events_and(Problem(504, "late", code="deadline_exceeded")))
    first, error, done = body.removesuffix(b"\n\n").split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert (first, done) == (b'data: {"n":1}', b"data: [DONE]")


def test_an_unforeseen_error_inside_tells_no_secret():
    _, body = sent(two_events_and(RuntimeError("secret")))
    assert b"secret" not in body
    assert b'"code":null' in body


def test_an_error_before_the_first_event_keeps_its_status():
    async def broken():
        raise Problem(429, "full")
        yield b""

    with pytest.raises(Problem, match="full"):
        sent(broken())


def test_comments_come_while_nothing_does():
    _, body = sent(two_events_and(pause_s=0.2), comment_s=0.05)
    assert body.startswith(b'data: {"n":1}\n\n: nothing yet\n\n')
    assert body.endswith(b'data: {"n":2}\n\ndata: [DONE]\n\n')


def test_a_late_first_event_opens_the_stream_with_a_comment():
    async def late():
        await asyncio.sleep(0.2)
        yield event({"n": 1})

    _, body = sent(late(), comment_s=0.05)
    assert body.startswith(b": nothing yet\n\n")
    assert body.endswith(b'data: {"n":1}\n\ndata: [DONE]\n\n')


def events_in(content, size):
    """What `events_of` finds in bytes that come so many at a time."""

    async def found():
        async def parts():
            for start in range(0, len(content), size):
                yield content[start : start + size]

        return [each async for each in events_of(parts())]

    return asyncio.run(found())


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_upstream_s_events_are_found_however_its_bytes_are_cut(end):
    texts = [f'{{"t":"{mark}"}}'.encode() for mark in ("a", "\u2028", "\x85", "\N{GRINNING FACE}")]
    lines = [b": a comment", b"event: x", *(b"data: " + text for text in texts), b"data:[DONE]", b"data: never"]
    content = (end * 2).join(lines)
    assert all(events_in(content, size) == texts for size in (1, 2, 3, 7, 50, 10_000))


def test_a_stream_without_its_mark_or_with_an_endless_line_is_broken_off():
    for content in (b"", b'data: {}\n\ndata: {"a', b"data: " + b"x" * 3_000_000):
        *_, last = events_in(content, 65_536)
        assert (last.status, last.code) == (503, "upstream_failed")


def test_a_cancelled_response_closes_its_source():
    closed = asyncio.Event()

    async def source():
        try:
            yield event({"n": 1})
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def leave():
        async def send(_):
            pass

        response = await EventStream.opened(source(), {})
        task = asyncio.create_task(response({}, None, send))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert closed.is_set()


@contextlib.contextmanager
def watching(left_s):
    """A `Watch` of a request with so much time, and the services that it looks at."""
    clock = time.monotonic
    metrics = Metrics()
    services = types.SimpleNamespace(
        metrics=metrics,
        limits=Limits(max_in_flight=1, quota_tokens_per_minute=0, metrics=metrics, clock=clock),
        supervisor=types.SimpleNamespace(deaths=collections.Counter()),
        settings=types.SimpleNamespace(drain_s=0),
    )
    context = types.SimpleNamespace(deadline=Deadline(clock() + left_s, clock))
    watch = Watch(services, context, types.SimpleNamespace(id="a"), "generation")  # type: ignore[arg-type]
    with watch:
        yield watch, services


def test_the_deadline_is_to_the_first_token_and_then_between_tokens_while_somebody_waits():
    async def late():
        with watching(0.2) as (watch, _):
            for token in (1, 2):
                await asyncio.sleep(0.3)  # a client that reads slowly: nobody waits for the model
                watch.events.put_nowait((0, token))
                assert await watch.next() == (0, token)
                watch.tokens(0, 1)
            await watch.next()

    with pytest.raises(Problem, match="before the next token") as caught:
        asyncio.run(late())
    assert caught.value.status == 504
    with pytest.raises(Problem, match="before the first token"):
        asyncio.run(never_answered(lambda _: None, left_s=0.05))


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (lambda services: services.supervisor.deaths.update(["generation"]), "engine_failed"),
        (lambda services: services.limits.drain(), "draining"),
    ],
)
def test_who_waits_is_told_when_it_has_no_sense_any_more(happens, code):
    with pytest.raises(Problem) as caught:
        asyncio.run(never_answered(happens, left_s=60))
    assert (caught.value.status, caught.value.code) == (503, code)


async def never_answered(happens, *, left_s):
    with watching(left_s) as (watch, services):
        happens(services)
        await watch.next()


def test_a_source_that_fails_unforeseen_is_an_error_and_not_silence():
    class Broken:
        async def events(self):
            yield 1
            raise RuntimeError("secret")

        def leave(self, reading):
            reading.cancel()

    async def read():
        with watching(60) as (watch, _):
            async with merged([Broken()], watch):
                assert await watch.next() == (0, 1)
                await watch.next()

    with pytest.raises(Problem) as caught:
        asyncio.run(read())
    assert caught.value.status == 500
    assert "secret" not in caught.value.message
