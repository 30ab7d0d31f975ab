"""Every engine that generates, behind one protocol: right tokens, and no request that harms another."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from accel_lib.convert.generation import generation_to_openvino
from accel_lib.convert.generation_onnx import generation_to_onnx
from accel_lib.errors import EngineError, RequestError
from accel_lib.generate import Event, GenerationEngine, Limits, Sampling, Stats
from accel_lib.generate.onnxruntime import OnnxEngine
from accel_lib.generate.openvino import OpenVINOEngine
from accel_lib.generate.requests import check_request
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.static import StaticBatchEngine
from accel_lib.generate.torch import TorchEngine
from accel_lib.generate.transformers import TransformersEngine
from accel_lib.models import load_model
from tests.generation import collect, greedy, ids_of, reference, run
from tests.tiny import WORDS, letters_folder, llama_folder, tiny_prompts

ROWS, CACHE_TOKENS = 3, 1024
PROMPTS = tiny_prompts(8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other take longer than a network this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(llama_folder(tmp_path_factory.mktemp("llama") / "tiny"), task="generation")


def openvino(artifact, **options):
    return OpenVINOEngine(artifact, threads=1, **options)


@pytest.fixture(scope="module")
def artifact(model):
    return generation_to_openvino(model, output=model.folder.parent / "openvino", progress=False)


@pytest.fixture(
    scope="module", params=["transformers", "static", "onnx", "torch", "openvino", "openvino without prefixes"]
)
def opened(request, model):
    limits = {"rows": ROWS, "cache_tokens": CACHE_TOKENS}
    engine: GenerationEngine
    if request.param == "transformers":
        engine = TransformersEngine(model, **limits)
    elif request.param == "static":
        engine = StaticBatchEngine(model, **limits)
    elif request.param == "onnx":
        exported = generation_to_onnx(model, output=model.folder.parent / "onnx", progress=False)
        engine = OnnxEngine(exported, threads=1, device="cpu", **limits)
    elif request.param == "torch":
        engine = TorchEngine(model, device="cpu", step_tokens=64, **limits)  # longer prompts are cut
    else:
        artifact = request.getfixturevalue("artifact")
        engine = openvino(artifact, prefix_cache=request.param == "openvino", **limits)
    yield engine
    engine.close()


@pytest.fixture
def engine(opened):
    """A fresh scheduler; whatever a test left running is cancelled."""
    scheduler = Scheduler(opened)
    yield scheduler
    for key in list(itertools.chain(scheduler._reserved, scheduler._waiting)):
        scheduler.cancel(key)
    collect(scheduler)


def needs(engine, *fields):
    unsupported = set(fields) & engine.limits.unsupported
    if unsupported:
        pytest.skip(f"{engine.name} does not honour {', '.join(sorted(unsupported))}")


def test_greedy_tokens_are_transformers_own_with_more_requests_than_rows(engine, model):
    requests = {f"r{index}": (prompt, greedy(8 + 5 * index)) for index, prompt in enumerate(PROMPTS)}
    found = run(engine, requests)
    for key, (prompt, sampling) in requests.items():
        assert found[key] == reference(model, prompt, sampling.max_tokens), key


def test_a_text_ends_at_a_stop_id_or_at_its_length_and_says_which(engine, model):
    prompt = PROMPTS[0]
    plain = reference(model, prompt, 20, eos_token_id=None)
    stop = next(token for place, token in enumerate(plain) if place > 2 and token not in plain[:place])
    engine.add("stop", prompt, greedy(20, stop_ids=(stop,), ignore_eos=True))
    engine.add("length", prompt, greedy(3, ignore_eos=True))
    events = collect(engine)
    assert ids_of(events["stop"]) == plain[: plain.index(stop) + 1]
    assert ids_of(events["length"]) == plain[:3]
    assert [events[key][-1].finish for key in ("stop", "length")] == ["stop", "length"]
    assert all(not event.ended for event in events["stop"][:-1])


def test_the_models_own_end_of_text_stops_unless_it_is_ignored(opened, model):
    first = reference(model, PROMPTS[1], 6, eos_token_id=None)
    own, opened.stop_ids = opened.stop_ids, (first[2],)
    try:
        assert run(opened, {"a": (PROMPTS[1], greedy(6))})["a"] == first[: first.index(first[2]) + 1]
        assert run(opened, {"a": (PROMPTS[1], greedy(6, ignore_eos=True))})["a"] == first
    finally:
        opened.stop_ids = own


def test_tokens_come_as_they_are_made(engine):
    engine.add("a", PROMPTS[2], greedy(16, ignore_eos=True))
    assert len(collect(engine)["a"]) > 4


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_cancelled_request_ends_and_the_others_do_not_notice(engine, model, when):
    for index in range(ROWS + 1):
        engine.add(f"r{index}", PROMPTS[index], greedy(60, ignore_eos=True))
    gone = f"r{ROWS}" if when == "waiting" else "r0"
    seen = collect(engine, lambda: len(engine._reserved) == ROWS and engine.stats().generated_tokens)
    engine.cancel(gone)
    engine.cancel("never was")
    events = collect(engine, events=seen)
    assert events[gone][-1].finish == "cancelled"
    assert len(ids_of(events[gone])) < 60
    for index in {*range(ROWS + 1)} - {int(gone[1:])}:
        assert ids_of(events[f"r{index}"]) == reference(model, PROMPTS[index], 60, eos_token_id=None)
    assert engine.stats().running == engine.stats().waiting == 0
    assert run(engine, {gone: (PROMPTS[0], greedy(4))})[gone] == reference(model, PROMPTS[0], 4)


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        ([], greedy(4), "empty"),
        ([5, WORDS], greedy(4), "token id"),
        ([-1], greedy(4), "token id"),
        ([5] * 509, greedy(4), "context"),
        ([5], greedy(0), "no meaning"),
        ([5], greedy(-1), "no meaning"),
        ([5], greedy(4, min_tokens=5), "no meaning"),
        ([5], greedy(4, stop_ids=(WORDS,)), "stop id"),
        ([5], Sampling(max_tokens=4, temperature=-1), "temperature"),
        ([5], Sampling(max_tokens=4, temperature=float("nan")), "temperature"),
        ([5], Sampling(max_tokens=4, top_p=0), "top_p"),
        ([5], Sampling(max_tokens=4, top_p=float("nan")), "top_p"),
        ([5], Sampling(max_tokens=4, top_k=-1), "top_k"),
        ([5], Sampling(max_tokens=4, seed=2**63), "seed"),
        ([5], Sampling(max_tokens=4, presence_penalty=2.5), "presence_penalty"),
        ([5], Sampling(max_tokens=4, repetition_penalty=0), "repetition_penalty"),
    ],
)
def test_a_bad_request_is_refused_and_the_others_do_not_notice(engine, model, prompt, sampling, said):
    engine.add("good", PROMPTS[0], greedy(12))
    with pytest.raises(RequestError, match=said):
        engine.add("bad", prompt, sampling)
    with pytest.raises(RequestError, match=said):
        engine.engine.add("bad", prompt, sampling)
    assert {key: ids_of(each) for key, each in collect(engine).items()} == {"good": reference(model, PROMPTS[0])}


def test_a_request_larger_than_the_cache_is_refused(model):
    engine = TransformersEngine(model, rows=2, cache_tokens=64)
    try:
        scheduler = Scheduler(engine)
        scheduler.add("good", PROMPTS[0][:20], greedy(12))
        with pytest.raises(RequestError, match="cache holds 64"):
            scheduler.add("large", [7] * 60, greedy(8))
        assert ids_of(collect(scheduler)["good"]) == reference(model, PROMPTS[0][:20], 12)
    finally:
        engine.close()


def test_requests_that_fill_the_cache_wait_for_each_other(engine, model):
    requests = {f"r{index}": ([9 + index] * 440, greedy(60, ignore_eos=True)) for index in range(4)}
    for key, (prompt, sampling) in requests.items():
        engine.add(key, prompt, sampling)
    together = 0
    events: dict = {}
    while not engine.idle:
        together = max(together, len(engine._reserved))
        for event in engine.step():
            events.setdefault(event.key, []).append(event)
    assert together == 2  # of 3 rows: two times 500 tokens fit into 1,024
    assert all(ids_of(events[key]) == reference(model, requests[key][0], 60, eos_token_id=None) for key in requests)


def test_a_temperature_samples_other_texts_and_top_k_of_one_does_not(engine, model):
    free = Sampling(max_tokens=30, temperature=1.5, ignore_eos=True)
    found = run(engine, {f"r{index}": (PROMPTS[0], free) for index in range(ROWS)})
    assert len({tuple(ids) for ids in found.values()}) == ROWS
    strict = Sampling(max_tokens=12, temperature=1.5, top_k=1)
    assert run(engine, {"a": (PROMPTS[0], strict)})["a"] == reference(model, PROMPTS[0])
    nucleus = Sampling(max_tokens=12, temperature=1.0, top_p=1e-6)
    assert run(engine, {"a": (PROMPTS[0], nucleus)})["a"] == reference(model, PROMPTS[0])


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(engine):
    needs(engine, "seed")
    seeded = Sampling(max_tokens=20, temperature=1.2, seed=7, ignore_eos=True)
    alone = run(engine, {"alone": (PROMPTS[3], seeded)})["alone"]
    others = {f"r{index}": (PROMPTS[index], dataclasses.replace(seeded, seed=index)) for index in range(3)}
    beside = run(engine, {**others, "beside": (PROMPTS[3], seeded), "again": (PROMPTS[3], seeded)})
    assert beside["beside"] == beside["again"] == alone
    other = run(engine, {"other": (PROMPTS[3], dataclasses.replace(seeded, seed=8))})["other"]
    assert other != alone


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=3, ignore_eos=True, temperature=1e-9, top_p=1e-9),
        Sampling(max_tokens=3, ignore_eos=True, temperature=1e9, top_k=10**6),
        Sampling(max_tokens=3, ignore_eos=True, temperature=1.0, seed=2**63 - 1),
        Sampling(max_tokens=3, ignore_eos=True, temperature=1.0, seed=0, repetition_penalty=1e-3, presence_penalty=-2),
        Sampling(max_tokens=3, temperature=0, repetition_penalty=1e3, frequency_penalty=2.0, min_tokens=3),
        Sampling(max_tokens=512 - len(PROMPTS[0]), temperature=0, ignore_eos=True),
    ],
)
def test_the_most_that_may_be_asked_for_is_answered(engine, sampling):
    needs(engine, *(name for name in vars(sampling) if getattr(sampling, name) != getattr(greedy(), name)))
    assert len(run(engine, {"a": (PROMPTS[0], sampling)})["a"]) == sampling.max_tokens


def test_no_stop_ends_a_text_before_its_least_length(engine, model):
    needs(engine, "min_tokens")
    stop = reference(model, PROMPTS[4], 1, eos_token_id=None)[0]
    assert run(engine, {"a": (PROMPTS[4], greedy(12, stop_ids=(stop,)))})["a"] == [stop]
    later = run(engine, {"a": (PROMPTS[4], greedy(12, stop_ids=(stop,), min_tokens=5, ignore_eos=True))})["a"]
    assert len(later) >= 5
    assert stop not in later[:5]


def penalized(model, prompt, count, *, repetition=1.0, presence=0.0, frequency=0.0):
    """Greedy ids by the definitions: repetition over prompt and answer, the others over the answer alone."""
    ids: list = []
    for _ in range(count):
        with torch.inference_mode():
            logits = model.network(torch.tensor([prompt + ids])).logits[0, -1].double().numpy().copy()
        seen = sorted({*prompt, *ids})
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        counts = np.bincount(ids, minlength=len(logits))
        ids.append(int((logits - presence * (counts > 0) - frequency * counts).argmax()))
    return ids


@pytest.mark.parametrize(
    ("name", "value"), [("repetition", 1.5), ("presence", 1.5), ("presence", -1.0), ("frequency", 1.0)]
)
def test_penalties_are_those_of_their_definitions(engine, model, name, value):
    needs(engine, f"{name}_penalty")
    sampling = greedy(12, ignore_eos=True, **{f"{name}_penalty": value})
    found = run(engine, {"a": (PROMPTS[5], sampling)})["a"]
    assert found == penalized(model, PROMPTS[5], 12, **{name: value})
    assert found != penalized(model, PROMPTS[5], 12)


def test_log_probabilities_are_those_of_the_reference(engine, model):
    needs(engine, "logprobs")
    engine.add("a", PROMPTS[6], greedy(8, logprobs=0, ignore_eos=True))
    events = collect(engine)["a"]
    given = [each for event in events for each in event.logprobs]
    ids = ids_of(events)
    assert [each.token_id for each in given] == ids
    with torch.inference_mode():
        logits = model.network(torch.tensor([PROMPTS[6] + ids])).logits[0, len(PROMPTS[6]) - 1 : -1]
    wanted = logits.log_softmax(-1)[range(len(ids)), ids]
    np.testing.assert_allclose([each.logprob for each in given], wanted.numpy(), atol=1e-3)


def test_a_prompt_that_begins_like_an_ended_one_gives_the_same_text(engine, model):
    shared = [11 + index % 50 for index in range(200)]
    requests = {f"r{index}": ([*shared, 20 + index], greedy(8, ignore_eos=True)) for index in range(3)}
    for key, request in requests.items():
        assert run(engine, {key: request})[key] == reference(model, request[0], 8, eos_token_id=None)


def test_what_an_engine_does_not_honour_is_refused_by_name(engine):
    options = {"seed": 1, "min_tokens": 2, "repetition_penalty": 1.2, "presence_penalty": 0.5}
    options |= {"frequency_penalty": 0.5, "logprobs": 0, "json_schema": SCHEMA}
    for name in engine.limits.unsupported:
        with pytest.raises(RequestError, match=f"does not honour {name}"):
            engine.add("a", PROMPTS[0], Sampling(max_tokens=4, **{name: options[name]}))
    with pytest.raises(RequestError, match="logprobs"):
        engine.add("a", PROMPTS[0], Sampling(max_tokens=4, logprobs=engine.limits.top_logprobs + 1))
    assert engine.idle


def test_statistics_count_prompts_and_tokens(engine):
    before = engine.stats()
    run(engine, {f"r{index}": (PROMPTS[index], greedy(5, ignore_eos=True)) for index in range(4)})
    after = engine.stats()
    assert after.generated_tokens - before.generated_tokens == 20
    assert after.prompt_tokens - before.prompt_tokens == sum(map(len, PROMPTS[:4]))
    assert after.steps > before.steps
    assert (after.running, after.waiting, after.cache_use) == (0, 0, 0)


class Counting:
    """The arithmetic of an engine without one: a token a row and step, each its request's first id."""

    name, device, precision, stop_ids = "counting", "cpu", "fp32", ()

    def __init__(self, **limits):
        facts = {"rows": 2, "cache_tokens": 64, "block_tokens": 16, "context_tokens": 64, "vocabulary": 100}
        self.limits = Limits(**facts | limits)
        self.live: dict = {}

    def add(self, key, prompt_ids, sampling):
        self.live[key] = [prompt_ids[0], sampling.max_tokens]

    def cancel(self, key):
        self.live[key][1] = 0

    def step(self):
        events = []
        for key, (token, left) in list(self.live.items()):
            self.live[key][1] -= 1
            finish = "cancelled" if left == 0 else "length" if left == 1 else None
            events.append(Event(key=key, token_ids=(token,) if left else (), finish=finish))
            if finish:
                del self.live[key]
        return events

    def stats(self):
        return Stats(running=len(self.live), waiting=0, cache_use=0, steps=0, prompt_tokens=0, cached_tokens=0,
                     generated_tokens=0)  # fmt: skip

    def close(self):
        self.live.clear()


