from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from accel_lib.bench.batching import compare_batching
from accel_lib.bench.candidates import AS_THEY_COME, ONE_BY_ONE, SORTED, Candidate, budget
from accel_lib.bench.choose import choose, decide
from accel_lib.bench.compare import Comparison, compare
from accel_lib.bench.speedup import map_speedup
from accel_lib.bench.timing import Timing
from accel_lib.errors import EngineError, ModelError, TextError
from accel_lib.measurement import spread, take_turns
from accel_lib.stats import neighbours, overlap
from tests.tiny import NOISE, TABLE, tiny_artifact, tiny_model, tiny_texts


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def texts():
    return tiny_texts(60)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("exact") / "a", TABLE)


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("rough") / "a", TABLE + 0.3 * NOISE, precision="int8")


@pytest.fixture(scope="module")
def comparison(model, exact, rough, texts):
    return compare([model, exact, rough], texts, seconds=1)


def test_a_comparison_has_a_row_a_candidate_after_the_baseline(comparison):
    assert comparison.frame["name"].tolist() == ["sentence-transformers", "torch fp32", "onnx fp32", "onnx int8"]


def test_it_always_has_speed_size_and_agreement(comparison):
    frame = comparison.frame
    assert (frame[["texts_per_s", "ms_at_batch_1", "size_mb", "speedup"]] > 0).all(axis=None)
    assert frame[["cosine_mean", "cosine_min", "top10_overlap"]].notna().all(axis=None)


def test_exact_candidates_agree_and_rough_ones_lose_neighbours(comparison):
    frame = comparison.frame.set_index("name")
    assert frame.loc["onnx fp32", "cosine_min"] > 0.99999
    assert frame.loc["onnx fp32", "top10_overlap"] > 0.99
    assert frame.loc["onnx int8", "cosine_mean"] < 0.99
    assert frame.loc["onnx int8", "top10_overlap"] < 0.95


def test_speedups_name_what_they_are_over_and_have_intervals(comparison):
    frame = comparison.frame
    assert frame["over"].tolist() == [""] + 3 * ["sentence-transformers"]
    assert frame.loc[0, "speedup"] == 1
    assert (frame["speedup_low"] <= frame["speedup"]).all()
    assert (frame["speedup"] <= frame["speedup_high"]).all()


def test_every_candidate_says_how_it_was_batched(comparison):
    known = {ONE_BY_ONE.name, SORTED.name, budget(512).name, budget(2048).name}
    assert set(comparison.frame["batching"][1:]) <= known
    assert comparison.frame["padding"].between(0, 1).all()


def test_a_comparison_shows_units_the_finding_and_the_machine(comparison):
    page = comparison._repr_html_()
    for words in ("texts/s", "one text, ms", "size, MB", comparison.headline, comparison.machine, "<b>"):
        assert words in page
    assert comparison.headline in repr(comparison)


def test_a_comparison_without_a_model_takes_the_reference_it_is_given(exact, model, texts):
    frame = compare([exact], texts, reference=model, seconds=0.2).frame
    assert frame["name"].tolist() == ["sentence-transformers", "onnx fp32"]


def test_two_candidates_of_one_name_stay_apart(exact, model, texts):
    names = compare([exact, exact], texts, reference=model, seconds=0.2).frame["name"].tolist()
    assert names[1:] == ["onnx fp32", "onnx fp32 #2"]


def test_a_candidate_of_another_width_is_refused(model, texts, tmp_path):
    other = tiny_artifact(tmp_path / "other", TABLE[:, :8].copy())
    with pytest.raises(ModelError, match="8 dimensions where the reference has 16"):
        compare([model, other], texts, seconds=0.2)


def test_too_few_texts_are_refused_with_the_call_that_gets_more(model):
    with pytest.raises(TextError, match="load_texts"):
        compare([model], ["w1 w2"])


def test_nothing_to_compare_is_refused(texts):
    with pytest.raises(ModelError, match="nothing to compare"):
        compare([], texts)


def test_classifiers_are_compared_by_label(model, exact, texts):
    frame = compare([dataclasses.replace(model, task="classification"), exact], texts, seconds=0.2).frame
    assert frame["same_label"].tolist() == [1, 1, 1]
    assert "cosine_mean" not in frame


