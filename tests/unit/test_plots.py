from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.artifact import Profile
from accel_lib.show import plots
from accel_lib.triton.statistics import Timeline
from accel_lib.tuning.results import Sweep

BASELINE = "sentence-transformers"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def title(ax):
    return " ".join(ax.figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ").split())


def words(ax):
    return [text.get_text() for text in ax.texts]


def intervals(frame, column, spread=0.04):
    return frame.assign(
        **{f"{column}_low": frame[column] * (1 - spread), f"{column}_high": frame[column] * (1 + spread)}
    )


def strategies(rates, padding):
    frame = pd.DataFrame({"strategy": ["one by one", "32 as they come", "sorted"][: len(rates)], "padding": padding})
    frame["texts_per_s"] = np.array(rates, dtype=float)
    frame["tokens_per_s"] = frame["texts_per_s"] * 40
    frame["speedup"] = frame["texts_per_s"] / rates[0]
    return intervals(frame, "speedup")


def candidates(rates, kept, cosine=(1.0, 0.99)):
    frame = pd.DataFrame({"name": [BASELINE, "onnx int8"], "over": ["", BASELINE]})
    frame["texts_per_s"] = np.array(rates, dtype=float)
    frame["speedup"] = frame["texts_per_s"] / rates[0]
    frame["size_mb"], frame["cosine_mean"], frame["top10_overlap"] = [90.4, 58.6], cosine, kept
    return intervals(intervals(frame, "texts_per_s"), "speedup")


def sizes(speedups):
    frame = pd.DataFrame({"batch_size": [1, 1, 64, 64], "tokens": [16, 128, 16, 128], "speedup": speedups})
    frame["candidate"], frame["baseline"] = "tensorrt fp16", "torch fp16"
    return intervals(frame, "speedup")


def settings(rates, p95, target):
    frame = pd.DataFrame({"instance_count": [1, 2], "max_queue_delay_us": [0, 2000], "max_batch_tokens": [512, 512]})
    frame["texts_per_s"], frame["p95_ms"] = rates, p95
    frame = intervals(intervals(frame, "texts_per_s"), "p95_ms")
    best = frame[frame["p95_ms"] <= target]["texts_per_s_low"].max()
    frame["over_best_high"] = frame["texts_per_s_high"] / best
    return Sweep(frame=frame, served=None, base=None, p95_ms=target, unloaded_latency_ms=1.0)


@pytest.mark.parametrize(
    ("rates", "effect"),
    [
        ([52, 12], "0.23× (0.22–0.24×) the throughput of one by one"),
        ([12, 52], "4.3× (4.2–4.5×) the throughput of one by one"),
        ([50, 50.5], "no significant difference"),
    ],
)
def test_batching_is_titled_with_its_effect_and_padding(rates, effect):
    said = title(plots.batching(strategies(rates, [0, 0.75])))
    assert said == f"32 as they come: {effect}, 75% of its tokens are padding"


def test_the_best_strategy_is_named_when_it_is_not_the_second():
    assert title(plots.batching(strategies([50, 20, 80], [0, 0.7, 0.1]))).endswith("Best: sorted, 1.6× (1.5–1.7×)")


def test_padding_is_drawn_beside_the_real_tokens():
    ax = plots.batching(strategies([50, 20], [0, 0.75]))
    real, padded = ax.containers
    assert [bar.get_width() for bar in real] == [2000, 800]
    assert [bar.get_width() for bar in padded] == [2400]
    assert "tokens computed per second" in ax.get_xlabel()


def test_the_waterfall_names_winner_and_agreement():
    ax = plots.comparison(candidates([30, 63], [1, 0.88]))
    assert title(ax) == (
        "onnx int8 encodes 2.1× (2.0–2.2×) as many texts/s as sentence-transformers, "
        "and keeps 88% of the ten nearest neighbours"
    )
    assert {"59 MB", "88%"} <= set(words(ax))
    assert "texts/s" in ax.get_xlabel()


def test_a_step_of_the_waterfall_counts_from_the_fastest_before_it():
    lost = candidates([60, 30], [1, 1])
    frame = pd.concat([lost, lost.iloc[1:].assign(texts_per_s=90)])
    assert "90, step 1.5×" in words(plots.comparison(frame))


def test_a_flat_waterfall_says_no_significant_difference():
    assert title(plots.comparison(candidates([30, 30.3], [1, 1]))).startswith("No significant difference in speed")


def test_agreement_names_the_candidate_that_agrees_least():
    expected = "onnx int8 agrees least: a mean cosine of 0.9900, and 88% of the ten nearest neighbours kept"
    assert title(plots.agreement(candidates([1, 2], [1, 0.88]))) == expected


def test_the_map_names_where_most_and_least_is_gained():
    ax = plots.speedup_map(sizes([7, 5, 3, 1.3]))
    assert title(ax) == "tensorrt fp16 is 7.0× as fast as torch fp16 at 1 × 16 tokens, 1.3× at 64 × 128 tokens"
    assert words(ax) == ["7.0×", "5.0×", "3.0×", "1.3×"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length of each text, tokens", "batch size, texts")


def test_a_map_with_losses_counts_them():
    assert title(plots.speedup_map(sizes([2, 1.5, 0.9, 0.5]))).endswith("; slower at 2 of 4 sizes")


def test_a_flat_map_says_no_significant_difference():
    flat = title(plots.speedup_map(sizes([1, 1.01, 0.99, 1])))
    assert flat == "No significant difference between tensorrt fp16 and torch fp16 at any size"


def times_of(baseline, candidate):
    work = 16 * 4 ** np.arange(len(baseline))
    frame = pd.DataFrame({"batch_size": 1, "tokens": work, "baseline_ms": baseline, "candidate_ms": candidate})
    return frame.assign(candidate="tensorrt fp16", baseline="torch fp16")


def test_the_floor_is_what_launching_takes_until_computing_takes_longer():
    ax = plots.floor(times_of([4.2, 4.1, 4.3, 4.4, 13], [0.6, 0.7, 0.9, 4.0, 12]))
    said, rest = title(ax).split("; ")
    assert said == "torch fp16 takes about 4.2 ms for any batch of up to 1,024 tokens"
    assert rest == "tensorrt fp16 takes 0.60 ms for the smallest"
    assert words(ax) == ["torch fp16", "tensorrt fp16"]


def test_times_that_rise_from_the_start_have_no_floor():
    ax = plots.floor(times_of([1, 4, 16, 64], [0.5, 2, 8, 32]))
    assert title(ax) == "torch fp16 has no floor here: more tokens take longer at any size"


def test_times_that_never_rise_are_all_floor():
    assert "any batch of up to 1,024 tokens" in title(plots.floor(times_of([4, 4, 4, 4], [1, 1, 1, 1])))


def test_recorded_data_is_labelled_as_recorded():
    frame = sizes([7, 5, 3, 2])
    frame.attrs["recorded"] = "NVIDIA H200, 2026-11-24"
    assert plots.speedup_map(frame).figure.get_supxlabel() == "recorded on NVIDIA H200, 2026-11-24"


def test_measured_data_names_its_machine():
    frame = strategies([52, 12], [0, 0.75])
    frame.attrs["machine"] = "2 cores, no GPU"
    assert plots.batching(frame).figure.get_supxlabel() == "measured on 2 cores, no GPU"


def test_profiles_say_which_share_of_texts_they_take():
    lengths = np.array([5] * 80 + [60] * 20)
    two = [Profile(min=(1, 2), opt=(8, 8), max=(32, 16)), Profile(min=(1, 2), opt=(8, 60), max=(32, 64))]
    ax = plots.length_profiles(lengths, two)
    assert title(ax) == "80% of the texts have up to 16 tokens and 20% up to 64"
    assert "tokens" in ax.get_xlabel()


def test_texts_longer_than_any_profile_are_not_hidden():
    one = [Profile(min=(1, 2), opt=(8, 8), max=(32, 16))]
    assert "20% more than any profile" in title(plots.length_profiles(np.array([5] * 80 + [60] * 20), one))


def test_lengths_say_how_many_texts_the_model_cuts():
    ax = plots.lengths(np.array([10] * 60 + [40] * 38 + [128] * 2), 128)
    assert title(ax) == "Tokens per text: p50 10, p99 128; 2% fill the model's 128"
    assert sum(bar.get_height() for bar in ax.patches) == 100  # type: ignore[attr-defined]
    assert {"median 10", "limit 128"} <= set(words(ax))


def test_the_timeline_tells_what_serving_costs():
    parts = {"tokenize_ms": 0.2, "transport_ms": 0.5, "queue_ms": 0.1}
    computing = {"compute_input_ms": 0.1, "compute_infer_ms": 9.0, "compute_output_ms": 0.1}
    ax = plots.timeline(Timeline(**parts, **computing))
    assert title(ax) == "One request takes 10 ms: 9.0 ms in the model, 0.20 ms tokenizing, 0.80 ms for being served"
    assert "milliseconds" in ax.get_xlabel()


def test_the_tuned_setting_is_the_fastest_within_the_target():
    ax = plots.tuning(settings([60, 80], [100, 200], 250))
    assert title(ax) == "2 instances, 2 ms queue delay, ≤ 512 tokens a batch: 80 texts/s at a p95 of 200 ms"
    assert "chosen" in words(ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("p95 latency, ms", "throughput, texts/s")


def test_a_fast_setting_over_the_target_is_not_taken():
    assert title(plots.tuning(settings([60, 80], [100, 200], 150))).startswith("1 instance, no queue delay")


def test_an_unmet_target_is_said():
    ax = plots.tuning(settings([60, 80], [100, 200], 5))
    assert title(ax).startswith("No setting meets a p95 of 5 ms: the closest, 1 instance")
    assert "closest" in words(ax)


def test_indistinguishable_settings_give_the_simplest():
    assert title(plots.tuning(settings([60, 61], [100, 100], 250))).startswith(
        "No significant difference between the 2 settings: took the simplest, 1 instance"
    )


@pytest.mark.parametrize("p95", [[100, 200], [200, 100]])  # two settings on the front, and one
def test_the_front_is_drawn_and_no_words_of_a_sweep_lie_on_others(p95):
    ax = plots.tuning(settings([60, 61], p95, 150))
    ax.figure.draw_without_rendering()
    (front,) = [line for line in ax.lines if line.get_label() == "Pareto front"]
    assert (100, 60 if p95[0] == 100 else 61) in set(map(tuple, front.get_xydata()))
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_batch_sizes_tell_the_mean():
    ax = plots.batch_sizes(pd.Series([10, 10], index=[1, 3]))
    assert title(ax) == "Triton ran 2.0 requests at a time on average; 75% were in batches of 3 or more"
    assert "batch size" in ax.get_xlabel()