def test_who_has_priority_goes_first_and_equals_in_their_order():
    scheduler = Scheduler(Counting(rows=1))
    for key, priority in (("a", 2), ("b", 3), ("c", 2), ("d", 1), ("e", 1)):
        scheduler.add(key, [1], greedy(2, priority=priority))
    started: list[str] = []
    while not scheduler.idle:
        started += [event.key for event in scheduler.step() if event.key not in started]
    assert started == ["d", "e", "a", "c", "b"]
    with pytest.raises(RequestError, match="priority"):
        scheduler.add("f", [1], greedy(2, priority=4))


def test_the_scheduler_never_promises_more_than_there_is():
    engine = Counting(rows=3)
    scheduler = Scheduler(engine)
    for index in range(20):
        scheduler.add(str(index), [index] * (1 + index % 30), greedy(1 + index % 17))
    ended = []
    while not scheduler.idle:
        events = scheduler.step()
        assert len(engine.live) <= 3
        assert scheduler.stats().cache_use <= 1
        ended += [event.key for event in events if event.ended]
    assert sorted(ended, key=int) == [str(index) for index in range(20)]


def test_requests_start_in_the_order_in_which_they_came():
    scheduler = Scheduler(Counting(rows=8))
    sizes = [30, 30, 60, 2]
    for index, size in enumerate(sizes):
        scheduler.add(str(index), [1] * size, greedy(2))
    started: list = []
    while not scheduler.idle:
        started += [event.key for event in scheduler.step() if event.key not in started]
    assert started == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("policy", "together"), [("static", [{"0", "1"}, {"2", "3"}]), ("continuous", [{"0", "1"}, {"0", "2"}, {"0", "3"}])]
)
def test_a_static_batch_is_joined_by_nobody_before_all_have_ended(policy, together):
    engine = Counting(rows=2)
    scheduler = Scheduler(engine, policy=policy)
    for index, tokens in enumerate([9, 2, 2, 2]):
        scheduler.add(str(index), [1], greedy(tokens))
    pairs: list = []
    while not scheduler.idle:
        scheduler.step()
        if len(engine.live) == 2 and set(engine.live) not in pairs:
            pairs.append(set(engine.live))
    assert pairs == together


