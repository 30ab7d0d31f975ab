"""What experiments, curves and watched models say on data that rises, falls and stays, and how it is drawn."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.bench.roofline import Crossover, fit
from accel_lib.load.curve import RateCurve
from accel_lib.load.experiment import Experiment
from accel_lib.load.monitor import Watched, parse_metrics, watch
from accel_lib.load.rounds import speed, totals
from accel_lib.load.runner import LoadRun
from accel_lib.show import plots
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.statistics import Statistics

DELAYED = ModelConfig(name="m", max_queue_delay_us=10_000, max_batch_size=8)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def title(ax):
    return " ".join(ax.figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ").split())


def counted(**changes):
    fields = {field.name: 0 for field in dataclasses.fields(Statistics)}
    return Statistics(**fields | {"batch_sizes": {}, "batch_ns": {}} | changes)


def settings(speedup=1.0, p95_ratio=1.0, *, spread=0.05, **second):
    """Two settings with 16 requests in flight; `second` changes what Triton counted for the second one."""
    inside = {"queue_ms": 4.0, "mean_batch_size": 8.0, "text_ms": 2.0, "busy": 0.95}
    row = {
        "load": 16,
        "open": False,
        "instances": 1,
        "refused": 0.0,
        "gave_up": 0.0,
        "p50_ms": 20.0,
        "generator_bound": False,
    } | inside
    base = {"setting": "plain", "speedup": 1.0, "p95_ratio": 1.0, "texts_per_s": 500.0, "p95_ms": 30.0} | row
    other = base | {"setting": "other", "speedup": speedup, "p95_ratio": p95_ratio} | second
    other |= {"texts_per_s": 500.0 * speedup, "p95_ms": 30.0 * p95_ratio}
    frame = pd.DataFrame([base, other])
    frame["goodput_per_s"] = frame["texts_per_s"]
    for name in ("speedup", "p95_ratio", "texts_per_s", "p95_ms", "goodput_per_s"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] * (1 - spread), frame[name] * (1 + spread)
    return frame


def experiment(*args, stopped="", **second):
    return Experiment(frame=settings(*args, **second), runs={}, target_ms=100, stopped=stopped)


def test_a_gain_a_loss_and_nothing_have_their_own_headlines():
    assert experiment(2.0, 0.5).headline == (
        "other: 2.0× the throughput and 0.50× the p95 of plain with 16 requests in flight"
    )
    assert experiment(0.5).headline == "other: 0.50× the throughput of plain with 16 requests in flight"
    assert experiment(1.02).headline == "No significant difference between plain and other"
    assert experiment(1.5, spread=0.6).headline == experiment(1.5, spread=np.nan).headline == experiment(1.02).headline


def test_an_early_end_and_a_busy_generator_are_said():
    assert experiment(generator_bound=True, stopped="Triton cannot be reached.").headline.endswith(
        "the generator was the bottleneck in part of it. It ended early: Triton cannot be reached."
    )


@pytest.mark.parametrize(
    ("second", "because"),
    [
        ({"mean_batch_size": 16.0, "text_ms": 1.0}, "batches grow from 8.0 to 16 rows; an instance's time for a"),
        ({"mean_batch_size": 16.0}, "a text costs the same 2.0 ms: arithmetic is the limit"),
        ({"mean_batch_size": 4.0, "queue_ms": 30.0}, "requests wait 26 ms longer in the queue"),
        ({"instances": 2}, "2 instances together do more than 1"),
        ({"instances": 32}, "no more than 16 of 32 instances have a request at a time"),
        ({"refused": 0.4, "queue_ms": 1.0}, "40% of the requests are rejected, and the others wait 1.0 instead of"),
        ({"mean_batch_size": 1.0, "queue_ms": 24.0}, "batches shrink from 8.0 to 1.0 rows; a text costs the same"),
        ({}, "nothing changes inside"),
        ({"mean_batch_size": np.nan}, "counted nothing"),
    ],
)
def test_the_explanation_comes_from_what_triton_counted(second, because):
    assert because in experiment(2.0, **second).explanation


def test_instances_are_compared_by_what_they_answer_together():
    assert "2 instances together do less than 1" in experiment(0.5, instances=2).explanation
    assert "2 instances together do as much as 1" in experiment(1.0, instances=2).explanation


def test_a_setting_without_an_interval_is_no_equal_of_the_best():
    few = experiment(0.1)
    few.frame.loc[1, ["goodput_per_s_low", "goodput_per_s_high"]] = np.nan
    assert few.goodput.endswith("500 per second with plain")


def test_a_delay_for_a_request_that_is_alone_is_called_waiting_in_vain():
    alone = experiment(0.5, mean_batch_size=1.0, queue_ms=24.0)
    alone.frame["mean_batch_size"] = 1.0
    assert "adds 20 ms of waiting in vain: nearly every batch holds one request" in alone.explanation


def test_goodput_is_compared_at_the_highest_load():
    frame = pd.DataFrame({"setting": ["plain", "timeout", "limit"], "goodput_per_s": [10.0, 80.0, 77.0]})
    frame = frame.assign(load=100.0, open=True)
    frame["goodput_per_s_low"], frame["goodput_per_s_high"] = frame["goodput_per_s"] - 5, frame["goodput_per_s"] + 5
    start = "Responses within 200 ms at 100 requests/s: "
    found = Experiment(frame=frame, runs={}, target_ms=200)
    assert found.goodput == f"{start}80 per second with timeout, not certainly more than with limit; plain 10"
    swapped = Experiment(frame=frame.iloc[::-1], runs={}, target_ms=200)
    assert swapped.goodput == f"{start}no significant difference between timeout and limit, 77 to 80 per second"


def test_what_keeps_instances_least_busy_within_a_target_is_named_beside_the_first():
    found = experiment(1.0, busy=0.4)
    assert found.least_busy(100) == (
        "Within a p95 of 100 ms with 16 requests in flight, "
        "other keeps the instances busy for 40% of the time, plain for 95%; its p95 is 30 ms against 30"
    )
    assert experiment(1.0, busy=0.99).least_busy(100).endswith("95% of the time, the least of all")
    assert experiment(1.0).least_busy(1).startswith("No setting holds")
    assert experiment(1.0, 9.0, busy=0.4).least_busy(100) == (
        "Only plain holds a p95 of 100 ms with 16 requests in flight, with the instances busy for 95% of the time; "
        "other has 270 ms and keeps them busy for 40%"
    )


def test_the_table_of_an_experiment_counts_the_requests_in_flight():
    frame = settings(2.0)
    frame.attrs["machine"] = "2 cores"
    assert Experiment(frame=frame, runs={})._repr_html_().count("<td>16</td>") == len(frame)


def test_the_figures_of_an_experiment_carry_its_finding():
    found = experiment(2.0, 0.5)
    for draw in (plots.bars, plots.paths):
        assert title(draw(found)) == found.headline
    assert title(plots.goodput(found)) == found.goodput
    assert "p95 15 ms" in plots.bars(found).texts[1].get_text()


def rates(p95, naive, share=(0.5, 0.9, 1.1)):
    frame = pd.DataFrame({"share": share, "p95_ms": p95, "naive_p95_ms": naive, "generator_bound": False})
    frame["offered_per_s"] = frame["share"] * 100
    parts = ("compute_input_ms", "compute_infer_ms", "compute_output_ms", "client_ms")
    return frame.assign(**dict.fromkeys(parts, 1.0), queue_ms=frame["naive_p95_ms"], late_ms=frame["p95_ms"] - naive)


def curve(*values, **columns):
    frame = pd.DataFrame({"start_s": [0.0], "ms": [20.0], "naive_ms": [20.0], "rows": [1], "error": [""]})
    closed = LoadRun(frame=frame, concurrency=8, offered=float("nan"), seconds=0.1, generator_busy=0.1, statistics=None)
    return RateCurve(frame=rates(*values).assign(**columns), closed=closed)


def test_a_curve_gives_the_p95_by_three_ways_of_counting():
    hidden = curve([10, 14, 300], [10, 13, 30])
    assert hidden.headline == (
        "p95 at 110% of capacity: 300 ms from when requests were due, 30 ms on the client's own clock; "
        "20 ms in a closed loop"
    )
    assert curve([10, 463, 180], [10, 13, 30]).headline.endswith("20 ms in a closed loop; 463 ms at 90%")
    bound = curve([10, 11, 13], [10, 11, 13], generator_bound=[False, True, True])
    assert bound.headline.endswith("the generator was the bottleneck in part of it")
    assert title(plots.latency(hidden)) == hidden.headline


def load_run(errors, **facts):
    frame = pd.DataFrame({"start_s": 0.0, "ms": 20.0, "naive_ms": 20.0, "rows": 1, "error": errors})
    base = {"concurrency": 0, "offered": 4.0, "seconds": 1.0, "generator_busy": 0.1, "statistics": None}
    return LoadRun(frame=frame, **base | facts)


def test_requests_whose_client_gave_up_are_not_called_refused():
    found = speed([load_run(["", "No answer came in time.", "The model's queue is full.", ""])])
    assert (found["refused"], found["gave_up"]) == (0.25, 0.25)


def test_instances_are_busy_for_a_share_of_the_time_that_was_counted():
    runs = [load_run([""] * 4, statistics=counted(requests=4), counted_s=each) for each in (0.0, 2.0)]
    assert [totals([run])[1] for run in runs] == [1.0, 2.0]


def test_the_knee_is_the_last_rate_before_latency_rises_or_there_is_none():
    assert curve([10, 140, 300], [10, 13, 30]).knee.startswith("The knee is between 50 and 90 requests/s: ")
    assert "The knee is at 90 requests/s, 90% of capacity" in curve([10, 14, 300], [10, 13, 30]).knee
    assert curve([10, 11, 12], [10, 11, 12]).knee.startswith("No knee up to 110% of capacity")


def test_the_part_that_grows_most_is_named():
    late = curve([10, 14, 300], [10, 13, 30])
    assert late.explanation == (
        "A request's mean time goes from 14 ms at 50% of capacity to 304 ms at 110%; "
        "waiting in the client grows most, by 270 ms"
    )
    assert "; Triton's queue grows most" in curve([10, 50, 300], [10, 50, 300]).explanation
    assert "to 104 ms at 90%; waiting in the client" in curve([10, 100, 80], [10, 13, 30]).explanation
    assert curve([10, 9, 8], [10, 9, 8]).explanation == "A request's mean time is highest at the lowest rate: 14 ms"
    assert title(plots.split(late)) == late.explanation


def sizes(batch_ms, token_us):
    rows = [(batch, length) for batch in (1, 16) for length in (4, 64)]
    frame = pd.DataFrame(rows, columns=["batch_size", "tokens"])
    frame["batch_tokens"] = frame["batch_size"] * frame["tokens"]
    frame["ms"] = batch_ms + frame["batch_tokens"] * token_us / 1e3
    frame["token_ms"] = frame["ms"] / frame["batch_tokens"]
    return frame.assign(batch_ms=batch_ms, token_us=token_us, weights=10_000_000, device="cpu")


def test_what_a_batch_gains_depends_on_its_tokens():
    assert Crossover(frame=sizes(2.0, 70)).headline == (
        "Batching gains 5.6× for texts of 4 tokens and 1.4× for texts of 64 tokens"
    )


def test_speeds_and_the_crossover_follow_from_the_two_parts():
    said = Crossover(frame=sizes(2.0, 100)).explanation
    assert "10 million weights at 200 GFLOP/s" in said
    assert "reading the weights once at 20 GB/s: from 20 tokens on" in said
    assert "there is no fixed part" in Crossover(frame=sizes(0.0, 100)).explanation
    on_gpu = Crossover(frame=sizes(2.0, 0.1).assign(device="cuda:0")).explanation
    assert "a batch 2.0 ms on top, mostly to launch its kernels one by one: from 20,000 tokens on" in on_gpu


def test_the_two_parts_are_found_again():
    frame = sizes(2.0, 70)
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    assert (batch_ms, token_ms) == (pytest.approx(2.0), pytest.approx(0.07))
    assert title(plots.crossover(frame)) == Crossover(frame=frame).headline


def test_tokens_that_cost_nothing_are_said_so_and_have_no_crossover():
    frame = sizes(3.0, 0).assign(ms=[3.1, 3.0, 3.05, 2.9])  # a GPU: the largest batch is no slower
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    assert (batch_ms, token_ms) == (pytest.approx(3.0, rel=0.03), 0)
    frame = frame.assign(token_ms=frame["ms"] / frame["batch_tokens"], batch_ms=batch_ms, token_us=0.0)
    assert "more tokens cost nothing that can be measured" in Crossover(frame=frame).explanation
    assert plots.crossover(frame)


def test_rejections_are_drawn_beside_the_configured_timeout():
    late = pd.DataFrame({"ms": [150.0, 400.0, 900.0], "error": "The request waited longer than the queue's timeout."})
    assert (
        title(plots.rejections(late, 100))
        == "A timeout of 100 ms rejects half of the late requests within 400 ms, the last after 900 ms"
    )
    assert title(plots.rejections(late.head(0), 100)) == "Nothing was rejected by a timeout of 100 ms"


def ranks(values):
    frame = pd.DataFrame({"setting": ["none", "none", "levels", "levels"], "priority": [1, 2, 1, 2]})
    return frame.assign(p95_ms=values, share=[0.25, 0.75] * 2)


def test_priorities_are_drawn_with_the_p95_of_the_most_urgent():
    said = title(plots.priorities(ranks([100.0, 100.0, 30.0, 130.0])))
    assert said == "p95 of the most urgent requests: 100 ms (none) and 30 ms (levels)"


def intervals(queue_ms, **columns):
    frame = pd.DataFrame({"time_s": [1.0, 2.0, 3.0], "seconds": 1.0, "queue_ms": queue_ms})
    frame = frame.assign(requests_per_s=20.0, texts_per_s=20.0, mean_batch_size=2.0, reset=False)
    return frame.assign(**columns)


def watched(*args, **columns):
    sizes = pd.Series({2: 30}, name="executions")
    return Watched(frame=intervals(*args, **columns), metrics=pd.DataFrame(), batch_sizes=sizes, config=DELAYED)


def test_a_watched_model_names_the_longest_wait_the_occupancy_and_reloads():
    seen = watched([1.0, 80.0, 5.0], reset=[False, True, False])
    assert seen.headline == (
        "Requests waited longest at 2.0 s, 80 ms each; 2.0 rows a batch on average, 25% of the largest batch. "
        "Loaded again once, which set the counts back"
    )
    assert title(plots.watching(seen)) == seen.headline
    assert watched([0.0] * 3, requests_per_s=0.0).headline.startswith("No requests came")


def test_statistics_of_two_runs_add_up_and_give_means():
    both = counted(requests=3, executions=1, inferences=3, queue_ns=9_000_000, batch_ns={3: 4_000_000}) + counted(
        requests=1, executions=1, inferences=1, queue_ns=3_000_000, batch_ns={1: 2_000_000}
    )
    assert (both.queue_ms, both.mean_batch_size, both.text_ms) == (3.0, 2.0, 1.5)
    assert both.busy(0.012, 2) == pytest.approx(0.25)


def test_a_reading_follows_another_unless_a_reload_set_the_counts_back():
    assert counted(requests=9).follows(counted(requests=5))
    assert not counted(requests=3).follows(counted(requests=5))
    assert not counted(requests=9, resets=1).follows(counted(requests=5))


def test_a_reload_that_shows_in_the_counts_before_it_is_known_as_one_is_one():
    seen = watch(SimpleNamespace(config=DELAYED, name="m"))
    for at_s, (requests, resets) in enumerate([(5, 0), (9, 0), (2, 0), (3, 0), (6, 1), (8, 1), (1, 2)]):
        seen._readings.append((float(at_s), counted(requests=requests, resets=resets)))
    frame = seen.result.frame
    assert frame["reset"].tolist() == [False, True, False, False, False, True]
    assert frame["requests_per_s"].tolist() == [4, 2, 1, 3, 2, 1]


def test_metrics_keep_the_names_that_triton_gives_them():
    text = '# TYPE nv_count counter\nnv_count{model="m",version="1"} 3\n# TYPE a_total counter\na_total 1\nfree 2\n'
    table = parse_metrics(text).set_index("name")
    assert table["value"].to_dict() == {"nv_count": 3.0, "a_total": 1.0, "free": 2.0}
    assert table.loc["nv_count", "model"] == "m"


def test_what_is_no_metric_text_is_refused():
    from accel_lib.errors import AccelError

    with pytest.raises(AccelError, match="no metrics"):
        parse_metrics("<html>")


def test_statistics_come_back_from_json():
    import json

    before = counted(requests=5, batch_sizes={2: 3}, batch_ns={2: 700})
    assert Statistics.from_dict(json.loads(json.dumps(dataclasses.asdict(before)))) == before


def test_the_action_on_a_timeout_goes_into_the_config_and_back():
    config = ModelConfig(name="m", queue_timeout_us=5, timeout_action="delay", allow_timeout_override=True)
    assert "timeout_action: DELAY" in config.to_text()
    again = ModelConfig.from_text(config.to_text())
    assert (again.timeout_action, again.allow_timeout_override) == ("delay", True)
    assert ModelConfig.from_text(again.replace(timeout_action="reject").to_text()).timeout_action == "reject"
