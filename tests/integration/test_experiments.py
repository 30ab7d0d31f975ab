"""Watching and experiments on a real Triton that serves a model of one embedding table."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import accel_lib
from accel_lib.cli import app
from accel_lib.errors import AccelError, RequestError
from accel_lib.load import experiment as experimenting
from accel_lib.load.experiment import vary
from accel_lib.load.monitor import read_metrics, watch
from accel_lib.load.runner import LoadRun
from accel_lib.triton.repository import write_model
from accel_lib.triton.server import serve
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)
DELAYS = {"no delay": {"max_queue_delay_us": 0}, "80 ms": {"max_queue_delay_us": 80_000}}
SHORT = {"seconds": 0.4, "warmup_s": 0.1, "repeats": 1}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("experiments") / "model_repository"
    repository.mkdir()
    with serve(repository) as running:
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def tiny(server, artifact):
    return server.add("tiny", artifact)


@pytest.fixture(scope="module")
def delayed(tiny):
    return vary(tiny, TEXTS, DELAYS, concurrency=(1, 8), **SHORT | {"seconds": 1})


def test_metrics_are_read_as_a_tidy_table(server, tiny):
    tiny.encode(TEXTS[:3])
    until = time.monotonic() + 60
    while True:  # Triton counts after it has answered
        answered = read_metrics(server.metrics_url).query("name == 'nv_inference_request_success' and model == 'tiny'")
        assert answered["kind"].tolist() == ["counter"]
        if answered["value"].item() >= 1:
            break
        assert time.monotonic() < until
        time.sleep(0.05)


def test_metrics_of_a_server_that_is_gone_are_an_error():
    with pytest.raises(RequestError, match="No metrics"):
        read_metrics("http://127.0.0.1:9/metrics")


def test_watching_sees_what_was_asked_meanwhile(tiny):
    tiny.wait_for_stable_statistics()
    with watch(tiny, every_s=0.1) as seen:
        run = accel_lib.load_test(tiny, TEXTS, rate=100, seconds=1, warmup_s=0)
        tiny.wait_for_stable_statistics()
    frame = seen.result.frame
    assert (frame["requests_per_s"] * frame["seconds"]).sum() == pytest.approx(len(run.frame))
    assert (seen.result.batch_sizes.index * seen.result.batch_sizes).sum() == len(run.frame)
    assert frame["busy"].between(0, 1).all()
    assert not frame["reset"].any()
    assert set(seen.result.metrics["name"]) >= {"nv_inference_count", "nv_inference_pending_request_count"}
    assert seen.result.headline in repr(seen.result)


def test_a_reload_while_watching_is_noticed_and_nothing_is_negative(tiny):
    accel_lib.load_test(tiny, TEXTS, concurrency=4, seconds=0.3, warmup_s=0)
    with watch(tiny, every_s=0.1) as seen:
        tiny.configure(max_queue_delay_us=100)
        accel_lib.load_test(tiny, TEXTS, concurrency=4, seconds=0.3, warmup_s=0)
    tiny.configure(max_queue_delay_us=0)
    assert seen.result.frame["reset"].sum() == 1
    assert (seen.result.frame[["requests_per_s", "texts_per_s", "queue_ms"]] >= 0).all(axis=None)
    assert "Loaded again once" in seen.result.headline


def test_a_model_unloaded_while_watched_leaves_a_gap_and_not_an_error(server, tiny):
    with watch(tiny, every_s=0.05) as seen:
        tiny.encode(TEXTS[:1])
        time.sleep(0.2)
        server.unload("tiny")
        time.sleep(0.2)
        server.load("tiny")
        tiny.encode(TEXTS[:1])
        time.sleep(0.2)
    assert len(seen.result.frame) >= 2
    assert seen.result.frame["seconds"].max() > 0.2


def test_too_little_to_see_says_so(tiny):
    with pytest.raises(RequestError, match="Too little was seen"):
        _ = watch(tiny).result


def test_a_delay_is_measured_against_none_and_put_back(tiny, delayed):
    assert tiny.config.max_queue_delay_us == 0
    alone = delayed.frame.query("load == 1").set_index("setting")
    assert alone.loc["80 ms", "queue_ms"] > 60 > alone.loc["no delay", "queue_ms"]
    assert alone.loc["80 ms", "p95_ratio_low"] > 1
    assert delayed.frame.query("setting == 'no delay'")["speedup"].eq(1).all()
    assert delayed.stopped == ""
    assert "80 ms" in delayed.headline
    assert "nearly every batch holds one request" in delayed.explanation or "batches" in delayed.explanation


def test_a_refused_configuration_keeps_what_was_measured_and_says_why(tiny):
    before = tiny.config
    wrong = DELAYS | {"on a GPU": {"instance_kind": "gpu", "device": "cuda:7"}}
    partial = vary(tiny, TEXTS, wrong, concurrency=(2,), **SHORT)
    assert set(partial.frame["setting"]) == {"no delay", "80 ms"}
    assert "tiny did not load" in partial.stopped
    assert "It ended early: tiny did not load" in partial.headline
    assert tiny.config == before
    assert np.isfinite(tiny.encode(TEXTS[:1])).all()


def test_a_setting_that_does_not_exist_is_refused_before_anything_is_measured(tiny):
    with pytest.raises(AccelError, match="no such setting"):
        vary(tiny, TEXTS, {"wrong": {"queue_dely": 1}})


def test_an_experiment_without_settings_is_refused(tiny):
    with pytest.raises(AccelError, match="nothing to measure"):
        vary(tiny, TEXTS, {})


def test_a_full_queue_is_reported_with_the_time_its_refusals_took(tiny):
    queues = {"no limit": {"max_batch_size": 2}, "8 may wait": {"max_batch_size": 2, "max_queue_size": 8}}
    full = vary(tiny, TEXTS, queues, concurrency=(32,), **SHORT | {"seconds": 1.6})
    assert set(full.rejections["setting"]) == {"8 may wait"}
    assert set(full.rejections["error"]) == {"The model's queue is full."}
    assert (full.rejections["ms"] > 0).all()
    assert "of the requests rejected with 32 requests in flight" in full.headline
    assert "of the requests are rejected" in full.explanation


def test_priorities_are_told_apart(tiny):
    levels = {"levels": {"priority_levels": 2, "default_priority_level": 2, "max_batch_size": 1}}
    mixed = vary(tiny, TEXTS, levels, concurrency=(16,), priority=[2, 2, 2, 1], **SHORT | {"seconds": 1})
    urgent, patient = mixed.by_priority.sort_values("priority").itertuples()
    assert (urgent.priority, patient.priority) == (1, 2)
    assert urgent.p50_ms < patient.p50_ms


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_saved_run_comes_back_with_its_machine_and_versions(tiny, tmp_path, suffix):
    run = accel_lib.load_test(tiny, TEXTS, rate=100, seconds=0.5, warmup_s=0, rows=[1, 2])
    again = LoadRun.open(run.save(tmp_path / f"run.{suffix}"))
    assert repr(again) == repr(run)
    pd.testing.assert_frame_equal(again.frame, run.frame, rtol=1e-12)
    assert again.statistics == run.statistics
    assert "numpy" in again.frame.attrs["versions"]


def test_a_run_is_kept_as_json_or_parquet_and_read_as_what_it_is(tiny, tmp_path):
    run = accel_lib.load_test(tiny, TEXTS, concurrency=1, seconds=0.2, warmup_s=0)
    with pytest.raises(AccelError, match="JSON or Parquet"):
        run.save(tmp_path / "run.csv")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(AccelError, match="holds no run"):
        LoadRun.open(tmp_path / "other.json")
    with pytest.raises(AccelError, match="no such run"):
        LoadRun.open(tmp_path / "none.json")


def test_requests_of_several_sizes_are_sent_in_turn(tiny):
    run = accel_lib.load_test(tiny, TEXTS, rows=[1, 4], concurrency=2, seconds=0.4, warmup_s=0)
    assert set(run.frame["rows"]) == {1, 4}


def test_a_client_with_few_connections_sends_late_and_its_own_clock_hides_it(tiny):
    tiny.configure(max_batch_size=1)
    try:
        capacity = accel_lib.load_test(tiny, TEXTS, concurrency=4, seconds=0.5, warmup_s=0.1).throughput
        # Four times what was measured is too much also where a busy machine measured half of what it can.
        over = accel_lib.load_test(tiny, TEXTS, rate=4 * capacity, seconds=0.5, connections=4, warmup_s=0)
    finally:
        tiny.configure(max_batch_size=64)
    assert over.p95_ms > 3 * over.naive_p95_ms


def test_a_requests_own_timeout_counts_where_the_model_allows_it(tiny):
    tiny.configure(max_batch_size=1, queue_timeout_us=60_000_000, allow_timeout_override=True)
    wishes = {"concurrency": 64, "seconds": 0.5, "warmup_s": 0, "queue_timeout_us": [0, 1_000]}
    try:
        hasty = accel_lib.load_test(tiny, TEXTS, **wishes)
        while not hasty.errors and wishes["seconds"] < 4:  # a busy machine may leave nobody waiting for long
            wishes["seconds"] *= 2
            hasty = accel_lib.load_test(tiny, TEXTS, **wishes)
    finally:
        tiny.configure(max_batch_size=64, queue_timeout_us=0, allow_timeout_override=False)
    assert list(hasty.errors) == ["The request waited longer than the queue's timeout."]
    assert hasty.throughput > 0


def test_the_command_puts_load_on_a_model_and_keeps_the_run(artifact, tmp_path):
    write_model(tmp_path / "model_repository", "tiny", artifact)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    where = ["--repository", str(tmp_path / "model_repository"), "--texts", str(tmp_path / "texts.txt")]
    how = ["--rate", "100", "--seconds", "0.5", "--target-ms", "1000", "--save", str(tmp_path / "run.json")]
    done = CliRunner().invoke(app, ["load", "tiny", *where, *how])
    assert done.exit_code == 0, done.output
    assert "texts/s offered" in done.output
    assert "texts/s within 1000 ms" in done.output
    assert LoadRun.open(tmp_path / "run.json").throughput > 0


def test_the_command_refuses_a_protocol_that_does_not_exist():
    done = CliRunner().invoke(app, ["load", "--protocol", "smtp"])
    assert done.exit_code == 2


def test_a_server_that_dies_in_an_experiment_leaves_what_was_measured(artifact, tmp_path, monkeypatch):
    (tmp_path / "model_repository").mkdir()
    load_test, measured = experimenting.load_test, itertools.count()
    with serve(tmp_path / "model_repository") as server:
        doomed = server.add("doomed", artifact)
        killing = threading.Timer(0.5, os.kill, (server.pid, signal.SIGKILL))

        def load_and_kill(*arguments, **how):
            if next(measured) == 2:
                killing.start()
            return load_test(*arguments, **how)

        monkeypatch.setattr(experimenting, "load_test", load_and_kill)
        partial = vary(doomed, TEXTS, DELAYS, concurrency=(1, 2), seconds=2, warmup_s=0.1, repeats=9)
    assert not partial.frame.empty
    assert any(words in partial.stopped for words in ("Triton cannot be reached", "Socket closed"))