def test_an_unknown_policy_is_refused():
    with pytest.raises(EngineError, match="continuous, static"):
        Scheduler(Counting(), policy="greedy")


def test_a_full_queue_and_a_key_that_is_live_are_refused():
    scheduler = Scheduler(Counting(rows=1), max_waiting=2)
    scheduler.add("a", [1], greedy(4))
    with pytest.raises(RequestError, match="key is live"):
        scheduler.add("a", [1], greedy(4))
    scheduler.step()
    with pytest.raises(RequestError, match="key is live"):
        scheduler.add("a", [1], greedy(4))
    scheduler.add("b", [1], greedy(4))
    scheduler.add("c", [1], greedy(4))
    with pytest.raises(RequestError, match="queue is full"):
        scheduler.add("d", [1], greedy(4))


def test_a_request_is_rounded_up_to_whole_blocks():
    limits = Counting().limits
    check_request(limits, [1] * 60, greedy(4))
    with pytest.raises(RequestError, match="context"):
        check_request(limits, [1] * 61, greedy(4))
    with pytest.raises(RequestError, match="cache holds 40"):
        check_request(Counting(cache_tokens=40).limits, [1] * 30, greedy(4))


def test_a_dead_engine_says_so_instead_of_waiting(model):
    engine = TransformersEngine(model, rows=1, cache_tokens=256)
    try:
        engine.add("a", PROMPTS[0], greedy(200, ignore_eos=True))
        engine._manager.stop(hard_stop=True)
        with pytest.raises(EngineError, match="has stopped"):
            for _ in range(1000):
                engine.step()
    finally:
        engine.close()


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yes", 7]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A model that can write JSON, and an engine for it."""
    folder = tmp_path_factory.mktemp("letters")
    model = load_model(str(letters_folder(folder / "model")), task="generation")
    engine = openvino(generation_to_openvino(model, output=folder / "openvino", progress=False), rows=4)
    yield model, engine
    engine.close()


