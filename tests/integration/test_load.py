"""Load on a real Triton that serves a model of one embedding table through ONNX Runtime."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import threading

import numpy as np
import pytest

import accel_lib
from accel_lib.errors import AccelError, RequestError
from accel_lib.load import runner as loading
from accel_lib.tuning.tune import tune
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)
SMALL = {"instance_count": (1,), "max_batch_tokens": (64, 2_048), "max_queue_delay_us": (0,)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("load") / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as running:
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture(scope="module")
def tiny(server, artifact):
    return server.add("tiny", artifact)


@pytest.fixture(scope="module")
def run(tiny):
    return accel_lib.load_test(tiny, TEXTS, concurrency=8, seconds=1, warmup_s=1)


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done a second after a measurement has begun, however long it took to begin."""
    watch, timers = loading.watch_progress, []

    def plan(act, *arguments):
        timers.append(threading.Timer(1, act, arguments))
        return timers[-1]

    def begin(*arguments):
        for timer in timers:
            if not timer.ident:
                timer.start()
        watch(*arguments)

    monkeypatch.setattr(loading, "watch_progress", begin)
    return plan


def test_every_answer_is_counted_and_none_is_wrong(run):
    assert run.errors == {}
    assert run.throughput == pytest.approx(len(run.frame) / run.seconds)
    assert set(run.frame["tokens"]) <= set(range(3, 40))


def test_percentiles_are_in_order_and_inside_their_intervals(run):
    row = run.summary.iloc[0]
    assert 0 < run.p50_ms <= run.p95_ms <= run.p99_ms
    assert row["p50_ms_low"] <= run.p50_ms <= row["p50_ms_high"]
    assert row["texts_per_s_low"] <= row["texts_per_s_high"]


def test_a_closed_loop_obeys_littles_law(run):
    ended_s = (run.frame["start_s"] + run.frame["ms"] / 1e3).max()
    edges_s = run.frame["ms"].max() / 1e3 + run.seconds - ended_s  # requests that begin before it, or end after it
    within = pytest.approx(8, rel=0.05 + edges_s / run.seconds)
    assert run.throughput * run.frame["ms"].mean() / 1e3 == within


def test_batch_sizes_come_from_triton_and_add_up_to_the_answers(run):
    rows = int((run.batch_sizes.index * run.batch_sizes).sum())
    # Triton moves one counter after the other, and the 8 clients' rows may be between the two when it is read.
    assert rows == pytest.approx(run.statistics.inferences, abs=8)
    # Reading takes its time too, on a busy machine a fifth of the second; with the warm-up it would be twice as many.
    assert rows == pytest.approx(len(run.frame), rel=0.4)
    assert run.batch_sizes.index.max() <= 8


def test_the_time_splits_into_client_queue_and_model(run):
    row = run.summary.iloc[0]
    parts = ["client_ms", "queue_ms", "compute_input_ms", "compute_infer_ms", "compute_output_ms"]
    counted = row[parts[1:]].sum()  # of not quite the same requests as the frame's; the client's part is what is left
    assert row[parts].sum() == pytest.approx(max(run.frame["ms"].mean(), counted), rel=1e-6)


def test_a_run_shows_units_its_finding_and_the_machine(run):
    page = run._repr_html_()
    for words in ("p95, ms", "texts/s", "queue, ms", run.headline, run.machine):
        assert words in page
    assert "8 requests in flight" in run.headline


def test_one_request_at_a_time_is_never_batched(tiny):
    tiny.wait_for_stable_statistics()
    alone = accel_lib.load_test(tiny, TEXTS, concurrency=1, seconds=0.5, warmup_s=0.1)
    assert list(alone.batch_sizes.index) == [1]


def test_it_works_inside_a_running_event_loop(tiny):
    async def cell():
        return accel_lib.load_test(tiny, TEXTS, concurrency=2, seconds=0.2, warmup_s=0)

    assert asyncio.run(cell()).throughput > 0


