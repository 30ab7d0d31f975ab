"""The controller on a real Triton: it acts in the background, and no accepted request is lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import accel_lib
from accel_lib.errors import AccelError
from accel_lib.load.arrivals import constant
from accel_lib.tuning.actuators import Admission, Batching, Instances, apply
from accel_lib.tuning.controlled_load import run_load
from accel_lib.tuning.step_response import capacity
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, artifact):
    repository = tmp_path_factory.mktemp("control") / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as server:
        yield server.add("tiny", artifact)
        end_at_once(server)


def test_a_delay_that_misses_the_target_is_taken_away_under_load_and_nothing_is_lost(tiny):
    before = tiny.config
    tiny.configure(max_queue_delay_us=400_000)
    try:
        run = run_load(tiny, TEXTS, arrivals=constant(40, 7.5), p95_ms=300, window_s=1.5)
        found = tiny.config
        # The reload may have ended with the last window, on a busy machine: what it changed shows afterwards for sure.
        after = run_load(tiny, TEXTS, arrivals=constant(40, 1.5), p95_ms=300, window_s=1.5, control=False)
    finally:
        tiny.configure(max_queue_delay_us=0, max_batch_size=before.max_batch_size, instance_count=1)
    assert found.max_queue_delay_us == 0
    assert run.lost == 0
    assert "batching: " in run.decisions
    assert "400 ms queue delay" in run.decisions
    assert not run.frame["met"].iloc[0]
    assert after.frame["met"].all()
    assert run.headline in run._repr_html_()


def test_without_a_controller_the_setting_stays(tiny):
    before = tiny.config
    run = run_load(tiny, TEXTS, arrivals=constant(30, 2), p95_ms=0.001, window_s=1, control=False, changes_s=[1.0])
    assert tiny.config == before
    assert run.log == ()
    assert not run.frame["met"].any()


def test_a_request_that_is_not_admitted_is_a_miss_and_not_a_loss(tiny):
    gate = Admission(limit=1)
    run = run_load(tiny, TEXTS, arrivals=[0.0] * 50, p95_ms=10_000, window_s=1, control=False, gate=gate)
    assert 0 < run.frame["shed"].iloc[0] < 1
    assert run.frame["within"].iloc[0] + run.frame["shed"].iloc[0] == pytest.approx(1)
    assert run.lost == 0
    assert gate.in_flight == 0
    assert "were not admitted" in run.headline


def test_a_request_waits_for_admission_within_its_timeout(tiny):
    gate = Admission(limit=1, timeout_ms=60_000)
    run = run_load(tiny, TEXTS, arrivals=[0.0] * 50, p95_ms=60_000, window_s=1, control=False, gate=gate)
    assert run.frame["shed"].tolist() == [0.0]
    assert run.frame["within"].tolist() == [1.0]
    assert gate.in_flight == 0


def test_a_target_below_what_one_request_takes_is_refused(tiny):
    with pytest.raises(AccelError, match="a request that is alone takes longer"):
        run_load(tiny, TEXTS, arrivals=constant(30, 2), p95_ms=0.001, window_s=1)


def test_actuators_read_and_set_the_running_model_and_say_why_they_cannot(tiny):
    instances, batching = Instances(tiny), Batching(tiny)
    assert instances.current() == {"instance_count": 1}
    assert apply(instances, {"instance_count": 2}) == ""
    assert tiny.config.instance_count == 2
    assert apply(instances, {"instance_count": 100_000}) == "The memory does not hold that."
    assert tiny.config.instance_count == 2
    assert apply(batching, {"max_batch_size": 16, "max_queue_delay_us": 0}) == ""
    assert batching.current() == {"max_batch_size": 16, "max_queue_delay_us": 0}
    tiny.configure(instance_count=1, max_batch_size=64)


def test_the_capacity_lies_where_the_target_begins_to_be_missed(tiny):
    found = capacity(tiny, TEXTS, p95_ms=1_000, about_per_s=50, seconds=0.4)
    assert 20 < found <= 60
    assert capacity(tiny, TEXTS, p95_ms=0.001, about_per_s=50, seconds=0.4) == pytest.approx(20)


def test_a_server_that_dies_leaves_the_windows_so_far(artifact, tmp_path):
    (tmp_path / "model_repository").mkdir()
    with accel_lib.serve(tmp_path / "model_repository") as server:
        doomed = server.add("doomed", artifact)
        killer = threading.Timer(4, os.kill, (server.pid, signal.SIGKILL))
        killer.start()
        run = run_load(doomed, TEXTS, arrivals=constant(40, 30), p95_ms=1_000, window_s=1)
        killer.join()
    assert run.frame["met"].iloc[0]
    assert run.stopped == "Triton cannot be reached."
    assert "It ended early" in run.headline