def test_an_answer_keeps_to_its_schema_and_the_others_are_what_they_were(letters):
    model, engine = letters
    prompt, tokens = model.encode("a"), 300
    plain = {"plain": (prompt, greedy(20, ignore_eos=True))}
    alone = run(engine, plain)["plain"]
    wanted = {f"{seed}": (prompt, Sampling(max_tokens=tokens, seed=seed, json_schema=SCHEMA)) for seed in range(3)}
    found = run(engine, plain | wanted)
    assert found.pop("plain") == alone
    texts = [model.decode(ids) for ids in found.values() if len(ids) < tokens]
    assert texts
    for text in texts:
        answer = json.loads(text)
        assert set(answer) == {"a", "b"}
        assert answer["a"] in ("x", "yes", 7)
        assert isinstance(answer["b"], bool)


def test_a_schema_that_would_end_the_pipeline_is_refused_and_the_others_go_on(letters):
    model, engine = letters
    prompt = model.encode("a")
    alone = run(engine, {"a": (prompt, greedy(20, ignore_eos=True))})["a"]
    scheduler = Scheduler(engine)
    scheduler.add("a", prompt, greedy(20, ignore_eos=True))
    begun = collect(scheduler, lambda: scheduler.stats().generated_tokens)
    for schema in ('{"type": "nope"}', '{"properties": {"\\"": {}}}'):
        scheduler.add(schema, prompt, greedy(5, json_schema=schema))
    events = collect(scheduler, events=begun)
    assert ids_of(events["a"]) == alone
    assert all("JSON schema" in events[key][-1].error for key in events if key != "a")


def test_json_that_never_ends_and_an_artifact_without_a_grammar_are_refused(opened, letters):
    with pytest.raises(RequestError, match="JSON ends"):
        letters[1].add("a", [5], greedy(5, json_schema=SCHEMA, ignore_eos=True))
    with pytest.raises(RequestError, match=r"JSON schema needs|json_schema"):
        opened.add("a", [5], greedy(5, json_schema=SCHEMA))