def test_refused_requests_are_counted_by_cause_and_the_run_goes_on(tiny):
    tiny.configure(max_queue_size=1)
    try:
        full = accel_lib.load_test(tiny, TEXTS, concurrency=16, seconds=1, warmup_s=0.1)
    finally:
        tiny.configure(max_queue_size=0)
    assert list(full.errors) == ["The model's queue is full."]
    assert full.throughput > 0
    assert full.stopped == ""
    assert "Failed: " in full.headline


def test_a_model_unloaded_meanwhile_leaves_the_answers_so_far(server, tiny, meanwhile):
    unloading = meanwhile(server.unload, "tiny")
    run = accel_lib.load_test(tiny, TEXTS, concurrency=4, seconds=60, warmup_s=0.2)
    unloading.join()
    server.load("tiny")
    assert run.seconds < 55
    assert run.throughput > 0
    assert run.stopped == "Triton does not serve that model or version."
    assert "It ended early" in run.headline


@pytest.mark.parametrize("asked", [{"texts": []}, {"concurrency": 0}, {"seconds": 0}])
def test_a_load_of_nothing_is_refused(tiny, asked):
    with pytest.raises(AccelError, match=r"accel_lib\.load_test\("):
        accel_lib.load_test(tiny, **{"texts": TEXTS} | asked)