def test_overlap_leaves_the_text_itself_out():
    vectors = np.eye(20, dtype=np.float32) + 0.01
    assert overlap(vectors, vectors) == 1
    assert np.isnan(overlap(vectors[:5], vectors[:5]))


def test_neighbours_show_what_one_text_loses_and_gets():
    line = np.stack([np.cos(angles := np.linspace(0, 1, 21)), np.sin(angles)], axis=1).astype(np.float32)
    texts, moved = [f"text {i}" for i in range(21)], line.copy()
    moved[[5, 20]] = moved[[20, 5]]
    frame = neighbours(texts, moved, line)
    assert frame.attrs["query"] in {"text 5", "text 20"}
    lost, new = set(frame.query("lost == 'lost'")["reference"]), set(frame.query("new == 'new'")["candidate"])
    assert lost
    assert len(lost) == len(new)
    assert not lost & new


def test_overlap_counts_the_shared_neighbours():
    angles = np.linspace(0, 1, 21)
    line = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert overlap(line, line[np.random.default_rng(0).permutation(21)]) < 0.8
    assert overlap(line, line) == 1


def test_the_choice_passes_over_what_cannot_run_and_says_why(exact, tmp_path, texts, capsys):
    engine = tiny_artifact(tmp_path / "plan", TABLE, precision="fp16", target="sm75", form="tensorrt")
    raw = tiny_artifact(tmp_path / "raw", TABLE, validated=False)
    assert choose([engine, raw, exact], texts, seconds=0.2).folder == exact.folder
    printed = capsys.readouterr().out
    assert "Chose onnx fp32: " in printed
    assert "tensorrt fp16 sm75 (" in printed
    assert "onnx fp32 (not validated)" in printed


def test_a_validation_after_the_conversion_counts(tmp_path, texts):
    raw = tiny_artifact(tmp_path / "raw", TABLE, validated=False)
    raw.record_validation({"passed": True})
    assert choose([raw], texts, seconds=0.2).validated


def field(*rates):
    """Candidates named by position with these rates a turn, the first in INT8 and the others in FP32."""
    facts = {"device": "cpu", "size_bytes": 1, "encode": None, "lengths": None, "strategies": (), "close": None}
    precisions = ["int8", *["fp32"] * (len(rates) - 1)]
    made = [Candidate(name=f"number {i}", precision=p, **facts) for i, p in enumerate(precisions)]
    return made, [Timing(single_text_ms=1, strategy=SORTED, rates=np.array(r, dtype=float)) for r in rates]


def test_the_fastest_is_taken_when_the_interval_tells_it_from_the_next():
    steady = [50, 51, 49, 50, 51, 50, 49]
    index, why = decide(*field([2 * rate for rate in steady], steady))
    assert index == 0
    assert why == "number 0: 100 texts/s here, 2.0× as many as number 1"


def test_of_equals_the_most_precise_is_taken():
    index, why = decide(*field([52, 48, 52, 48, 52, 48, 52], [50] * 7, [10] * 7))
    assert index == 1
    assert why == "number 1: 50 texts/s here, no significant difference to number 0, and none of them is more precise"


def test_no_choice_is_an_error_that_names_every_candidate(tmp_path, texts):
    raw = tiny_artifact(tmp_path / "raw", TABLE, validated=False)
    with pytest.raises(EngineError, match=r"onnx fp32 \(not validated\)"):
        choose([raw], texts)


@pytest.mark.parametrize("candidate", ["model", "exact"])
def test_batching_counts_real_and_padded_tokens(candidate, request, texts, model):
    result = compare_batching(request.getfixturevalue(candidate), texts, seconds=0.5)
    frame = result.frame.set_index("strategy")
    assert list(frame.index) == ["one by one", "32 as they come", "32 sorted by length", "sorted, ≤ 512 tokens"]
    assert frame.loc["one by one", "padding"] == 0
    assert frame.loc["32 as they come", "padding"] > frame.loc["32 sorted by length", "padding"]
    per_text = frame["tokens_per_s"] / frame["texts_per_s"]
    assert per_text.to_numpy() == pytest.approx(model.lengths(texts).mean(), rel=1e-6)
    assert (frame["padded_tokens_per_s"] * (1 - frame["padding"])).to_numpy() == pytest.approx(frame["tokens_per_s"])
    assert result.headline.startswith("32 as they come: ")


