"""Asking a real Triton: the engine's own numbers come back, alone or batched, and what is wrong is refused by name."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import accel_lib
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ModelError, RequestError, ServerError, TextError
from accel_lib.models.tokenizer import Tokenizer, pad
from tests.tiny import TABLE, WIDTH, end_at_once, tiny_artifact, tiny_model, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)
EXPECTED = tiny_model().reference(TEXTS)
ECHO = Path(__file__).parent / "models" / "echo"
PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http"])
FAIL, END = -1, -2  # what echo's first id asks for


def wait_ms(milliseconds):
    return -3 - milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client") / "model_repository"
    shutil.copytree(ECHO, folder / "echo", ignore=shutil.ignore_patterns("__pycache__"))
    with accel_lib.serve(folder) as running:
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def tiny(server, tmp_path_factory):
    return server.add("tiny", tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE))


@pytest.fixture
def echo(server):
    """The echo model with its own settings, whatever a test changes."""
    yield server.model("echo")
    server.load("echo")


@pytest.fixture(scope="module")
def minilm(server, model, onnx_fp32, texts):
    accel_lib.validate(onnx_fp32, reference=model, texts=texts)
    return server.add("minilm", onnx_fp32)


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_a_served_minilm_answers_what_sentence_transformers_does(minilm, model, texts):
    served = minilm.encode(texts)
    assert served.shape == (len(texts), 384)
    assert cosines(served, model.reference(list(texts))).min() >= 0.9999


def test_any_script_is_encoded_and_the_longest_text_is_cut(minilm, model):
    strange = [
        "🙂🚀",
        "日本語のテキスト",
        "ελληνικά",
        "مرحبا بالعالم",
        "a\u0301 e\u0301",
        "tab\tand\nline",
        "long " * 20_000,
    ]
    served = minilm.encode(strange)
    assert np.isfinite(served).all()
    assert cosines(served, model.reference(strange)).min() >= 0.9999


@PROTOCOLS
def test_one_request_gets_the_engine_s_own_numbers(tiny, protocol):
    artifact = accel_lib.Artifact.load(tiny.server.repository / "tiny" / "1" / "artifact")
    rows = Tokenizer.load(artifact.folder / "tokenizer.json")(TEXTS)
    engine = accel_lib.open_engine(artifact, device="cpu")
    answer = tiny.infer(*pad(rows, 0), protocol=protocol)
    assert (answer.dtype, answer.shape) == (np.float32, (len(TEXTS), WIDTH))
    np.testing.assert_allclose(answer, run_batches(engine, rows, 0), atol=1e-6)
    engine.close()


def test_texts_keep_their_order_over_many_requests(tiny):
    tiny.configure(max_batch_size=8)
    np.testing.assert_allclose(tiny.encode(TEXTS), EXPECTED, atol=1e-6)
    np.testing.assert_allclose(tiny.encode(TEXTS[::-1]), EXPECTED[::-1], atol=1e-6)
    assert tiny.encode([]).shape == (0, WIDTH)


@PROTOCOLS
def test_requests_of_different_lengths_in_one_batch_answer_as_if_alone(tiny, protocol):
    tiny.configure(max_batch_size=64, max_queue_delay_us=400_000, preferred_batch_sizes=())
    ids = Tokenizer.load(tiny.server.repository / "tiny" / "1" / "artifact" / "tokenizer.json")(TEXTS)
    before, ready = tiny.wait_for_stable_statistics(), threading.Barrier(len(ids))

    def ask(index):
        padded, mask = np.full((1, 64), 7), np.zeros((1, 64), dtype=np.int64)
        places = np.random.default_rng(index).choice(64, len(ids[index]), replace=False)
        places.sort()
        padded[0, places], mask[0, places] = ids[index], 1
        ready.wait()
        return tiny.infer(*((padded, mask) if index % 2 else (ids[index][None],)), protocol=protocol)

    with ThreadPoolExecutor(len(ids)) as pool:
        answers = np.concatenate(list(pool.map(ask, range(len(ids)))))
    counted = tiny.wait_for_stable_statistics() - before
    np.testing.assert_allclose(answers, EXPECTED, atol=1e-6)
    assert max(counted.batch_sizes) > 4
    assert counted.requests == len(ids)


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        (["w1", "\ud800"], "Text 1 "),
        (["w1", "w2", "  "], "Text 2 "),
        ([None], "Text 0 "),
        ("one text", "Texts come in a list"),
    ],
    ids=["lone surrogate", "blank", "no text", "no list"],
)
def test_texts_that_are_none_are_refused_by_their_place(tiny, texts, seen):
    with pytest.raises(TextError, match=seen):
        tiny.encode(texts)


IDS = np.ones((2, 3), dtype=np.int64)


@PROTOCOLS
@pytest.mark.parametrize(
    ("ids", "mask", "seen"),
    [
        (
            np.ones((1, 65), int),
            None,
            r"^A row holds 1 to 64 token ids[\s\S]*seen: 65 tokens\n[\s\S]*\.encode\(texts\)",
        ),
        (IDS, IDS * 2, r"^attention_mask is 1 on tokens[\s\S]*up to 2\n"),
        (IDS, IDS[:, :2], r"attention_mask \[2, 2\]"),
        (IDS, IDS * 0, "seen: 0 tokens"),
        (IDS[:, :0], None, "seen: 0 tokens"),
        (-IDS, None, "the smallest -1"),
        (IDS * 200, None, r"^ONNX Runtime refused the batch[\s\S]*idx=200[\s\S]*take the ids from the tokenizer"),
        (np.ones((65, 2), int), None, r"more rows than one execution[\s\S]*tiny\.configure\(max_batch_size="),
        (IDS[0], None, r"input_ids holds one or more rows[\s\S]*seen: int64 \[3\]\n[\s\S]*\.encode\(texts\)"),
        (IDS[:0], None, r"seen: int64 \[0, 3\]"),
        (IDS, IDS * 0.5, r"attention_mask holds one or more rows[\s\S]*seen: float64 \[2, 3\]"),
        ([["one"]], None, r"seen: <U3 \[1, 1\]"),
        ([[1, 2], [3]], None, r"seen: \[\[1, 2\], \[3\]\]"),
    ],
)
def test_a_request_that_is_wrong_is_refused_and_the_next_is_answered(tiny, protocol, ids, mask, seen):
    with pytest.raises(RequestError, match=seen):
        tiny.infer(ids, mask, protocol=protocol)
    assert np.allclose(tiny.encode(TEXTS[:1]), EXPECTED[:1], atol=1e-6)


def test_a_bad_request_spoils_no_other_in_its_batch(tiny):
    tiny.configure(max_batch_size=64, max_queue_delay_us=400_000)

    def ask(index):
        try:
            return tiny.infer([[200]] if index == 3 else [[index + 1]])
        except RequestError as error:
            return error

    before = tiny.wait_for_stable_statistics()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert max((tiny.wait_for_stable_statistics() - before).batch_sizes) > 1
    assert isinstance(answers.pop(3), RequestError)
    assert all(isinstance(answer, np.ndarray) for answer in answers)


def test_a_prompt_the_model_has_not_is_refused(tiny):
    with pytest.raises(ModelError, match="no prompt of that name"):
        tiny.encode(["w1"], prompt="query")


@PROTOCOLS
@pytest.mark.usefixtures("tiny")
def test_a_request_to_what_is_not_served_says_how_to_load_it(server, protocol):
    gone = server.add("gone", accel_lib.Artifact.load(server.repository / "tiny" / "1" / "artifact"))
    server.remove("gone", version=1)
    assert not (server.repository / "gone").exists()
    with pytest.raises(RequestError, match=r"does not serve that model[\s\S]*server\.load\('gone'\)"):
        gone.infer(IDS, protocol=protocol)
    with pytest.raises(ServerError, match=r"seen: tiny 7\n  fix:  choose from"):
        server.model("tiny", 7)


@PROTOCOLS
def test_an_answer_that_takes_too_long_is_a_timeout(echo, protocol):
    with pytest.raises(RequestError, match=r"No answer came in time[\s\S]*larger timeout_s"):
        echo.infer([[wait_ms(1_500)]], timeout_s=0.3, protocol=protocol)


def test_a_request_of_higher_priority_jumps_the_queue(echo):
    echo.configure(priority_levels=2, default_priority_level=2, max_batch_size=1)
    ended = []

    def ask(name, priority, ids=1):
        echo.infer([[ids]], priority=priority)
        ended.append(name)

    with ThreadPoolExecutor(8) as pool:
        pool.submit(ask, "first", 0, wait_ms(2_500))
        time.sleep(0.5)
        for _ in range(3):
            pool.submit(ask, "usual", 0, wait_ms(100))
        time.sleep(0.5)
        pool.submit(ask, "urgent", 1, wait_ms(100))
    assert ended == ["first", "urgent", "usual", "usual", "usual"]


def test_a_failing_and_an_ended_model_process_say_so(server, echo):
    before = echo.wait_for_stable_statistics()
    with pytest.raises(RequestError, match=r"refused a request to echo\.\n  seen: .*asked to fail"):
        echo.infer([[FAIL]])
    for _ in range(2):
        with pytest.raises(RequestError, match=r"process is gone[\s\S]*server\.load\('echo'\)"):
            echo.infer([[END]])
        counted = echo.wait_for_stable_statistics() - before
        assert (counted.requests, counted.failures) == (1, 1)
        server.load("echo")
        before = echo.wait_for_stable_statistics()
        assert echo.infer([[5]]).tolist() == [[5]]


def test_unloading_a_model_whose_process_has_ended_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(accel_lib.triton.server, "_UNLOAD_S", 0.5)
    shutil.copytree(ECHO, tmp_path / "echo", ignore=shutil.ignore_patterns("__pycache__"))
    with accel_lib.serve(tmp_path) as server:
        with pytest.raises(RequestError, match="process is gone"):
            server.model("echo").infer([[END]])
        with pytest.raises(ServerError, match=r"echo does not unload[\s\S]*server\.stop\(\)"):
            server.unload("echo")
        os.kill(server.pid, signal.SIGKILL)


def test_settings_change_at_once_and_files_stay(server, tiny):
    file = server.repository / "tiny" / "config.pbtxt"
    before = file.read_bytes()
    changed = tiny.configure(max_batch_size=16, instance_count=2, max_batch_tokens=128)
    assert (tiny.config, file.read_bytes()) == (changed, before)
    assert server.model("tiny").config.instance_count == 2
    applied = server.connection.grpc.get_model_config("tiny").config
    assert (applied.max_batch_size, applied.instance_group[0].count) == (16, 2)
    assert np.allclose(tiny.encode(TEXTS), EXPECTED, atol=1e-6)
    server.load("tiny")
    assert tiny.config.max_batch_size == 64


@pytest.mark.parametrize(
    "setting", [{"max_batch": 1}, {"max_batch_size": -1}, {"instance_kind": "tpu"}, {"device": "tpu"}]
)
def test_a_setting_that_is_wrong_is_refused_and_the_old_ones_stay(tiny, setting):
    before = tiny.config
    with pytest.raises(ServerError, match="fix:"):
        tiny.configure(**setting)
    assert tiny.config == before
    assert np.allclose(tiny.encode(TEXTS[:1]), EXPECTED[:1], atol=1e-6)


def test_statistics_count_what_happened_between_two_readings(tiny):
    before = tiny.wait_for_stable_statistics()
    for rows in (1, 1, 3):
        tiny.encode(TEXTS[:rows])
    counted = tiny.wait_for_stable_statistics() - before
    assert (counted.requests, counted.failures, counted.inferences, counted.executions) == (3, 0, 5, 3)
    assert counted.batch_sizes == {1: 2, 3: 1}
    assert counted.mean_batch_size == pytest.approx(5 / 3)
    assert 0 < counted.queue_ns + counted.compute_input_ns + counted.compute_infer_ns <= counted.total_ns


def test_statistics_notice_a_reload_between_two_readings(tiny):
    tiny.encode(TEXTS[:1])
    before = tiny.wait_for_stable_statistics()
    tiny.configure(max_queue_delay_us=tiny.config.max_queue_delay_us + 1)
    for _ in range(before.requests + 1):
        tiny.encode(TEXTS[:1])
    with pytest.raises(ServerError, match=r"set back by a reload[\s\S]*after configure\(\) or load\(\)"):
        tiny.statistics() - before


def test_a_timeline_splits_one_request_into_parts_that_add_up(tiny):
    timeline = tiny.timeline(TEXTS[0], repeats=5)
    parts = dataclasses.asdict(timeline)
    assert min(parts.values()) > 0
    assert timeline.total_ms == pytest.approx(sum(parts.values()))
