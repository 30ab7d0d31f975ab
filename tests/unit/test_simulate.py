"""The simulator against what queueing theory knows, on a calibration made up for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from accel_lib.engines.batching import plan_batches
from accel_lib.errors import AccelError
from accel_lib.load.arrivals import poisson
from accel_lib.simulation.curve import latency_curve, predict_settings, saturated
from accel_lib.simulation.request_queue import QUEUE_FULL, TIMED_OUT
from accel_lib.simulation.service_time import Cost, ServiceTime, calls
from accel_lib.simulation.simulator import simulate
from accel_lib.triton.config import ModelConfig

ALONE = {"max_batch_size": 1}


def calibration(*, execution=4.0, row=1.0, noise=(1.0,), transport_ms=0.0, client_ms=0.0, crowding=1.0, **settings):
    """Executions of 4 ms and 1 ms a row, whatever their length."""
    cost = Cost(execution=execution, call=0, row=row, token=0, square=0)
    frame = pd.DataFrame({"instance_count": [1], "rows": [1], "ms": [5.0], "predicted_ms": [5.0], "executions": [9]})
    frame.attrs["machine"] = "a made-up machine"
    return ServiceTime(
        frame=frame,
        costs={1: cost, 2: Cost(execution=execution, call=0, row=row, token=0, square=0, crowding=crowding)},
        noise=noise,
        lengths=(3, 5, 8),
        transport_ms=transport_ms,
        client_ms=client_ms,
        config=ModelConfig(name="made-up", **settings),
        budget=512,
    )


@pytest.mark.parametrize("cut", [{}, {"packed": True}, {"packed": True, "padded_attention": True}], ids=len)
@pytest.mark.parametrize("budget", [64, 512, 1_024])
def test_executions_are_cut_into_the_calls_that_the_engine_makes(budget, cut):
    lengths = np.random.default_rng(0).integers(3, 256, 64)
    batches = [lengths[batch] for batch in plan_batches(lengths, max_batch_tokens=budget, **cut)]
    products = batches if cut else [np.full(len(batch), batch.max()) for batch in batches]
    attention = batches if len(cut) == 1 else [np.full(len(batch), batch.max()) for batch in batches]
    assert calls(lengths.tolist(), budget, **cut) == [
        (len(one), one.sum(), (other**2).sum()) for one, other in zip(products, attention, strict=True)
    ]


def test_a_queue_waits_as_long_as_pollaczek_and_khinchine_say():
    service, load = calibration(), 0.7
    run = simulate(service, service.config.replace(**ALONE), rate=load / 0.005, requests=50_000)
    expected_ms = 5 + 5 * load / (2 * (1 - load))
    assert run.frame["ms"].mean() == pytest.approx(expected_ms, rel=0.05)
    assert run.busy == pytest.approx(load, rel=0.03)


def test_some_instance_computes_for_as_long_as_they_do_not_overlap():
    service, two = calibration(), {"instance_count": 2, **ALONE}
    alone = simulate(service, service.config.replace(**ALONE), rate=100)
    assert alone.any_busy == pytest.approx(alone.busy)
    apart = simulate(service, service.config.replace(**two), arrivals=np.arange(100) * 0.01)
    assert apart.any_busy == pytest.approx(2 * apart.busy)
    together = simulate(service, service.config.replace(**two), arrivals=np.repeat(np.arange(100) * 0.01, 2))
    assert together.any_busy == pytest.approx(together.busy)
    assert together.any_busy == pytest.approx(0.5, rel=0.02)


def test_two_instances_wait_less_than_one_at_the_same_load():
    service = calibration()
    one = simulate(service, service.config.replace(**ALONE), rate=100)
    two = simulate(service, service.config.replace(**ALONE, instance_count=2), rate=200)
    assert two.p95_ms < one.p95_ms


def test_instances_that_share_a_core_gain_nothing():
    service = calibration(crowding=2.0)
    one = simulate(service, service.config.replace(**ALONE), concurrency=8)
    two = simulate(service, service.config.replace(**ALONE, instance_count=2), concurrency=8)
    assert two.throughput == pytest.approx(one.throughput, rel=0.02)


def test_an_execution_is_slowed_by_company_for_as_long_as_it_has_some():
    service = calibration(crowding=2.0, row=1.0, execution=4.0)  # 5 ms alone
    two = service.config.replace(**ALONE, instance_count=2)
    run = simulate(service, two, arrivals=[0.0, 0.0025])
    assert run.frame["ms"].tolist() == pytest.approx([7.5, 7.5])
    assert run.any_busy == pytest.approx(1.0)
    late = simulate(service, two, arrivals=[0.0, 0.006])
    assert late.frame["ms"].tolist() == pytest.approx([5.0, 5.0])


def test_execution_times_can_be_scaled_for_one_number_of_instances():
    service = calibration()
    longer = service.scaled(service.config, 2)
    run = simulate(longer, longer.config.replace(**ALONE), arrivals=[0.0])
    assert run.frame["ms"].tolist() == pytest.approx([10.0])
    assert longer.costs[2] == service.costs[2]


def test_batching_raises_throughput_by_what_a_batch_saves():
    service = calibration()
    alone = simulate(service, service.config.replace(**ALONE), concurrency=32)
    batched = simulate(service, service.config.replace(max_batch_size=16), concurrency=32)
    assert alone.throughput == pytest.approx(1_000 / 5, rel=0.01)
    assert batched.throughput == pytest.approx(16_000 / 20, rel=0.01)
    assert batched.batch_sizes.idxmax() == 16


def test_a_closed_loop_obeys_littles_law():
    run = simulate(calibration(transport_ms=3, client_ms=0.2), concurrency=12)
    assert run.throughput * run.frame["ms"].mean() / 1e3 == pytest.approx(12, rel=0.02)


def test_a_client_that_works_longer_than_the_server_is_the_limit():
    run = simulate(calibration(execution=0.1, row=0.1, transport_ms=2, client_ms=2), concurrency=16)
    assert run.throughput == pytest.approx(500, rel=0.02)
    assert "client" in run.bottleneck


def test_latency_explodes_when_requests_come_faster_than_they_are_served():
    service = calibration(max_batch_size=1)
    calm, over = (simulate(service, rate=rate) for rate in (100, 250))
    assert over.p95_ms > 50 * calm.p95_ms
    assert over.throughput == pytest.approx(200, rel=0.01)
    assert over.bottleneck.startswith("the instance, busy 99")


def test_a_busy_model_with_room_in_its_batches_takes_more():
    service = calibration()
    run = simulate(service, rate=600)
    assert run.busy > 0.9
    assert run.bottleneck.endswith("more load makes larger batches")


def test_a_delay_that_nobody_fills_only_adds_itself():
    service = calibration()
    without = simulate(service, rate=2)
    delayed = simulate(service, service.config.replace(max_queue_delay_us=10_000), rate=2)
    assert delayed.p50_ms - without.p50_ms == pytest.approx(10, rel=0.05)
    assert delayed.bottleneck.startswith("the queue delay")


def test_a_full_queue_refuses_and_a_timeout_refuses_late():
    service = calibration(max_batch_size=1)
    full = simulate(service, service.config.replace(max_queue_size=4), rate=400)
    late = simulate(service, service.config.replace(queue_timeout_us=20_000), rate=400)
    assert set(full.errors) == {QUEUE_FULL}
    assert set(late.errors) == {TIMED_OUT}
    assert full.p99_ms <= 5 * 6 + 1
    assert late.frame.loc[late.frame["error"] != "", "ms"].min() > 20
    assert "rejected" in late.headline
    assert "pause half a second" in full.headline
    assert "pause half a second" not in late.headline


def test_refusing_in_the_queue_who_would_be_late_holds_goodput_where_too_many_are_let_in():
    service = calibration()  # a batch of 16 takes 20 ms
    wide = service.config.replace(max_batch_size=16, max_queue_size=150)
    target_ms = 50

    def within(config):
        ms = simulate(service, config, rate=1_600, requests=4_000).frame.query("error == ''")["ms"]
        return (ms <= target_ms).mean()

    assert within(wide) < 0.2
    assert within(wide.replace(queue_timeout_us=target_ms * 1_000)) < 0.2  # late by the batch it is answered in
    assert within(wide.replace(queue_timeout_us=(target_ms - 20) * 1_000)) > 0.95


OWN_COUNT = {**ALONE, "queue_timeout_us": 1_000_000, "allow_timeout_override": True}


def test_a_request_s_own_timeout_refuses_it_and_nobody_else():
    service = calibration()
    run = simulate(service, service.config.replace(**OWN_COUNT), arrivals=[0.0] * 20, queue_timeout_us=[0, 12_000])
    refused = set(run.frame.index[run.frame["error"] == TIMED_OUT])
    assert refused == set(range(3, 20, 2))


@pytest.mark.parametrize("changes", [{"allow_timeout_override": False}, {"queue_timeout_us": 0}])
def test_an_own_timeout_counts_only_where_it_may_shorten_a_default(changes):
    service = calibration()
    config = service.config.replace(**{**OWN_COUNT, **changes})
    assert not simulate(service, config, arrivals=[0.0] * 20, queue_timeout_us=12_000).errors


def test_delayed_requests_are_answered_last_and_none_is_refused():
    service = calibration()
    config = service.config.replace(**OWN_COUNT, timeout_action="delay")
    run = simulate(service, config, arrivals=[0.0] * 20, queue_timeout_us=[0, 12_000])
    last = run.frame["ms"].sort_values().index[-9:]
    assert not run.errors
    assert list(last) == list(range(3, 20, 2))


def test_the_urgent_wait_less():
    service = calibration(max_batch_size=1, priority_levels=2, default_priority_level=2)
    run = simulate(service, rate=190, priority=[2, 2, 2, 1])
    waited = run.frame.groupby("priority")["ms"].median()
    assert waited[1] < 0.5 * waited[2]


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    service = calibration(noise=(0.8, 1.0, 1.3))
    first, again, other = (simulate(service, rate=100, requests=500, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert first.p95_ms != other.p95_ms


def test_arrivals_are_taken_as_they_are():
    due = poisson(50, 4, seed=3)
    run = simulate(calibration(), arrivals=due)
    np.testing.assert_allclose(run.frame["start_s"], due)
    assert run.offered == pytest.approx(len(due) / due[-1])


def test_capacity_is_what_full_batches_give():
    service = calibration(max_batch_size=16)
    assert saturated(service) == pytest.approx(16_000 / 20, rel=0.02)
    assert saturated(service, service.config.replace(max_queue_size=4)) == saturated(service)


def test_an_uncalibrated_number_of_instances_is_refused_with_the_call_that_calibrates_it():
    service = calibration()
    with pytest.raises(AccelError, match=r"instance_counts=\(1, 2, 3\)"):
        simulate(service, service.config.replace(instance_count=3), rate=10)


@pytest.mark.parametrize("asked", [{"concurrency": 0}, {"rate": 0}, {"requests": 0}, {"rate": float("nan")}])
def test_a_simulation_of_nothing_is_refused(asked):
    with pytest.raises(AccelError, match=r"accel_lib\.simulate\("):
        simulate(calibration(), **asked)


def test_a_run_shows_its_summary_its_finding_and_the_machine_of_the_calibration():
    page = simulate(calibration(), rate=100, requests=500)._repr_html_()
    for words in ("p95, ms", "queue, ms", "mean batch", "The limit is", "a made-up machine"):
        assert words in page


def test_the_curve_says_how_much_p95_grows_towards_capacity():
    curve = latency_curve(calibration(max_batch_size=1), requests=5_000)
    assert curve.capacity == pytest.approx(200, rel=0.01)
    assert curve.at(0.95) > 2 * curve.at(0.8)
    assert "At 95% of capacity the simulated p95 is" in curve.headline
    assert "that at 80%" in curve.headline


def test_settings_that_differ_are_told_apart_and_alike_ones_are_called_alike():
    service = calibration()
    config = service.config
    waits = predict_settings(service, {"none": config, "20 ms": config.replace(max_queue_delay_us=20_000)}, rate=20)
    assert waits.headline.startswith("20 ms: p95 is")
    same = predict_settings(service, {"one": config, "other": config}, rate=20)
    assert "are alike" in same.headline
