"""The simulator of continuous batching, fitted to a real engine: its steps are those that the simulation counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import accel_lib as accel
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.errors import AccelError
from accel_lib.generate.openvino import OpenVINOEngine
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.static import StaticBatchEngine
from accel_lib.models import load_model
from tests.generation import collect, greedy
from tests.tiny import llama_folder, tiny_prompts

ROWS, CACHE_TOKENS, STEP_TOKENS = 3, 1_024, 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return load_model(llama_folder(tmp_path_factory.mktemp("llama") / "tiny"), task="generation")


@pytest.fixture(scope="module")
def engine(model):
    artifact = generation_to_openvino(model, output=model.folder.parent / "openvino", progress=False)
    opened = OpenVINOEngine(artifact, rows=ROWS, cache_tokens=CACHE_TOKENS, threads=1, step_tokens=STEP_TOKENS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def fitted(engine):
    return accel.fit_generation_simulator(engine, seconds=1)


def test_a_fit_knows_the_engine_and_what_its_steps_take(engine, fitted):
    settings = fitted.settings
    assert (settings.rows, settings.step_tokens) == (ROWS, STEP_TOKENS)
    assert (settings.cache_tokens, settings.block_tokens) == (engine.limits.cache_tokens, engine.limits.block_tokens)
    frame = fitted.frame
    assert (frame[["ms", "predicted_ms"]] > 0).all(axis=None)
    assert set(frame.loc[frame["prompt_tokens"] == 0, "rows"]) == {1, 2, 3}
    assert frame["prompt_tokens"].max() == STEP_TOKENS
    assert (fitted.frame["rows"].gt(0) & fitted.frame["prompt_tokens"].gt(0)).any()
    assert "A step takes" in fitted.headline


def test_the_engine_makes_as_many_steps_as_are_predicted(engine, fitted):
    prompts = tiny_prompts(8, shortest=3, longest=90)
    answers = [3, 12, 1, 7, 20, 2, 9, 5]
    scheduler = Scheduler(engine)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        scheduler.add(str(index), prompt, greedy(answer, ignore_eos=True))
    before = engine.stats().steps
    collect(scheduler)
    guess = fitted.predict(arrivals=[0.0] * 8, prompt_tokens=list(map(len, prompts)), output_tokens=answers)
    assert engine.stats().steps - before == guess.timeline["steps"].sum()


def test_a_fit_needs_no_engine_with_free_rows_and_leaves_it_as_it_was(engine, fitted):
    assert engine.stats().running == 0
    again = accel.fit_generation_simulator(Scheduler(engine), seconds=0.1)
    assert again.settings == fitted.settings


def test_an_engine_that_steps_otherwise_is_refused(model):
    engine = StaticBatchEngine(model, rows=3, cache_tokens=CACHE_TOKENS)
    with pytest.raises(AccelError, match="does not step as the simulator does"):
        accel.fit_generation_simulator(engine, seconds=0.1)
    assert engine.stats().running == 0
    engine.close()


def test_an_engine_without_room_for_a_request_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine, "limits", dataclasses.replace(engine.limits, cache_tokens=0))
    with pytest.raises(AccelError, match="too small"):
        accel.fit_generation_simulator(engine, seconds=0.1)
