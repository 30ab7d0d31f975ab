"""Calibration, simulation and their comparison on a real Triton that serves a model of one embedding table."""

from __future__ import annotations

import dataclasses
import os

import pytest

import accel_lib
from accel_lib.engines.batching import batch_tokens
from accel_lib.errors import AccelError
from accel_lib.show.sliders import Sliders
from accel_lib.simulation.check import check_simulator
from accel_lib.simulation.curve import latency_curve
from accel_lib.simulation.fit import fit_simulator
from accel_lib.simulation.simulator import simulate
from accel_lib.tuning.replica import simulate_replica
from benchmarks.cpu_affinity import apart
from benchmarks.simulator_check import Setting, check_fidelity, plot
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    repository = tmp_path_factory.mktemp("calibrate") / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as server:
        yield server.add("tiny", tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE, packed=True))
        end_at_once(server)


@pytest.fixture(scope="module")
def service(tiny):
    return fit_simulator(tiny, TEXTS, seconds=0.5)


def test_a_calibration_fits_its_points_and_knows_the_workload(tiny, service):
    assert service.lengths == tuple(len(ids) for ids in tiny.tokenize(TEXTS))
    assert (service.frame["ms"] > 0).all()
    assert service.costs[1].execution + service.costs[1].call > 0
    assert "On an idle server an execution takes" in service.headline
    assert service.transport_ms >= service.client_ms > 0


def test_a_calibration_knows_what_executions_and_requests_take_of_the_processor(service):
    assert service.costs[1].cores > 0
    assert service.costs[1].request_cpu > 0
    measured = simulate_replica(service).frame
    assert (measured[["cpu", "gpu"]] > 0).all(axis=None)


def test_a_calibration_counts_tokens_as_the_engine_it_measured_cuts_them(service):
    assert service.packed
    assert service.padded_attention
    assert service.budget == batch_tokens("cpu")


def test_calibrating_puts_the_own_configuration_back(tiny):
    before = tiny.config
    fit_simulator(tiny, TEXTS, instance_counts=(1, 2), seconds=0.3)
    assert tiny.config == before


def test_simulated_and_measured_runs_answer_the_same_questions(tiny, service):
    run, guess = accel_lib.load_test(tiny, TEXTS, rate=50, seconds=1, warmup_s=0.1), simulate(service, rate=50)
    shared = {"texts_per_s", "p95_ms", "queue_ms", "compute_infer_ms", "client_ms", "mean_batch_size", "errors"}
    assert shared <= set(run.summary) & set(guess.summary)


def test_measured_points_stand_beside_the_curve(tiny, service):
    curve = latency_curve(service, shares=(0.5, 0.8, 0.95), requests=2_000)
    run = accel_lib.load_test(tiny, TEXTS, rate=50, seconds=1, warmup_s=0.1)
    beside = latency_curve(service, shares=(0.5, 0.8, 0.95), measured={0.1: run}, requests=2_000)
    assert beside.capacity == pytest.approx(curve.capacity)
    assert beside.frame["kind"].value_counts().to_dict() == {"simulated": 4, "measured": 1}
    assert "Measured p95s are" in beside.headline


def test_a_fit_is_checked_against_a_load_and_takes_over_its_execution_times(tiny, service):
    check = check_simulator(tiny, service, TEXTS, rate=50, seconds=1)
    assert check.frame["kind"].tolist() == ["measured", "simulated"]
    assert check.p95_ratio_low <= check.p95_ratio
    assert check.factor >= 1
    ratio = check.execution_ratio
    assert check.recalibrated().costs[1].execution == pytest.approx(ratio * service.costs[1].execution)
    slow = dataclasses.replace(service.scaled(service.config, 100), frame=service.frame)
    wrong = check_simulator(tiny, slow, TEXTS, rate=50, seconds=1)
    assert not wrong.holds
    assert wrong.execution_ratio == pytest.approx(ratio / 100, rel=0.9)
    assert "Calibrate again" in wrong.headline


def test_client_and_server_are_pinned_apart_and_let_go_again(tiny):
    cores = os.sched_getaffinity(0)
    with apart(tiny) as said:
        mine, servers = os.sched_getaffinity(0), os.sched_getaffinity(tiny.server.pid)
        assert len(cores) < 2 or not mine & servers
        assert "core" in said
    assert os.sched_getaffinity(0) == os.sched_getaffinity(tiny.server.pid) == cores


def test_settings_are_compared_and_the_verdict_comes_last(tiny):
    before = tiny.config
    settings = (
        Setting(name="few", share=0.02),
        Setting(name="clients", changes={"max_batch_size": 4}, clients=4),
    )
    result = check_fidelity(tiny, {"tiny": TEXTS}, settings=settings, seconds=0.5, repeats=2)
    assert tiny.config == before
    assert result.frame["setting"].tolist() == ["few", "clients"]
    assert (result.frame["simulated_per_s"] > 0).all()
    assert result.verdict.startswith("median error")
    assert result.verdict.endswith("within the limits") == result.passed
    assert [label.get_text() for label in plot(result).get_yticklabels()] == ["tiny: few", "tiny: clients"]


def test_the_measure_button_stops_when_the_interval_suffices_and_puts_the_configuration_back(tiny, service):
    sliders = Sliders([tiny], TEXTS, p95_ms=50, rate=80, calibrated=[service])
    before = tiny.config
    sliders.knobs["max_queue_delay_us"].value = 1_000
    sliders.measure(seconds=0.5, rounds=2)
    assert tiny.config == before
    assert sliders.measured.throughput > 0
    assert "Measured: " in sliders.title(sliders.simulate())


def test_a_refused_number_of_instances_leaves_the_model_as_it_was(tiny):
    before = tiny.config
    with pytest.raises(AccelError):
        fit_simulator(tiny, TEXTS, instance_counts=(0,), seconds=0.3)
    assert tiny.config == before