def test_an_interrupt_ends_the_run_and_leaves_no_thread(tiny, meanwhile):
    meanwhile(_thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        accel_lib.load_test(tiny, TEXTS, concurrency=4, seconds=60)
    assert not [thread for thread in threading.enumerate() if thread.name == "accel-load"]
    assert tiny.encode(TEXTS[:2]).shape == (2, TABLE.shape[1])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_open_loop_sends_when_requests_are_due_and_answers_them_all(tiny, protocol):
    open_run = accel_lib.load_test(tiny, TEXTS, rate=150, seconds=2, warmup_s=0.1, protocol=protocol)
    assert open_run.errors == {}
    assert len(open_run.frame) == pytest.approx(300, rel=0.2)
    # Triton counts a batch after it has answered it: the last one may be missing, and the last of the warm-up be in it.
    assert open_run.statistics.inferences == pytest.approx(len(open_run.frame), abs=tiny.config.max_batch_size + 2)
    assert open_run.offered == pytest.approx(150, rel=0.2)
    assert not open_run.concurrency
    assert f"of {open_run.offered:,.0f} texts/s offered" in open_run.headline


def test_an_open_loop_is_warmed_up_by_the_beginning_of_its_own_schedule(tiny):
    tiny.wait_for_stable_statistics()
    before = tiny.statistics()
    run = accel_lib.load_test(tiny, TEXTS, arrivals=[0.0, 0.1, 0.2, 0.3, 0.4], warmup_s=0.25)
    tiny.wait_for_stable_statistics()
    assert len(run.frame) == 5
    assert (tiny.statistics() - before).inferences == 5 + 3


def test_latency_counts_from_when_a_request_was_due(tiny):
    burst = accel_lib.load_test(tiny, TEXTS, arrivals=[0.0] * 400, warmup_s=0.1)
    assert (burst.frame["ms"] >= burst.frame["naive_ms"]).all()
    assert burst.p95_ms >= burst.naive_p95_ms
    assert burst.frame["start_s"].eq(0).all()


def test_a_generator_that_cannot_keep_up_says_so_and_not_that_the_server_is_slow(tiny):
    late = accel_lib.load_test(tiny, TEXTS, rate=40_000, seconds=0.25, warmup_s=0)
    assert late.generator_bound
    assert "The generator was the bottleneck" in late.headline


def test_goodput_counts_what_came_in_time(run):
    assert run.goodput(float("inf")) == run.throughput
    assert 0 < run.goodput(run.p50_ms) < run.throughput
    assert run.goodput(1e-6) == 0


def test_requests_of_several_texts_count_as_that_many_texts(tiny):
    tiny.wait_for_stable_statistics()
    wide = accel_lib.load_test(tiny, TEXTS, rows=4, concurrency=2, seconds=0.5, warmup_s=0.1)
    assert set(wide.frame["rows"]) == {4}
    assert wide.throughput == pytest.approx(4 * len(wide.frame) / wide.seconds)
    assert set(wide.batch_sizes.index) <= {4, 8}


def test_a_client_that_waits_too_short_gets_nothing_and_the_run_says_so(tiny):
    tiny.configure(max_batch_size=1)
    try:
        hasty = accel_lib.load_test(tiny, TEXTS, concurrency=64, seconds=0.5, warmup_s=0, timeout_s=0.005).errors
    except RequestError as nothing:  # on a busy machine not even the first one of them got its answer
        hasty = {nothing.cause}  # type: ignore[assignment]
    finally:
        # Triton 24.10 once crashed at the reload after this, perhaps as abandoned requests were still waiting.
        tiny.wait_for_stable_statistics()
        tiny.configure(max_batch_size=64)
    assert "No answer came in time." in hasty


def test_urgent_requests_overtake_the_others(tiny):
    tiny.configure(max_batch_size=1, priority_levels=2, default_priority_level=2)
    try:
        mixed = accel_lib.load_test(tiny, TEXTS, concurrency=32, seconds=2, priority=[2, 2, 2, 1], warmup_s=0.1)
    finally:
        tiny.configure(max_batch_size=64, priority_levels=0, default_priority_level=0)
    waited = mixed.frame.groupby("priority")["ms"].median()
    assert waited[1] < 0.8 * waited[2]


@pytest.mark.parametrize("times", [[], [-1.0], [2.0, 1.0], [float("nan")], [[0.0]]])
def test_what_are_no_arrivals_is_refused(tiny, times):
    with pytest.raises(AccelError, match="no arrivals"):
        accel_lib.load_test(tiny, TEXTS, arrivals=times)


def test_tuning_measures_every_setting_and_puts_the_own_one_back(tiny):
    before = tiny.config
    tuning = tune(tiny, TEXTS, p95_ms=1_000, concurrency=4, seconds=0.4, grid=SMALL)
    assert tiny.config == before
    assert tuning.frame["max_batch_tokens"].tolist() == [64, 2_048]
    assert tuning.frame["runs"].tolist() == [2, 2]
    assert "texts/s at a p95 of" in tuning.headline
    assert f'string_value: "{tuning.best["max_batch_tokens"]}"' in tuning.config
    assert tuning.apply().max_batch_tokens == tuning.best["max_batch_tokens"]
    assert tiny.config.max_batch_tokens == tuning.best["max_batch_tokens"]


def test_a_target_that_nothing_meets_names_the_closest_setting(tiny):
    tuning = tune(tiny, TEXTS, p95_ms=1e-3, concurrency=4, seconds=0.3, grid=SMALL | {"max_batch_tokens": (64,)})
    assert tuning.headline.startswith("No setting meets a p95 of 0.001 ms: the closest, 1 instance")


def test_a_grid_of_something_else_is_refused_with_what_there_is(tiny):
    with pytest.raises(AccelError, match="instance_count"):
        tune(tiny, TEXTS, p95_ms=50, grid={"max_queue": (8,)})


def test_an_error_while_tuning_puts_the_own_setting_back(tiny):
    before = tiny.config
    with pytest.raises(AccelError):
        tune(tiny, TEXTS, p95_ms=50, seconds=0.2, grid=SMALL | {"max_queue_delay_us": (0, -1)})
    assert tiny.config == before
    assert np.isfinite(tiny.encode(TEXTS[:1])).all()


def test_a_server_that_dies_leaves_the_answers_so_far_and_then_an_error(artifact, tmp_path, meanwhile):
    (tmp_path / "model_repository").mkdir()
    with accel_lib.serve(tmp_path / "model_repository") as server:
        doomed = server.add("doomed", artifact)
        meanwhile(os.kill, server.pid, signal.SIGKILL)
        run = accel_lib.load_test(doomed, TEXTS, concurrency=4, seconds=60, warmup_s=0.2)
        assert run.seconds < 55
        assert run.throughput > 0
        assert run.stopped == "Triton cannot be reached."
        with pytest.raises(RequestError, match="cannot be reached"):
            accel_lib.load_test(doomed, TEXTS, seconds=0.5)
