"""What experiments, curves, queues and watched models say on data that rises, falls and stays, and how it is drawn."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.bench import findings_curve
from accel_lib.bench.roofline import fit
from accel_lib.load import findings_experiment, findings_queue, findings_watch
from accel_lib.load.monitor import Watched, change, delay_loss, parse_metrics, watch
from accel_lib.load.rate_curve import RateCurve
from accel_lib.load.runner import LoadRun
from accel_lib.load.vary import Experiment
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
    """Two settings with 16 requests under way; `second` changes what Triton counted for the second one."""
    inside = {"queue_ms": 4.0, "mean_batch_size": 8.0, "execution_ms": 16.0, "text_ms": 2.0, "busy": 0.95}
    row = {"load": 16, "open": False, "instances": 1, "refused": 0.0, "p50_ms": 20.0, "generator_bound": False} | inside
    base = {"setting": "plain", "speedup": 1.0, "p95_ratio": 1.0, "sentences_per_s": 500.0, "p95_ms": 30.0} | row
    other = base | {"setting": "other", "speedup": speedup, "p95_ratio": p95_ratio} | second
    other |= {"sentences_per_s": 500.0 * speedup, "p95_ms": 30.0 * p95_ratio}
    frame = pd.DataFrame([base, other])
    frame["goodput_per_s"] = frame["sentences_per_s"]
    for name in ("speedup", "p95_ratio", "sentences_per_s", "p95_ms"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] * (1 - spread), frame[name] * (1 + spread)
    return frame


def test_a_gain_a_loss_and_nothing_have_their_own_titles():
    assert findings_experiment.effect(settings(2.0, 0.5)) == (
        "other: 2.0× the throughput and 0.50× the p95 of plain with 16 requests under way"
    )
    assert (
        findings_experiment.effect(settings(0.5)) == "other: 0.50× the throughput of plain with 16 requests under way"
    )
    nothing = "No significant difference between plain and other with 16 requests under way"
    assert findings_experiment.effect(settings(1.02)) == nothing
    assert findings_experiment.effect(settings(1.5, spread=0.6)) == nothing


def test_swapped_settings_swap_the_title():
    frame = settings(2.0)
    swapped = frame.iloc[::-1].reset_index(drop=True)
    for name in ("speedup", "p95_ratio"):
        low, high = swapped[f"{name}_low"], swapped[f"{name}_high"]
        swapped[name], swapped[f"{name}_low"], swapped[f"{name}_high"] = (
            *(1 / swapped[name].iloc[::-1].to_numpy(), 1 / high.iloc[::-1].to_numpy(), 1 / low.iloc[::-1].to_numpy()),
        )
    assert "plain: 0.50× the throughput of other" in findings_experiment.effect(swapped)


def test_too_few_samples_for_an_interval_are_no_difference():
    frame = settings(2.0).assign(speedup_low=np.nan, speedup_high=np.nan, p95_ratio_low=np.nan, p95_ratio_high=np.nan)
    assert findings_experiment.effect(frame).startswith("No significant difference")


def test_an_early_end_and_a_busy_generator_are_said():
    frame = settings(1.0).assign(generator_bound=True)
    assert findings_experiment.effect(frame, "Triton cannot be reached.").endswith(
        "The generator was the bottleneck in part of it. It ended early: Triton cannot be reached."
    )


@pytest.mark.parametrize(
    ("second", "because"),
    [
        ({"mean_batch_size": 16.0, "text_ms": 1.0}, "what a batch costs by itself is shared by more"),
        ({"mean_batch_size": 16.0}, "a text costs the same 2.0 ms: arithmetic is the limit"),
        ({"mean_batch_size": 16.0, "text_ms": 4.0}, "each is padded to the longest"),
        ({"mean_batch_size": 2.0, "text_ms": 4.0}, "what a batch costs by itself is shared by fewer"),
        ({"mean_batch_size": 4.0, "queue_ms": 30.0}, "requests wait 26 ms longer"),
        ({"queue_ms": 24.0}, "requests wait 20 ms longer, and the batches are as they were"),
        ({"queue_ms": 0.5}, "requests wait 3.5 ms less"),
        ({"execution_ms": 30.0}, "batches are as large as before, and one goes from 16 to 30 ms"),
        ({"instances": 2, "text_ms": 6.0, "mean_batch_size": 4.0}, "together they do less"),
        ({"instances": 2, "mean_batch_size": 7.0}, "together they do more"),
        ({"instances": 2, "text_ms": 4.0}, "together they do the same"),
        ({"refused": 0.4, "queue_ms": 1.0}, "40% of the requests are refused, and those that are answered wait 1.0"),
        ({"refused": 0.4, "busy": 0.3}, "the batcher sleeps"),
        ({}, "nothing changes inside"),
    ],
)
def test_the_reason_comes_from_what_triton_counted(second, because):
    assert because in findings_experiment.reason(settings(2.0, **second))


def test_a_delay_that_meets_an_empty_queue_only_adds_waiting():
    frame = settings(0.5, 3.0, queue_ms=24.0).assign(mean_batch_size=1.0, load=1)
    assert findings_experiment.reason(frame) == (
        "With 1 request under way, the setting only adds 20 ms of waiting: the queue never holds two requests"
    )


def test_without_counts_there_is_no_reason():
    assert "counted nothing" in findings_experiment.reason(settings(2.0).assign(mean_batch_size=np.nan))


def test_the_table_of_an_experiment_counts_the_requests_under_way():
    frame = settings(2.0)
    frame.attrs["machine"] = "2 cores"
    assert Experiment(frame=frame, runs={})._repr_html_().count("<td>16</td>") == len(frame)


def test_the_figures_of_an_experiment_carry_its_finding():
    experiment = Experiment(frame=settings(2.0), runs={}, target_ms=100)
    for draw in (plots.bars, plots.paths):
        assert title(draw(experiment)) == experiment.headline
    assert "p95 15 ms" in plots.bars(Experiment(frame=settings(2.0, 0.5), runs={})).texts[1].get_text()


def rates(p95, naive, share=(0.5, 0.9, 1.1)):
    frame = pd.DataFrame({"share": share, "p95_ms": p95, "naive_p95_ms": naive, "generator_bound": False})
    frame["offered_per_s"] = frame["share"] * 100
    parts = ("compute_input_ms", "compute_infer_ms", "compute_output_ms", "client_ms")
    return frame.assign(**dict.fromkeys(parts, 1.0), queue_ms=frame["naive_p95_ms"], late_ms=frame["p95_ms"] - naive)


def test_a_client_that_hides_waiting_is_told_from_one_that_does_not():
    hidden = findings_curve.curve(rates([10, 14, 300], [10, 13, 30]), 28)
    assert hidden == (
        "At 110% of capacity the p95 is 300 ms from when requests were due; the client's own clock says 30 ms, "
        "a closed loop 28 ms"
    )
    assert "and alike, 13 ms, on the client's own clock" in findings_curve.curve(rates([10, 11, 13], [10, 11, 13]), 12)
    bound = rates([10, 11, 13], [10, 11, 13]).assign(generator_bound=[False, True, True])
    assert findings_curve.curve(bound, 12).endswith("From 90% on the generator was the bottleneck")


def test_the_knee_is_the_last_calm_rate_or_there_is_none():
    assert "The knee is at 90 requests/s, 90% of capacity" in findings_curve.knee(rates([10, 14, 300], [10, 13, 30]))
    assert findings_curve.knee(rates([10, 11, 12], [10, 11, 12])).startswith("No knee up to 110% of capacity")


def test_the_part_that_grows_is_named_and_none_where_nothing_does():
    assert "of the growth is waiting in the client" in findings_curve.split(rates([10, 14, 300], [10, 13, 30]))
    assert "of the growth is Triton's queue" in findings_curve.split(rates([10, 50, 300], [10, 50, 300]))
    assert findings_curve.split(rates([10, 10, 10], [10, 10, 10])).startswith("The rate changes little")


def test_the_curve_is_drawn_with_its_finding():
    frame = pd.DataFrame({"start_s": [0.0], "ms": [20.0], "naive_ms": [20.0], "rows": [1], "error": [""]})
    closed = LoadRun(frame=frame, concurrency=8, offered=float("nan"), seconds=0.1, generator_busy=0.1, statistics=None)
    curve = RateCurve(frame=rates([10, 14, 300], [10, 13, 30]), closed=closed)
    assert title(plots.latency(curve)) == curve.headline
    assert title(plots.split(curve.frame)) == findings_curve.split(curve.frame)


def sizes(batch_ms, token_us):
    rows = [(batch, length) for batch in (1, 16) for length in (4, 64)]
    frame = pd.DataFrame(rows, columns=["batch_size", "tokens"])
    frame["batch_tokens"] = frame["batch_size"] * frame["tokens"]
    frame["ms"] = batch_ms + frame["batch_tokens"] * token_us / 1e3
    frame["token_ms"] = frame["ms"] / frame["batch_tokens"]
    return frame.assign(batch_ms=batch_ms, token_us=token_us, weights=10_000_000, device="cpu")


def test_what_a_batch_gains_depends_on_its_tokens():
    assert findings_curve.crossover(sizes(2.0, 70)) == "Batching gains 5.6× for texts of 4 tokens and 1.4× of 64 tokens"
    assert findings_curve.crossover(sizes(0.0, 70)).startswith("Batching gains nothing at any length here")
    assert findings_curve.crossover(sizes(50.0, 0.1)).startswith("Batching gains about as much at every length")


def test_speeds_and_the_crossover_follow_from_the_two_parts():
    said = findings_curve.limits(sizes(2.0, 100).iloc[0])
    assert "10 million weights at 200 GFLOP/s" in said
    assert "reading them once at 20 GB/s: from 20 tokens on" in said
    assert "no part is left to share" in findings_curve.limits(sizes(0.0, 100).iloc[0])
    on_gpu = findings_curve.limits(sizes(2.0, 0.1).assign(device="cuda:0").iloc[0])
    assert "a batch 2.0 ms beside, mostly to launch its kernels one by one: from 20,000 tokens on" in on_gpu


def test_the_two_parts_are_found_again():
    frame = sizes(2.0, 70)
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    assert (batch_ms, token_ms) == (pytest.approx(2.0), pytest.approx(0.07))
    assert title(plots.crossover(frame)) == findings_curve.crossover(frame)


def test_tokens_that_cost_nothing_are_said_so_and_have_no_crossover():
    frame = sizes(3.0, 0).assign(ms=[3.1, 3.0, 3.05, 2.9])  # a GPU: the largest batch is no slower
    batch_ms, token_ms = fit(frame["batch_tokens"].to_numpy(dtype=float), frame["ms"].to_numpy())
    assert (batch_ms, token_ms) == (pytest.approx(3.0, rel=0.03), 0)
    frame = frame.assign(token_ms=frame["ms"] / frame["batch_tokens"], batch_ms=batch_ms, token_us=0.0)
    assert "more tokens cost nothing to be measured" in findings_curve.limits(frame.iloc[0])
    assert title(plots.crossover(frame)) == findings_curve.crossover(frame)


def pressure(good):
    frame = pd.DataFrame({"setting": ["plain", "plain", "timeout", "timeout"], "load": [50, 100, 50, 100]})
    return frame.assign(goodput_per_s=good, p50_ms=[40.0, 900.0, 40.0, 80.0])


def test_goodput_ranks_at_the_highest_load_and_a_tie_is_one():
    assert findings_queue.goodput(pressure([50, 10, 50, 80]), 200) == (
        "At 100 requests/s timeout answers 80 a second within 200 ms, plain 10 a second"
    )
    assert findings_queue.goodput(pressure([50, 80, 50, 10]), 200) == (
        "At 100 requests/s no setting answers more within 200 ms than plain; "
        "timeout only 10 a second against 80 a second"
    )
    assert findings_queue.goodput(pressure([50, 80, 50, 82]), 200).endswith("than plain")


def test_a_target_under_the_time_of_one_request_says_so():
    assert findings_queue.goodput(pressure([0, 0, 0, 0]), 1) == (
        "Nothing is answered within 1 ms: even at the lowest load half take 40 ms or more"
    )


def test_rejections_are_late_or_on_time_or_there_are_none():
    late = pd.DataFrame({"ms": [150.0, 400.0, 900.0], "error": "The request waited longer than the queue's timeout."})
    said = "A timeout of 100 ms rejects half of its cases by 400 ms, all by 900 ms: 4.0× as late as it says"
    assert findings_queue.rejections(late, 100) == said
    assert findings_queue.rejections(late.assign(ms=[101.0, 105.0, 110.0]), 100).endswith("about when it says")
    assert findings_queue.rejections(late.head(0), 100) == "Nothing was rejected by a timeout of 100 ms"
    assert title(plots.rejections(late, 100)) == said
    assert plots.rejections(late.head(0), 100)
    lost = pd.concat([late, late.head(1).assign(error="No answer came in time.", ms=2_000.0)])
    assert findings_queue.rejections(lost, 100) == f"{said}; 1 requests had no answer at all when their client gave up"


def ranks(values):
    frame = pd.DataFrame({"setting": ["none", "none", "levels", "levels"], "priority": [1, 2, 1, 2]})
    return frame.assign(p95_ms=values, share=[0.25, 0.75] * 2)


def test_priorities_help_and_cost_or_do_neither():
    assert findings_queue.priorities(ranks([100.0, 100.0, 30.0, 130.0])) == (
        "Levels bring the p95 of the urgent requests from 100 to 30 ms; the others pay, 100 to 130 ms"
    )
    assert findings_queue.priorities(ranks([100.0, 100.0, 101.0, 99.0])) == (
        "Levels do not help the urgent requests: a p95 of 101 ms, 100 ms without; the others stay at 99 ms"
    )
    ax = plots.priorities(ranks([100.0, 100.0, 30.0, 130.0]))
    assert "Levels bring" in title(ax)


def intervals(queue_ms, **columns):
    frame = pd.DataFrame({"time_s": [1.0, 2.0, 3.0], "seconds": 1.0, "queue_ms": queue_ms, "model_ms": 10.0})
    frame = frame.assign(requests_per_s=20.0, sentences_per_s=20.0, mean_batch_size=2.0, delay_loss=0.0, reset=False)
    return frame.assign(**columns)


def test_watching_names_the_worst_moment_the_fill_and_reloads():
    said = findings_watch.watching(intervals([1.0, 80.0, 5.0], reset=[False, True, False], delay_loss=0.2), 8)
    assert said == (
        "Requests waited longest 2.0 s in, 80 ms each; 2.0 rows a batch on average, 25% of what it may hold; "
        "waiting for fuller batches cost at most 20% of the time. Loaded anew once meanwhile, which set the counts back"
    )
    assert findings_watch.watching(intervals([1.0, 2.0, 1.0]), 8).startswith("Requests never waited longer than")
    assert findings_watch.watching(intervals([0.0] * 3, requests_per_s=0.0), 8).startswith("Nothing was asked")


def test_a_watched_model_is_drawn():
    seen = Watched(
        frame=intervals([1.0, 80.0, 5.0], reset=[False, True, False]),
        metrics=pd.DataFrame(),
        batch_sizes=pd.Series({2: 30}),
        config=DELAYED,
    )
    assert title(plots.watching(seen)) == seen.headline


def test_a_delay_costs_no_more_than_free_time_or_waiting_or_its_own_length():
    busy = counted(executions=50, queue_ns=10**9, batch_ns={2: 950_000_000})
    assert delay_loss(busy, DELAYED, 1.0) == pytest.approx(0.05)
    assert delay_loss(counted(executions=5, queue_ns=10**9), DELAYED, 1.0) == pytest.approx(0.05)
    assert delay_loss(counted(executions=50, queue_ns=10**7), DELAYED, 1.0) == pytest.approx(0.01)
    assert delay_loss(busy, DELAYED.replace(max_queue_delay_us=0), 1.0) == 0
    assert delay_loss(busy, DELAYED, 1.0, instances=2) == pytest.approx(0.25)


def test_counts_after_a_reload_count_from_the_reload():
    assert change(counted(requests=5), counted(requests=9)) == (counted(requests=4), False)
    assert change(counted(requests=5), counted(requests=3)) == (counted(requests=3), True)
    assert change(counted(requests=5), counted(requests=9, resets=1)) == (counted(requests=9, resets=1), True)


def test_a_reload_that_shows_in_the_counts_before_it_is_known_as_one_is_one():
    seen = watch(SimpleNamespace(config=DELAYED, name="m"))
    for at_s, (requests, resets) in enumerate([(5, 0), (9, 0), (2, 0), (3, 0), (6, 1), (8, 1), (1, 2)]):
        seen._readings.append((float(at_s), counted(requests=requests, resets=resets)))
        seen._gpu.append({"time_s": float(at_s)})
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
