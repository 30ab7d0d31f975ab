"""The autoscaler's rules, held against what Kubernetes documents, on a replica whose numbers are plain."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from accel_lib.errors import AccelError
from accel_lib.measurement import to_frame
from accel_lib.show import plots
from accel_lib.show.manifests import autoscaler, excerpt, objects, render, values
from accel_lib.simulation.service_time import Cost, ServiceTime
from accel_lib.simulation.simulator import simulate
from accel_lib.triton.config import ModelConfig, TensorSpec
from accel_lib.tuning.autoscale import SYNC_S, Hpa, burst_load, compare_policies, daily_load, replay
from accel_lib.tuning.replica import Replica, simulate_replica

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "k8s"
LOADS = np.array([0.0, 0.5, 0.8, 0.9, 0.95, 1.0])


@pytest.fixture
def replica():
    """100 requests a second at most; the queue explodes near the limit, utilisation does not."""
    queue = np.array([0.0, 5.0, 20.0, 60.0, 150.0, 600.0])
    frame = pd.DataFrame({"share": LOADS, "rate": 100 * LOADS, "queue_ms": queue, "p95_ms": 10 + 3 * queue})
    frame["gpu"], frame["cpu"] = np.minimum(1.0, 1.1 * LOADS), 0.8 * LOADS
    frame.attrs["machine"] = "a test"
    return Replica(frame=frame, capacity=100.0)


def run(replica, rates, policy, **settings):
    return replay(replica, rates, policy, **({"p95_ms": 100, "start_s": 60} | settings))


def looks(minutes):
    return int(minutes * 60 / SYNC_S)


def test_desired_replicas_are_current_ones_times_metric_over_target(replica):
    rates = [160.0] * looks(30)
    steady = run(replica, rates, Hpa(signal="gpu", target=0.55, min_replicas=2))
    assert steady.frame["replicas"].iloc[-1] == 4  # it reads 0.88 of two: ceil(2 × 0.88 / 0.55), within 10% of it then


def test_within_a_tenth_of_the_target_nothing_changes(replica):
    steady = run(replica, [160.0] * looks(30), Hpa(signal="gpu", target=0.85, min_replicas=2))
    assert set(steady.frame["replicas"]) == {2}


def test_it_adds_at_most_double_or_two_pods_a_minute_and_they_take_their_time(replica):
    rates = [1000.0] * looks(4)
    frame = run(replica, rates, Hpa(max_replicas=50), start_s=90).frame
    assert frame["paid"].iloc[looks(0) + 1] == 3  # one doubled is two; one and two pods are three
    assert frame["paid"].iloc[looks(1) + 2] <= 6
    assert frame["replicas"].iloc[looks(1.5) - 1] == 1
    assert frame["replicas"].iloc[looks(1.5) + 1] == 3


def test_it_waits_five_minutes_before_it_takes_pods_away_and_then_one_at_a_time(replica):
    rates = [640.0] * looks(15) + [10.0] * looks(30)
    frame = run(replica, rates, Hpa(max_replicas=8)).frame
    high = frame["replicas"].iloc[looks(15)]
    assert frame["replicas"].iloc[looks(19)] == high
    assert frame["replicas"].iloc[-1] == 1
    steps = frame["replicas"].diff().dropna()
    assert steps.min() == -1
    down = np.flatnonzero(steps < 0)
    assert np.diff(down).min() >= 120 // SYNC_S


def test_a_signal_that_saturates_takes_longer_to_follow_a_burst(replica):
    rates = [60.0] * looks(10) + [900.0] * looks(40)
    hpa = Hpa(min_replicas=1, max_replicas=30, up_percent=1000, up_pods=30)
    queue = run(replica, rates, hpa)
    for signal in ("cpu", "gpu"):
        other = run(replica, rates, dataclasses.replace(hpa, signal=signal, target=0.6))
        assert queue.minutes_after(10 / 60) < other.minutes_after(10 / 60)


def test_each_signal_is_followed_by_its_own_curve(replica):
    rates = [160.0] * looks(30)
    asked = {signal: run(replica, rates, Hpa(signal=signal, target=0.4, min_replicas=2)) for signal in ("cpu", "gpu")}
    ends = {signal: replay.frame["replicas"].iloc[-1] for signal, replay in asked.items()}
    assert ends == {"cpu": 4, "gpu": 5}  # ceil(2 × 0.64 / 0.4) and ceil(2 × 0.88 / 0.4)


def test_a_signal_that_was_not_measured_is_refused(replica):
    blind = dataclasses.replace(replica, frame=replica.frame.assign(cpu=float("nan")))
    with pytest.raises(AccelError, match="no such signal"):
        run(blind, [100.0], Hpa(signal="cpu", target=0.7))
    assert "CPU" not in blind.headline
    assert plots.signals(blind).get_xlabel()


def test_what_waits_longer_than_the_deadline_is_turned_away_and_counted_late(replica):
    frozen = run(replica, [200.0] * looks(10), 1, deadline_s=5)
    assert frozen.frame["queue_ms"].max() <= 600 + 5_000
    assert frozen.frame["shed"].sum() > 0
    assert frozen.late == pytest.approx(1.0)


def test_no_request_is_lost_or_made(replica):
    rates = daily_load(300.0)
    frame = run(replica, rates, Hpa(max_replicas=12)).frame
    assert frame["rate"].to_numpy() == pytest.approx(rates)
    assert (frame["shed"] >= 0).all()
    assert (frame["replicas"] <= frame["paid"]).all()


def test_pods_that_start_are_paid_for(replica):
    slow = run(replica, [500.0] * looks(20), Hpa(max_replicas=6), start_s=600)
    answered = (slow.frame["rate"] * SYNC_S).sum() - slow.frame["shed"].sum()
    assert slow.cost_per_million == pytest.approx(1e6 * slow.frame["paid"].sum() * SYNC_S / 3600 / answered)
    assert slow.frame["paid"].sum() > slow.frame["replicas"].sum()


def test_the_cheapest_policy_that_keeps_the_target_is_named(replica):
    chosen = {"one": 1, "enough": 8, "far too many": 30}
    compared = compare_policies(replica, daily_load(300.0), chosen, p95_ms=100, start_s=60)
    assert compared.headline.startswith("Enough keeps the target for the least")
    none = compare_policies(replica, daily_load(300.0), {"one": 1}, p95_ms=100, start_s=60)
    assert "No policy keeps the target" in none.headline


def test_who_is_back_first_after_the_burst_is_named_or_all_are_alike(replica):
    chosen = {"one": 1, "enough": 20, "far too many": 30}
    compared = compare_policies(replica, daily_load(300.0), chosen, p95_ms=100, start_s=60)
    assert compared.fastest("one", "enough") == "enough"
    assert compared.fastest("enough", "far too many") == "no difference"
    assert compared.fastest("one", "enough", "far too many") == "enough and far too many"
    assert compared.fastest("one") == "no difference"


def test_a_signal_without_an_end_brings_missing_replicas_sooner_than_one_that_saturates(replica):
    hpas = {"queue": Hpa(min_replicas=3), "gpu": Hpa(signal="gpu", target=0.9, min_replicas=3)}
    burst = compare_policies(replica, burst_load(230, 390), hpas, p95_ms=100, start_s=60)
    assert burst.fastest("queue", "gpu", hour=0.5) == "queue"
    minutes = burst.recovery_minutes(0.5)
    assert 0 < minutes["queue"] < minutes["gpu"]
    assert burst.recovery("queue", hour=0.5).startswith(
        "From the beginning of the burst the p95 is back within the target: queue in "
    )
    assert "never" in compare_policies(replica, burst_load(50, 990), {"one": 1}, p95_ms=100, start_s=60).recovery(
        hour=0.5
    )
    assert plots.recovery(burst, "queue", "gpu", hour=0.5).get_xlabel() == "minutes since the burst began"


def test_a_burst_is_a_step_from_one_look_to_the_next():
    assert burst_load(10, 40, minutes=1).tolist() == [10] * looks(1) + [40] * looks(1)


def test_another_replica_confirms_the_best_policy_or_names_its_own(replica):
    chosen = {"two": 2, "eight": 8}
    day = [100.0] * looks(60)
    fitted, slower, faster = (
        compare_policies(replica.scaled(factor), day, chosen, p95_ms=100, start_s=60) for factor in (1, 5, 0.5)
    )
    assert fitted.best == faster.best == "two"
    assert fitted.confirmed_by(faster).endswith("the best in each of the days")
    assert fitted.confirmed_by(slower).endswith("on the other days the best is eight")
    nothing = compare_policies(replica, [900.0] * looks(60), chosen, p95_ms=100, start_s=60)
    assert nothing.best == ""
    assert nothing.confirmed_by(fitted) == nothing.headline


def test_a_figure_of_what_was_simulated_does_not_say_measured(service):
    replica = simulate_replica(service)
    compared = compare_policies(replica, daily_load(300.0), {"one": 1, "two": 2}, p95_ms=100, start_s=60)
    for ax in (plots.signals(replica), plots.day(compared, "one", "two"), plots.costs(compared)):
        assert ax.figure.get_supxlabel().startswith("simulated from measurements on ")
    assert "simulated from measurements on" in repr(compared)


def test_the_finding_of_a_curve_follows_its_numbers(replica):
    said = "From half load to the limit queue time grows 120×, CPU utilisation 2.0× and GPU utilisation 1.8×"
    assert replica.headline == said


def test_replicas_that_are_needed_keep_the_p95(replica):
    load = replica.load_within(70)
    assert load == pytest.approx(0.8)
    assert replica.needed([10, 80, 81, 800], 70).tolist() == [1, 1, 2, 10]


def test_an_autoscaler_that_cannot_be_is_refused(replica):
    with pytest.raises(AccelError, match="needs a target above zero"):
        run(replica, [1.0], Hpa(min_replicas=5, max_replicas=2))


def test_the_replay_takes_the_settings_that_the_manifests_install():
    assert dataclasses.replace(autoscaler(MANIFESTS), max_replicas=12) == Hpa()
    assert "averageValue: 20m" in excerpt(MANIFESTS, "HorizontalPodAutoscaler", "spec", "metrics")


def test_a_value_of_the_chart_is_shown_as_it_is_written():
    shown = values(ROOT, "autoscaling")
    assert shown.startswith("autoscaling:\n")
    assert "queueMilliseconds: 20" in shown
    assert "ui:" not in shown
    with pytest.raises(AccelError, match="no such value"):
        values(ROOT, "autoscalling")


def test_without_helm_the_manifests_that_it_rendered_before_are_taken_and_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert render(tmp_path) == tmp_path / "deploy" / "k8s"
    assert "no Helm here" in capsys.readouterr().out


def test_every_object_of_the_manifests_has_its_reason():
    assert (objects(MANIFESTS)["why"] != "").all()


def test_figures_are_drawn(replica):
    compared = compare_policies(replica, daily_load(300.0), {"a": Hpa(), "b": 4}, p95_ms=100, start_s=60)
    for ax in (
        plots.signals(replica),
        plots.day(compared, "a", "b"),
        plots.costs(compared),
    ):
        assert ax.get_xlabel()


@pytest.fixture(scope="module")
def service():
    """An execution takes 2 ms and 8 ms a row, always."""
    tensor = TensorSpec(name="input_ids", data_type="INT64", dims=(-1,), ragged=True)
    output = TensorSpec(name="vector", data_type="FP32", dims=(1,))
    return ServiceTime(
        frame=to_frame([{"rows": 1, "ms": 10.0}]),
        costs={1: Cost(execution=2.0, call=0.0, row=8.0, token=0.0, square=0.0, cores=1.5, request_cpu=0.4)},
        noise=(1.0,),
        lengths=(8,),
        transport_ms=0.0,
        client_ms=0.0,
        config=ModelConfig(name="model", inputs=(tensor,), outputs=(output,)),
        budget=10**9,
    )


def test_a_curve_is_what_the_simulator_says_of_one_replica(service):
    measured = simulate_replica(service)
    assert measured.capacity == pytest.approx(124.5, rel=0.05)  # 64 rows: 2 ms, and 8 ms each
    run = simulate(service, rate=0.8 * measured.capacity, requests=3000)
    assert measured.at("p95_ms", 0.8) == pytest.approx(run.p95_ms, rel=0.01)


@pytest.mark.slow
def test_utilisations_are_those_that_were_measured_over_the_cores_that_are_requested(service):
    half, whole = simulate_replica(service, cores=2), simulate_replica(service, cores=4)
    run = simulate(service, rate=0.8 * half.capacity, requests=3000)
    assert half.at("gpu", 0.8) == pytest.approx(run.any_busy, rel=0.01)
    spent = 1.5 * run.busy + 0.4e-3 * 0.8 * half.capacity
    assert half.at("cpu", 0.8) == pytest.approx(spent / 2, rel=0.01)
    assert whole.frame["cpu"].to_numpy() == pytest.approx(half.frame["cpu"].to_numpy() / 2)


def test_what_waits_in_an_overload_is_what_the_simulator_makes_wait(service):
    replica, seconds = simulate_replica(service), 60
    rate = 1.5 * replica.capacity
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    discrete = simulate(service, arrivals=arrivals).frame["queue_ms"].iloc[-200:].mean()
    fluid = run(replica, [rate] * (seconds // SYNC_S), 1, deadline_s=1e6).frame["queue_ms"].iloc[-1]
    assert fluid == pytest.approx(discrete, rel=0.1)
