"""Sweeps without a server: which settings get another round, what the journal keeps, and what a table says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from accel_lib.errors import AccelError
from accel_lib.stats import mean_interval
from accel_lib.tuning.grid import core_settings
from accel_lib.tuning.results import Sweep
from accel_lib.tuning.rounds import Journal, leader, next_round, over, pooled

MEASURED = {"model": "tiny", "seconds": 1}


def rounds(*rates, p95_ms=40.0, spread=0.1, first=1):
    return [
        {
            "round": number, "errors": 0, "texts_per_s": rate, "texts_per_s_low": rate * (1 - spread),
            "texts_per_s_high": rate * (1 + spread), "p95_ms": p95_ms, "p95_ms_low": p95_ms * 0.9,
            "p95_ms_high": p95_ms * 1.1, "p50_ms": 10.0, "p50_ms_low": 9.0, "p50_ms_high": 11.0,
        }
        for number, rate in enumerate(rates, first)
    ]  # fmt: skip


def again(runs, p95_ms=50, repeats=5):
    return next_round(runs, p95_ms, repeats=repeats)


def test_the_winner_of_one_round_and_its_runner_up_are_measured_again():
    assert again({0: rounds(100), 1: rounds(10), 2: rounds(20)}) == [0, 2]


def test_only_those_that_may_still_win_get_another_round():
    assert again({0: rounds(100), 1: rounds(95), 2: rounds(20)}) == [0, 1]


def test_a_rival_over_the_target_gets_none():
    assert again({0: rounds(100, 100), 1: rounds(120, 120, p95_ms=70.0)}) == []


def test_rounds_end_when_the_ratio_tells_them_apart():
    assert again({0: rounds(100, 110, 105), 1: rounds(90, 99, 94.5)}) == []


def test_rounds_end_when_a_rival_is_known_to_be_as_good():
    assert again({0: rounds(100, 110, 105), 1: rounds(99.9, 110.1, 104.9)}) == []


def test_rounds_go_on_while_noise_hides_the_difference_and_end_at_the_limit():
    noisy = {0: rounds(100, 130, 105), 1: rounds(110, 95, 120)}
    assert sorted(again(noisy)) == [0, 1]
    assert again(noisy, repeats=3) == []


def test_where_nothing_meets_the_target_the_two_closest_get_one_more_round():
    far = {0: rounds(100, p95_ms=90.0), 1: rounds(99, p95_ms=80.0), 2: rounds(98, p95_ms=200.0)}
    assert again(far) == [1, 0]
    assert leader(far, 50) is None
    assert again({index: runs * 2 for index, runs in far.items()}) == []


def test_ratios_are_taken_within_a_round_where_the_machine_was_the_same():
    ratio, low, high = over(rounds(50, 100, 200), rounds(100, 200, 400))
    assert ratio == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


def test_a_ratio_of_few_common_rounds_is_as_wide_as_both_settings_runs_allow():
    leader, dropped = rounds(100, 130, 130), rounds(80)
    ratio, low, high = over(dropped, leader)
    assert ratio == pytest.approx(80 / 120)
    assert (low, high) == (pytest.approx(72 / 143), pytest.approx(88 / 90))  # lost, though it may reach 100's mean
    assert over(leader, leader) == (1.0, 1.0, 1.0)


def test_the_interval_of_three_rounds_is_that_of_their_mean():
    row = pooled(rounds(90, 100, 110))
    assert (row["texts_per_s_low"], row["texts_per_s_high"]) == mean_interval([90, 100, 110])
    assert pooled(rounds(90, 110))["texts_per_s_high"] == pytest.approx(121)


def test_a_sweep_that_was_cut_off_within_a_line_goes_on_with_the_whole_ones(tmp_path):
    file = tmp_path / "sweep.jsonl"
    journal = Journal(file, MEASURED)
    journal.add({"max_batch_size": 8}, rounds(100)[0] | {"p99": np.float64(3.0)})
    file.write_text(file.read_text() + '{"setting": {"max_batch')
    again = Journal(file, MEASURED)
    assert [run["texts_per_s"] for run in again.rounds({"max_batch_size": 8})] == [100]
    again.add({"max_batch_size": 8}, rounds(101)[0])
    assert len(Journal(file, MEASURED).rounds({"max_batch_size": 8})) == 2
    assert [json.loads(line) for line in file.read_text().splitlines()]


def test_a_journal_of_another_sweep_is_refused_and_says_what_differs(tmp_path):
    Journal(tmp_path / "sweep.jsonl", MEASURED)
    for content in (b"years of work", b"1\n", b"\xff\xfe\n", b'["measured"]\n'):
        (tmp_path / "thesis").write_bytes(content)
        with pytest.raises(AccelError, match="no journal of a sweep"):
            Journal(tmp_path / "thesis", MEASURED)
        assert (tmp_path / "thesis").read_bytes() == content
    with pytest.raises(AccelError, match="seconds"):
        Journal(tmp_path / "sweep.jsonl", MEASURED | {"seconds": 2})
    (tmp_path / "notes.txt").write_text("no journal\n")
    with pytest.raises(AccelError, match=r"notes\.txt"):
        Journal(tmp_path / "notes.txt", MEASURED)


def sweep(rates, p95, batches, *, p95_ms=50, unloaded_latency_ms=8.0, **settings):
    """A sweep whose intervals are 5% to either side."""
    frame = pd.DataFrame(settings | {"texts_per_s": rates, "p95_ms": p95, "mean_batch_size": batches})
    frame.attrs["machine"] = "2 cores"
    for name in ("texts_per_s", "p95_ms"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] * 0.95, frame[name] * 1.05
    best = frame.loc[frame["p95_ms"] <= p95_ms, "texts_per_s"].max()
    frame["over_best_high"] = frame["texts_per_s_high"] / (0.95 * best)
    return Sweep(frame=frame, served=None, base=None, p95_ms=p95_ms, unloaded_latency_ms=unloaded_latency_ms)


def test_the_front_holds_what_nothing_beats_in_both():
    found = sweep([100, 200, 150, 90], [10, 20, 30, 5], [1, 1, 1, 1], max_batch_size=[1, 2, 4, 8])
    assert found.front["max_batch_size"].tolist() == [8, 1, 2]


def test_the_explanation_says_what_each_setting_alone_changes():
    found = sweep([100, 200], [40, 20], [1, 6], max_batch_size=[1, 8])
    assert found.explanation == (
        "no batches instead of batches of up to 8: 0.50× the throughput and 2.0× the p95, batches of 1.0 against 6.0"
    )
    delay = sweep([100, 100], [20, 24], [1.1, 1.1], max_queue_delay_us=[0, 4_000])
    assert "4 ms queue delay instead of no queue delay: 1.2× the p95" in delay.explanation
    alike = sweep([100, 101], [20, 20], [2, 2], instance_count=[1, 2])
    assert "no significant difference" in alike.explanation


def test_in_an_open_loop_the_words_are_of_answers_in_time():
    closed = sweep([100, 200], [40, 20], [1, 6], max_batch_size=[1, 8])
    found = dataclasses.replace(closed, rate=250.0)
    assert "0.50× the answers in time and 2.0× the p95" in found.explanation
    assert found.front_table() == "200 texts/s in time, at a p95 of 20 ms: batches of up to 8"
    assert closed.front_table() == "200 texts/s at a p95 of 20 ms: batches of up to 8"


def test_a_leader_whose_run_was_too_short_for_an_interval_leaves_the_ratio_open():
    ratio, low, high = over(rounds(50), rounds(100, spread=1.0))
    assert (ratio, high) == (0.5, np.inf)
    assert 0 < low < ratio


def test_of_settings_that_are_not_told_apart_the_simplest_is_taken():
    found = sweep([100, 97], [20, 20], [2, 2], instance_count=[2, 1])
    assert found.best == {"instance_count": 1}
    found.frame["over_best_high"] = [1.0, 0.99]
    assert found.best == {"instance_count": 2}


def test_a_target_below_what_one_request_takes_is_named_as_out_of_reach():
    said = sweep([100], [20], [2], instance_count=[1], p95_ms=5).headline
    assert said.endswith("none can, as one request alone takes 8.0 ms")


def test_another_version_is_called_by_its_engine():
    found = sweep([100, 200], [20, 20], [2, 2], version=[1, 2], engine=["onnx fp32", "onnx int8"])
    assert found.headline.startswith("onnx int8, version 2: 200 texts/s")
    assert "(onnx fp32 instead of onnx int8)" in found.explanation


def test_ways_to_share_cores_are_told_apart_in_the_table_of_a_sweep():
    settings = {"instance_count": [2, 1, 1], "threads": [1, 2, 1]}
    shown = str(sweep([328, 212, 179], [146, 125, 161], [2, 2, 2], p95_ms=np.inf, **settings)).splitlines()
    assert "instances threads" in shown[0]
    assert len({tuple(line.split()[:2]) for line in shown[1:4]}) == 3
    assert shown[4].startswith("2 instances, 1 thread each: 328 texts/s")


@pytest.mark.parametrize("count", [1, 2, 3, 16, 96])
def test_no_way_to_share_cores_takes_more_than_there_are(count):
    settings = core_settings(count)
    assert {"instance_count": 1, "threads": count} in settings
    assert all(0 < one["instance_count"] * one["threads"] <= count for one in settings)
    assert len({tuple(one.values()) for one in settings}) == len(settings) <= 5