def test_batching_can_be_asked_for_other_strategies(model, texts):
    frame = compare_batching(model, texts, strategies=(AS_THEY_COME, budget(100)), seconds=0.2).frame
    assert frame["strategy"].tolist() == ["32 as they come", "sorted, ≤ 100 tokens"]
    assert frame["speedup"].iloc[0] == 1


def test_the_map_has_a_row_a_size_and_says_which_engines(model, exact):
    from accel_lib.engines import open_engine

    frame = map_speedup(open_engine(exact), open_engine(model), batch_sizes=(1, 4), tokens=(8, 16), seconds=0.5).frame
    assert frame[["batch_size", "tokens"]].to_numpy().tolist() == [[1, 8], [1, 16], [4, 8], [4, 16]]
    assert set(frame["candidate"] + " / " + frame["baseline"]) == {"onnx fp32 / torch fp32"}
    assert frame["speedup"].to_numpy() == pytest.approx(frame["baseline_ms"] / frame["candidate_ms"], rel=0.9)


def test_everyone_gets_a_turn_and_nobody_is_always_first():
    order = []
    taken = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, repeats=6)
    assert "".join(order) == "abcbcacab" * 2
    assert {name: len(values) for name, values in taken.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_spent_budget_still_leaves_enough_turns_for_an_interval():
    assert len(take_turns({"a": lambda: None}, repeats=50, seconds=0)["a"]) == 6


def test_a_few_texts_stand_for_all_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    chosen = spread(lengths, 10)
    assert len(chosen) == 10
    assert (np.diff(chosen) > 0).all()
    assert {lengths.min(), lengths.max()} <= set(lengths[chosen])


def frame_of(rates, precision="fp32"):
    rows = [("sentence-transformers", "", 1.0), (f"onnx {precision}", "sentence-transformers", rates)]
    frame = pd.DataFrame(rows, columns=["name", "over", "speedup"])
    frame["texts_per_s"] = 30 * frame["speedup"]
    frame["texts_per_s_low"], frame["texts_per_s_high"] = frame["texts_per_s"] * 0.99, frame["texts_per_s"] * 1.01
    return frame.assign(
        speedup_low=frame["speedup"] * 0.95, speedup_high=frame["speedup"] * 1.05, cosine_mean=0.99, top10_overlap=0.88
    )


@pytest.mark.parametrize(
    ("ratio", "start"),
    [
        (2.0, "onnx fp32 encodes 2.0× (1.9–2.1×) as many"),
        (0.5, "onnx fp32 encodes 0.50×"),
        (1.01, "No significant difference in speed between onnx fp32 and sentence-transformers"),
    ],
)
def test_the_finding_follows_the_numbers(ratio, start):
    said = Comparison(frame=frame_of(ratio)).headline
    assert said.startswith(start)
    assert said.endswith("keeps 88% of the ten nearest neighbours")


def test_the_headline_names_what_may_be_as_fast_as_the_fastest():
    frame = pd.concat([frame_of(1.61), frame_of(1.63, "bf16")[1:], frame_of(1.2, "fp16")[1:]])
    assert Comparison(frame=frame).headline.endswith("; not certainly slower: onnx fp32")


def test_a_comparison_shows_the_class_of_each_candidate(comparison):
    assert comparison.frame["quality"].tolist() == ["exact", "exact", "exact", "–"]
    assert "quality" in repr(comparison)


def test_a_faster_candidate_below_the_class_is_not_chosen_and_is_named(exact, rough, texts, capsys):
    assert choose([rough, exact], texts, seconds=0.2).folder == exact.folder
    printed = capsys.readouterr().out
    assert "Chose onnx fp32: " in printed
    assert "exact: cosine 1.00000" in printed
    assert "Below the class 'small': onnx int8 (no class: cosine 0." in printed


def test_the_class_that_is_asked_for_decides_who_may_win(model, texts, tmp_path):
    close = tiny_artifact(tmp_path / "close", TABLE + 0.004 * NOISE, precision="int8")
    assert choose([close], texts, quality="near", reference=model, seconds=0.2).folder == close.folder
    with pytest.raises(EngineError, match="in the quality class 'exact'") as refusal:
        choose([close], texts, quality="exact", reference=model, seconds=0.2)
    assert "of ten nearest kept" in str(refusal.value.seen)
