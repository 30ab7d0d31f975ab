"""Ways of serving compared: headlines follow the table; halves, resources and traffic add up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from accel_lib.artifact import Artifact
from accel_lib.convert.partition import HIDDEN, cut
from accel_lib.engines.onnxruntime import Part
from accel_lib.errors import AccelError, ConversionError, EngineError
from accel_lib.load import rate_limiter, response_cache, split_model
from accel_lib.load.rate_limiter import MEASURES
from accel_lib.load.response_cache import CacheGain, Lookups, zipf_traffic
from accel_lib.load.rounds import Ways, in_rounds
from accel_lib.show import plots
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.ensemble import write_ensemble, write_part
from accel_lib.triton.rate_limiter import limited
from accel_lib.triton.repository import read_config
from tests.tiny import TABLE, tiny_artifact

SURE, NULL, LOSS = (4.0, 3.0, 5.0), (1.1, 0.8, 1.4), (0.5, 0.4, 0.6)


def measured(column, ends):
    return dict(zip((column, f"{column}_low", f"{column}_high"), map(float, ends), strict=True))


def cache_table(most, least, *, hits=0.9):
    rows = []
    for kinds, repeated, speedup in ((0, 0.0, least), (20, 0.95, most)):
        common = {"workload": "short queries", "kinds": kinds, "repeated": repeated}
        rows.append({**common, "setting": "no cache", "hits": 0, "mean_batch_size": 7} | measured("speedup", (1, 1, 1)))
        rows.append({**common, "setting": "cache", "hits": hits * repeated, "mean_batch_size": 3})
        rows[-1] |= measured("speedup", speedup)
    return pd.DataFrame(rows)


def test_a_cache_is_judged_where_texts_repeat_most():
    told = CacheGain(frame=cache_table(SURE, NULL), explanation="").headline
    assert told == "Short queries: 4.0× (3.0–5.0×) the throughput where 95% of the texts repeat"
    told = CacheGain(frame=cache_table(NULL, LOSS), explanation="", stopped="the server is gone").headline
    assert told == (
        "Short queries: no significant difference where 95% of the texts repeat. It ended early: the server is gone"
    )


def test_what_explains_the_cache_speaks_of_batches_only_where_requests_missed():
    told = response_cache._why(cache_table(SURE, NULL))
    assert told == (
        "Up to 86% of the requests are hits (short queries, 20 different texts), which never reach the batcher. "
        "What misses (short queries, 20 different texts) runs in batches of 3.0 on average, without the cache in "
        "batches of 7.0. Where no text comes twice, with the cache over without: short queries no significant "
        "difference."
    )
    every = cache_table(SURE, NULL, hits=1 / 0.95)
    every.loc[3, "mean_batch_size"] = response_cache._mean_batch({"inferences": 0.0, "executions": 0.0})
    told = response_cache._why(every[every["kinds"] == 20])
    assert told == ("100% of the requests are hits (short queries, 20 different texts), which never reach the batcher.")
    assert response_cache._mean_batch({"inferences": 3.0, "executions": 1.5}) == 2


def lookup_table(ratio):
    rows = [{"workload": "short queries", "name": "miss"} | measured("ms", (8, 7, 9)) | measured("speedup", (1, 1, 1))]
    hit = {"workload": "short queries", "name": "hit"} | measured("ms", (1, 1, 2)) | measured("speedup", ratio)
    return pd.DataFrame([*rows, hit])


def test_a_hit_is_compared_with_a_miss():
    assert Lookups(frame=lookup_table(SURE)).headline == "Short queries: a hit takes 1.0 ms, a miss 8.0 ms"


def limiter_table(p95, throughput):
    names = ("no limiter", "one at a time")
    frame = pd.DataFrame({"workload": "both models", "setting": names, "p50_ms": 3.0, "busy": (1.6, 1.0)})
    frame = frame.assign(**measured("p95_ms", (20, 15, 30)), **measured("texts_per_s", (40, 30, 50)))
    frame = frame.assign(**measured("p95_ratio", (1, 1, 1)), **measured("speedup", (1, 1, 1)))
    for column, ends in (("p95_ratio", p95), ("speedup", throughput)):
        frame.loc[1, list(measured(column, ends))] = ends
    return frame


def limits(p95, throughput):
    return Ways(frame=limiter_table(p95, throughput), explanation="", measures=MEASURES)


def test_the_limiter_s_headline_names_who_gains_and_who_pays():
    assert limits(SURE, LOSS).headline == (
        "Against no limiter: one at a time 4.0× the quick model's p95 and 0.50× the busy model's throughput"
    )
    assert limits(NULL, (1.0, float("nan"), float("nan"))).headline == (
        "Against no limiter: one at a time no significant difference"
    )


def test_the_time_that_models_worked_is_told_by_setting_and_names_who_was_alone():
    told = rate_limiter._why([{"setting": "taking turns", "busy": 1.08}, {"setting": "alone", "busy": 0.31}])
    assert told.startswith(
        "Share of the time that the two models worked, summed: taking turns 108%; the quick one alone 31%. "
    )


def layouts(halves):
    rows = []
    for setting, ends in (("two instances", (1, 1, 1)), ("two halves", halves)):
        row = {"workload": "mixed documents", "setting": setting, "texts_per_s": 100.0, "p95_ms": 40.0}
        rows.append(row | measured("speedup", ends) | measured("p95_ratio", NULL))
    return Ways(frame=pd.DataFrame(rows), explanation="")


def test_the_faster_layout_is_the_winner_whichever_it_is():
    assert layouts(SURE).headline == "Against two instances: two halves 4.0× the throughput"
    winners = [layouts(halves).winner("mixed documents") for halves in (SURE, LOSS, NULL)]
    assert winners == ["two halves", "two instances", "no significant difference"]


def test_layouts_are_explained_by_what_a_text_costs():
    rows = [
        {"workload": "short queries", "setting": setting, "text_ms": ms, "busy": 0.9}
        for setting, ms in (("two instances", 4.8), ("two halves", 5.0), ("one instance", 3.0))
    ]
    assert split_model._why(pd.DataFrame(rows)) == (
        "How long a text keeps an instance, and how busy the instances are.\n"
        "Short queries: two instances 4.8 ms, busy 90% of the time; two halves 5.0 ms (summed), busy 90% of the time."
    )


def test_every_figure_s_title_is_its_finding():
    for draw, result in (
        (plots.gain, CacheGain(frame=cache_table(SURE, NULL), explanation="")),
        (plots.lookups, Lookups(frame=lookup_table(SURE))),
        (plots.sharing, limits(SURE, LOSS)),
        (plots.race, layouts(LOSS)),
    ):
        title = draw(result).figure.get_suptitle()
        assert " ".join(title.split()) == result.headline


def test_traffic_repeats_as_zipf_says_and_marks_what_is_new():
    few = zipf_traffic(["a", "b"], 20, 500, seed=1)
    assert len(set(few.texts)) == len(set(few.numbers.tolist())) <= 20
    assert few.repeated(500, np.empty(0, dtype=np.int64)) >= 0.96
    assert few.repeated(500, np.arange(20)) == 1
    assert np.bincount(few.numbers)[0] > np.bincount(few.numbers)[5:].max()
    new = zipf_traffic(["a", "b"], 0, 500)
    assert len(set(new.texts)) == 500
    assert new.repeated(500, np.empty(0, dtype=np.int64)) == 0
    assert new.repeated(1_000, np.empty(0, dtype=np.int64)) == 0.5
    assert not set(new.texts) & set(zipf_traffic(["a", "b"], 0, 500).texts)


def test_rounds_start_with_another_way_each_and_keep_what_was_measured_before_an_error():
    seen = []

    def fails(way, turn):
        if (way, turn) == ("b", 1):
            raise AccelError("It broke.", seen="here", fix="fix it")
        return f"{way}{turn}"

    ways = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    measured, stopped = in_rounds(ways, {"load": fails}, repeats=3)
    assert seen == ["a", "b", "b"]
    assert measured == {("a", "load"): ["a0"], ("b", "load"): ["b0"]}
    assert stopped == "It broke. here"
    with pytest.raises(AccelError, match="broke"):
        in_rounds({"b": lambda: None}, {"load": lambda way, _: fails(way, 1)}, repeats=1)
    with pytest.raises(AccelError, match="nothing to measure"):
        in_rounds({}, {}, repeats=1)


def test_a_limited_configuration_holds_resources_and_priority_and_loses_them_again():
    config = limited(ModelConfig(name="tiny"), resources={"machine": 2}, priority=3)
    (group,) = config.to_protobuf().instance_group
    (resource,) = group.rate_limiter.resources
    assert (resource.name, resource.count, getattr(resource, "global")) == ("machine", 2, True)
    assert group.rate_limiter.priority == 3
    assert config.instance_count == 1
    assert "rate_limiter" not in limited(config).to_text()


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    import accel_lib

    made = accel_lib.to_onnx(tiny_model, output=tmp_path_factory.mktemp("whole") / "onnx", progress=False)
    return made.record_validation({"passed": True})


def test_halves_give_what_the_whole_gives(whole):
    first, second = cut(whole)
    assert first.validated
    assert second.validated
    assert first.manifest.notes[-1] == "layers 1 to 1 of 2"
    assert Artifact.load(second.folder).manifest.output_name == whole.manifest.output_name
    assert first.manifest.output_name == HIDDEN
    ids = np.full((1, 9), 7)
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    hidden = Part(first, threads=1).run(tensors)
    assert hidden.shape == (1, 9, 32)
    together = Part(second, threads=1).run(tensors | {HIDDEN: hidden})
    np.testing.assert_allclose(together, Part(whole, threads=1).run(tensors), atol=1e-5)


def test_a_part_that_gets_too_little_says_what_it_takes(whole):
    with pytest.raises(EngineError, match=HIDDEN):
        Part(cut(whole)[1], threads=1).run({"input_ids": np.ones((1, 4), dtype=np.int64)})


def test_what_cannot_be_cut_is_refused(whole, tmp_path):
    with pytest.raises(ConversionError, match="no such place"):
        cut(whole, at=2)
    with pytest.raises(ConversionError, match="validated"):
        cut(tiny_artifact(tmp_path / "new", TABLE, validated=False))
    with pytest.raises(ConversionError, match="no such place"):  # it has no layers
        cut(tiny_artifact(tmp_path / "flat", TABLE))


def test_the_repository_of_an_ensemble_is_typed_and_readable(whole, tmp_path):
    halves = cut(whole)
    names = write_ensemble(tmp_path, "halves", halves, threads=2)
    write_part(tmp_path, "whole", whole, instance_count=2)
    assert names == ["halves-1", "halves-2"]
    config = read_config(tmp_path / "halves")
    message = config.to_protobuf()
    assert (message.platform, message.backend) == ("ensemble", "")
    assert [step.model_name for step in message.ensemble_scheduling.step] == names
    assert [tensor.name for tensor in config.inputs] == ["input_ids", "attention_mask"]
    second = read_config(tmp_path / "halves-2")
    assert {tensor.name: tensor.dims for tensor in second.inputs}[HIDDEN] == (-1, 32)
    assert second.threads == 2
    assert read_config(tmp_path / "whole").instance_count == 2
