"""What the gateway does to texts before Triton sees them: cut, refused, prompted."""

from __future__ import annotations

import dataclasses

import pytest

from accel_lib.artifact import Artifact
from accel_lib.service.catalog import Inputs, ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.triton.config import ModelConfig
from tests.tiny import LONGEST, TABLE, tiny_artifact, tokenizer

PROMPTS = {"query": "w7 ", "document": "w8 w8 "}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    artifact = tiny_artifact(tmp_path_factory.mktemp("served") / "tiny", TABLE)
    own = tokenizer()
    return ServedVersion(
        name="tiny",
        version="1",
        manifest=Artifact.load(artifact.folder).manifest,
        config=ModelConfig(name="tiny"),
        tokenizers={side: own.cutting(side) for side in ("left", "right")},
        created_s=0,
    )


@pytest.fixture
def asymmetric(served):
    return dataclasses.replace(served, manifest=dataclasses.replace(served.manifest, prompts=PROMPTS))


def rows(served, *texts, max_tokens=10_000, **asked):
    found = served.tokenize(Inputs(texts=texts, **asked), max_tokens=max_tokens)
    return [row.tolist() for row in found]


def refused(served, *texts, **asked):
    with pytest.raises(Problem) as caught:
        rows(served, *texts, **asked)
    assert caught.value.status == 400
    return caught.value


def test_a_model_with_two_prompts_must_be_told_what_a_text_is_for(asymmetric):
    problem = refused(asymmetric, "w1")
    assert (problem.param, problem.code) == ("input_type", "missing")
    assert rows(asymmetric, "w1", input_type="query") == [[7, 1]]
    assert rows(asymmetric, "w1", input_type="passage") == [[8, 8, 1]]


def test_a_prompt_by_name_wins_and_without_one_the_default_applies(asymmetric, served):
    default = dataclasses.replace(
        asymmetric, manifest=dataclasses.replace(asymmetric.manifest, default_prompt="document")
    )
    assert rows(asymmetric, "w1", tei=True) == [[1]]
    assert rows(default, "w1", tei=True) == [[8, 8, 1]]
    assert rows(default, "w1", tei=True, prompt_name="query") == [[7, 1]]
    for model, known in ((asymmetric, "query, document"), (served, "none")):
        problem = refused(model, "w1", tei=True, prompt_name="passage")
        assert (problem.param, problem.code) == ("prompt_name", "unknown_prompt")
        assert known in problem.message


def test_a_refusal_names_the_field_as_the_client_does(served):
    long = "w1 " * (LONGEST + 1)
    assert refused(served, "w1", long).param == "input"
    problem = refused(served, "w1", long, tei=True)
    assert problem.param == "inputs"
    assert '"truncate": true' in problem.message


def test_a_model_without_prompts_takes_either(served):
    assert rows(served, "w1") == rows(served, "w1", input_type="query") == rows(served, "w1", input_type="passage")


def test_pairs_are_one_row_each(served):
    assert rows(served, "w1", "w2", seconds=["w3", "w4"]) == [[1, 3], [2, 4]]


def test_the_start_or_the_end_is_cut_and_by_default_nothing(served):
    words = [f"w{i}" for i in range(1, LONGEST + 11)]
    whole = list(range(1, LONGEST + 11))
    assert rows(served, " ".join(words), truncate="END") == [whole[:LONGEST]]
    assert rows(served, " ".join(words), truncate="START") == [whole[-LONGEST:]]
    assert f"Input 1 has {LONGEST + 10} tokens" in refused(served, "w1", " ".join(words)).message


def test_a_text_beyond_all_limits_is_counted_no_further_than_a_request_may_go(served):
    endless = "w1 " * 1_000_000
    assert "Input 0 has more than 10,000 tokens" in refused(served, endless).message
    assert rows(served, endless, truncate="END") == rows(served, endless, truncate="START") == [[1] * LONGEST]


@pytest.mark.parametrize("filling", [" " * 200_000, "\n" * 20_000, "\u3000" * 70_000])
def test_characters_that_are_no_tokens_are_not_counted(served, filling):
    for truncate in ("NONE", "START", "END"):
        assert rows(served, f"{filling}w1{filling}w2", truncate=truncate) == [[1, 2]]


def test_a_message_counts_the_inputs_of_the_whole_request_and_all_tokens_of_a_pair(served):
    many = ["w1 " * 60] * 700
    assert "Text 700 " in refused(served, *many, " ").message
    assert "Input 700 has 65 tokens" in refused(served, *many, "w1 " * 65, max_tokens=50_000).message
    assert "Input 0 has 180 tokens" in refused(served, "w1 " * 80, seconds=["w2 " * 100]).message


def test_many_texts_are_counted_together(served):
    assert refused(served, *["w1 w2"] * 60, max_tokens=100).code == "too_many_tokens"
    assert len(rows(served, *["w1 " * 60] * 700, max_tokens=50_000)) == 700


@pytest.mark.parametrize("text", ["", "  ", "\ud800"])
def test_what_is_no_text_is_refused_without_repeating_it(served, text):
    problem = refused(served, "w1", text)
    assert problem.code == "invalid_text"
    assert "Text 1" in problem.message
