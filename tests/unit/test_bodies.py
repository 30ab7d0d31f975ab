"""Bodies of requests: what is accepted as it is, and how a refusal names the field, the index and the reason."""

from __future__ import annotations

import json

import pytest

from accel_lib.service import admin_schemas, schemas, tei_schemas
from accel_lib.service.abtest.routing import Plan
from accel_lib.service.admin_schemas import BatchingChange
from accel_lib.service.errors import Problem
from accel_lib.service.fields import Body, parse
from accel_lib.service.schemas import ClassifyRequest, EmbeddingRequest
from accel_lib.service.tei_schemas import EmbedRequest, PredictRequest, SimilarityRequest

BODIES = sorted(
    {
        each
        for module in (schemas, tei_schemas, admin_schemas)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Body)
    },
    key=lambda each: each.__name__,
)
OPTIONAL = [(body, name) for body in BODIES for name, field in body.model_fields.items() if not field.is_required()]


def refused(schema, body):
    with pytest.raises(Problem) as caught:
        parse(schema, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(("body", "name"), OPTIONAL, ids=lambda value: getattr(value, "__name__", value))
def test_null_is_as_good_as_absent_for_an_optional_field_and_the_document_says_so(body, name):
    rest = {field: each for field, each in _required(body).items() if field != name}
    absent, null = body.model_validate(rest), body.model_validate(rest | {name: None})
    assert absent == null
    assert {"type": "null"} in body.model_json_schema()["properties"][name]["anyOf"]


def _required(body):
    given = {
        "input": "a", "inputs": "a", "source_sentence": "a", "sentences": ["a"], "count": 1, "enable": True,
        "model": "m", "weights": {"1": 1}, "action": "promote", "version": "1", "version_policy": "all",
        "ids": [1], "dynamic_batching": {}, "instance_group": {"count": 1}, "response_cache": {"enable": True},
    }  # fmt: skip
    if body is SimilarityRequest:
        given["inputs"] = {"source_sentence": "a", "sentences": ["b"]}
    return {name: given[name] for name, field in body.model_fields.items() if field.is_required()}


@pytest.mark.parametrize(
    ("schema", "body", "param", "words"),
    [
        (EmbeddingRequest, {"input": []}, "input", "empty"),
        (EmbeddingRequest, {"input": ["a", ""]}, "input[1]", "empty"),
        (EmbeddingRequest, {"input": ["a"] * 40 + [" \n"]}, "input[40]", "blank"),
        (EmbeddingRequest, {"input": ["a", "b\ud800"]}, "input[1]", "lone surrogate"),
        (EmbeddingRequest, {"input": 5}, "input", "is 5; a text or a list of texts"),
        (EmbeddingRequest, {"input": {"text": "a"}}, "input", "is an object; a text or a list of texts"),
        (EmbeddingRequest, {"input": [["a"]]}, "input[0]", "is a list; a text is"),
        (EmbeddingRequest, {"input": ["a", None]}, "input[1]", "is null; a text is"),
        (EmbeddingRequest, {"input": None}, "input", "missing"),
        (EmbeddingRequest, {}, "input", "missing"),
        (EmbeddingRequest, {"input": "a", "truncat": "END"}, "truncat", "not a field"),
        (EmbeddingRequest, {"input": "a", "truncat": None}, "truncat", "not a field"),
        (EmbeddingRequest, {"input": "a", "dimensions": "16"}, "dimensions", "is a text; a whole number"),
        (EmbeddingRequest, {"input": "a", "dimensions": True}, "dimensions", "is a boolean; a whole number"),
        (EmbeddingRequest, {"input": "a", "dimensions": 1.5}, "dimensions", "is 1.5; a whole number"),
        (EmbeddingRequest, {"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
        (EmbeddingRequest, {"input": "a", "truncate": "end"}, "truncate", "'NONE', 'START' or 'END'"),
        (EmbeddingRequest, {"input": "a", "modality": ["text", "image"]}, "modality[1]", "'text'"),
        (EmbeddingRequest, {"input": "a", "user": 7}, "user", "is 7; a text"),
        (EmbeddingRequest, ["a"], None, "is a list; an object"),
        (EmbeddingRequest, b"", None, "empty"),
        (EmbeddingRequest, b"{", None, "line 1 column 2"),
        (EmbeddingRequest, b"[" * 100_000, None, "not JSON"),
        (ClassifyRequest, {"input": ["a", 1]}, "input[1]", "is 1; a text"),
        (EmbedRequest, {"inputs": "a", "normalize": 1}, "normalize", "is 1; true or false"),
        (EmbedRequest, {"inputs": "a", "truncate": "true"}, "truncate", "is a text; true or false"),
        (PredictRequest, {"inputs": ["a", "b", "c"]}, "inputs", "more than two texts"),
        (PredictRequest, {"inputs": [["a"], ["b", " "]]}, "inputs[1][1]", "blank"),
        (PredictRequest, {"inputs": [["a"], "b"]}, "inputs[1]", "is a text; a list"),
        (PredictRequest, {"inputs": [["a"], []]}, "inputs[1]", "empty"),
        (SimilarityRequest, {"inputs": "a"}, "inputs", "is a text; an object"),
        (SimilarityRequest, {"inputs": {"sentences": ["a"]}}, "inputs.source_sentence", "missing"),
        (BatchingChange, {"version_policy": ["1"]}, "version_policy[0]", "is a text; a whole number"),
        (BatchingChange, {"instance_group": {"count": "2"}}, "instance_group.count", "is a text; a whole number"),
        (Plan, {"model": "m", "weights": {"1": True}}, "weights.1", "is a boolean; a number"),
        (Plan, {"model": "m", "weights": {"one": 1}}, "weights.one", "does not match"),
        (Plan, {"model": "m", "weights": {"1": 0}}, None, "weight above 0"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_the_index_and_the_reason(schema, body, param, words):
    problem = refused(schema, body)
    assert problem.param == param
    assert problem.message.startswith(param or "The body ")
    assert words in problem.message


def test_a_refusal_repeats_no_text_and_stays_short():
    name = "x" * 100_000
    assert len(refused(EmbeddingRequest, {"input": "a", name: 1}).message) < 200
    assert "secret" not in refused(EmbeddingRequest, {"input": "a", "dimensions": "secret"}).message


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n "])
def test_a_byte_order_mark_or_white_space_before_a_body_is_no_fault(start):
    assert parse(EmbeddingRequest, start + b'{"input": "a"}').input == "a"


def test_fields_that_nobody_knows_are_ignored_where_text_embeddings_inference_ignores_them():
    assert parse(EmbedRequest, b'{"inputs": "a", "input_type": "query", "parameters": {}}').inputs == "a"
    assert parse(PredictRequest, b'{"inputs": [["a"], ["b", "c"]], "top_k": 2}').inputs == [["a"], ["b", "c"]]
