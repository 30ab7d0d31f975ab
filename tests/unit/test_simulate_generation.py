"""The simulation of an engine that generates: its resources, its order, and times that can be counted by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from accel_lib.errors import AccelError
from accel_lib.load.lengths import draw
from accel_lib.measurement import to_frame
from accel_lib.simulation.generation import EngineSettings
from accel_lib.simulation.generation_prediction import GenerationSimulator
from accel_lib.simulation.step_cost import Step, StepCost, fit_step_cost

COST = StepCost(knots=(1, 2, 128), knot_ms=(10.0, 15.0, 141.0), chosen=0.5, cached=0.01, pair=0.002)
PLAIN = StepCost(knots=(1,), knot_ms=(10.0,), chosen=0.0, cached=0.0, pair=0.0)  # any step takes 10 ms
SETTINGS = EngineSettings(rows=4, cache_tokens=2_048, block_tokens=32, step_tokens=128)


def simulator(cost=COST, **settings):
    return GenerationSimulator(
        frame=to_frame([{"rows": 1, "prompt_tokens": 0, "cached_tokens": 8, "ms": 10.0, "predicted_ms": 10.0}]),
        cost=cost,
        settings=dataclasses.replace(SETTINGS, **settings),
        context_tokens=8_192,
    )


LOAD = {"requests": 300, "prompt_tokens": (4, 300), "output_tokens": "exponential:40:160"}


@pytest.fixture(scope="module", params=["one by one", "calm", "busy", "at once", "little cache", "whole prompts"])
def run(request):
    asked = {
        "one by one": {"rate": 5, "rows": 1},
        "calm": {"rate": 1},
        "busy": {"rate": 20},
        "at once": {},
        "little cache": {"rate": 20, "cache_tokens": 512, "rows": 8},
        "whole prompts": {"rate": 5, "step_tokens": 0},
    }
    return simulator().predict(**LOAD, **asked[request.param])


def test_no_more_rows_than_there_are_and_the_cache_is_never_over(run):
    timeline = run.timeline
    assert timeline["running"].max() <= run.settings.rows
    assert timeline["rows"].max() <= run.settings.rows
    assert timeline["reserved_tokens"].max() <= run.settings.cache_tokens
    assert timeline["reserved_tokens"].min() > 0


def test_every_token_is_computed_once(run):
    timeline, frame = run.timeline, run.frame
    assert (timeline["prompt_tokens"] * timeline["steps"]).sum() == frame["prompt_tokens"].sum()
    generated = (timeline["rows"] * timeline["steps"]).sum() + len(frame)  # each first token comes with its prompt
    assert generated == frame["output_tokens"].sum()


def test_requests_get_a_row_in_the_order_in_which_they_came(run):
    frame = run.frame
    assert (np.diff(frame["intended_s"] + frame["queue_ms"] / 1e3) >= -1e-9).all()
    assert np.all(np.diff(frame["first_token_s"]) >= 0)
    assert (frame["queue_ms"] >= 0).all()


def test_steps_follow_each_other_and_none_is_longer_than_its_work(run):
    timeline = run.timeline
    assert (timeline["start_s"].to_numpy()[1:] >= timeline["end_s"].to_numpy()[:-1] - 1e-9).all()
    most = run.settings.step_tokens or timeline["prompt_tokens"].max() + run.settings.rows
    assert (timeline["rows"] + timeline["prompt_tokens"]).max() <= most


def test_times_are_those_that_one_counts_by_hand():
    run = simulator(PLAIN).predict(arrivals=[0.0, 0.0, 0.025], prompt_tokens=8, output_tokens=[4, 2, 3], rows=2)
    # steps end at 10, 20, 30 … ms: both prompts are read in the first, the second request ends with the second step,
    # the third comes during the third step and enters after it, and the first ends with the fourth
    assert run.frame["first_token_s"].tolist() == pytest.approx([0.01, 0.01, 0.04])
    assert run.frame["end_s"].tolist() == pytest.approx([0.04, 0.02, 0.06])
    assert run.frame["itl_ms"].tolist() == pytest.approx([10, 10, 10])
    assert run.frame["queue_ms"].tolist() == pytest.approx([0, 0, 5])


def test_the_cost_of_a_step_is_that_of_its_parts():
    run = simulator().predict(arrivals=[0.0], prompt_tokens=100, output_tokens=3)
    read = COST.tokens_ms(100) + 0.5 + 0.002 * 5_050
    decode = 10 + 0.5 + 0.01 * 101
    assert run.frame["ttft_ms"].tolist() == pytest.approx([read])
    assert run.frame["itl_ms"].tolist() == pytest.approx([decode + 0.01 / 2])


def test_static_batches_are_as_good_at_equal_lengths_and_worse_at_spread_ones():
    equal = {"requests": 32, "prompt_tokens": 16, "output_tokens": 50}
    rates = [simulator().predict(**equal, policy=policy).output_tokens_per_s for policy in ("continuous", "static")]
    assert rates[0] == pytest.approx(rates[1])
    spread = equal | {"output_tokens": "exponential:50:400"}
    rates = [simulator().predict(**spread, policy=policy).output_tokens_per_s for policy in ("continuous", "static")]
    assert rates[0] > 1.2 * rates[1]


def test_nobody_joins_a_static_batch():
    run = simulator(PLAIN).predict(
        arrivals=[0.0, 0.001, 0.002], prompt_tokens=8, output_tokens=5, rows=2, policy="static"
    )
    assert run.frame["first_token_s"].tolist() == pytest.approx([0.01, 0.06, 0.06])
    assert run.bottleneck.startswith("rows")


def test_cut_prompts_bound_how_long_the_others_wait():
    load = {
        "arrivals": [0.0, 0.0, 0.0, 0.2],
        "prompt_tokens": [8, 8, 8, 1_000],
        "output_tokens": [100, 100, 100, 4],
    }
    whole, cut = (simulator().predict(**load, step_tokens=tokens) for tokens in (0, 64))
    most = COST.tokens_ms(64) + 4 * 0.5 + 0.002 * 64 * 1_000 + 0.01 * 4 * 120
    assert cut.longest_step_ms <= most
    assert whole.longest_step_ms > 5 * cut.longest_step_ms
    assert cut.frame["ttft_ms"].iloc[3] > whole.frame["ttft_ms"].iloc[3]


def test_whole_blocks_of_a_shared_prefix_are_read_once():
    load = {"arrivals": [0.0, 0.5, 1.0], "prompt_tokens": [100, 100, 33], "output_tokens": 2}
    read = simulator().predict(**load, shared_prefix_tokens=70).timeline["prompt_tokens"]
    assert read[read > 0].tolist() == [100, 100 - 64, 1]
    assert simulator().predict(**load).timeline["prompt_tokens"].sum() == 233


def test_the_bottleneck_is_what_requests_wait_for():
    busy = {"rate": 20, "requests": 200, "prompt_tokens": 16, "output_tokens": 48}
    assert simulator().predict(**busy, rows=2).bottleneck.startswith("rows")
    assert simulator().predict(**busy, rows=32, cache_tokens=256).bottleneck.startswith("the cache")
    assert simulator().predict(**busy | {"rate": 0.5}).bottleneck.startswith("the load")
    assert "The limit is rows" in simulator().predict(**busy, rows=2).headline


def test_goodput_counts_what_keeps_both_targets():
    run = simulator().predict(rate=20, ttft_ms=2_000, itl_ms=40, **LOAD)
    frame = run.frame
    kept = (frame["ttft_ms"] <= 2_000) & ~(frame["itl_ms"] > 40)
    assert 0 < kept.sum() < len(frame)
    assert run.goodput == pytest.approx(kept.sum() / frame["intended_s"].max())
    assert "keep TTFT ≤ 2,000 ms and ITL ≤ 40 ms" in run.headline


@pytest.mark.slow
def test_ten_thousand_requests_take_a_few_turns_each_not_one_a_token():
    run = simulator().predict(rate=5, requests=10_000, prompt_tokens=64, output_tokens="exponential:64:400")
    assert run.frame["output_tokens"].sum() > 500_000
    assert len(run.stretches) < 6 * 10_000


def test_the_same_seed_is_the_same_load_under_every_setting():
    one, other = (simulator().predict(rate=4, seed=3, rows=rows, **LOAD) for rows in (2, 4))
    columns = ["intended_s", "prompt_tokens", "output_tokens"]
    assert one.frame[columns].equals(other.frame[columns])
    assert not one.frame[columns].equals(simulator().predict(rate=4, seed=4, **LOAD).frame[columns])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rate": 0}, "rate above zero"),
        ({"arrivals": []}, "needs requests"),
        ({"rows": 0}, "no meaning"),
        ({"step_tokens": 2}, "no meaning"),
        ({"prompt_tokens": 2_048}, "cache_tokens is 2048"),
        ({"prompt_tokens": 9_000, "cache_tokens": 20_000}, "context is 8192"),
    ],
)
def test_what_has_no_meaning_is_refused(asked, words):
    with pytest.raises(AccelError, match=words):
        simulator().predict(**{"rate": 1} | asked)


def test_the_fit_finds_the_costs_again_with_the_break_at_two_rows():
    rng = np.random.default_rng(0)
    steps = [Step(rows, 0, 0, rows * context, 0) for rows in (1, 2, 4, 8, 16) for context in (10, 200, 900)]
    steps += [Step(rows, tokens, 1, rows * 50, tokens * (tokens + before)) for rows in (0, 3) for tokens in (8, 60, 120)
              for before in (0, 500)]  # fmt: skip
    true = [COST.ms(step) for step in steps]
    found = fit_step_cost(steps * 5, np.array(true * 5) * rng.normal(1, 0.02, 5 * len(steps)))
    off = [found.ms(step) / COST.ms(step) - 1 for step in steps]
    assert np.abs(off).max() < 0.05
    one, two, four = (found.ms(Step(rows, 0, 0, 0, 0)) for rows in (1, 2, 4))
    assert two - one > 1.5 * (four - two) / 2  # the second row costs more than the third and the fourth


def test_a_few_disturbed_steps_do_not_move_the_fit():
    steps = [Step(rows, 0, 0, rows * 50, 0) for rows in (1, 2, 4, 8)] * 20
    ms = np.array([COST.ms(step) for step in steps])
    ms[::10] *= 6
    found = fit_step_cost(steps, ms)
    assert [found.ms(step) for step in steps[:4]] == pytest.approx([COST.ms(step) for step in steps[:4]], rel=0.03)


def test_more_work_never_takes_less_time():
    rng = np.random.default_rng(1)
    steps = [Step(rows, 0, 0, 40 * rows, 0) for rows in range(1, 17)]
    found = fit_step_cost(steps, rng.uniform(10, 20, 16))
    assert all(b >= a for a, b in itertools.pairwise(found.tokens_ms(range(1, 100))))


def test_a_table_of_the_prediction_and_what_it_says():
    run = simulator().predict(rate=4, **LOAD)
    assert "time to first token" in repr(run)
    assert "TTFT p95" in run.headline
    assert "of 4 rows" in run.explanation
    assert "2 rows" not in simulator().headline


def test_lengths_are_given_in_four_ways():
    rng = np.random.default_rng(0)
    assert draw(5, 3, rng).tolist() == [5, 5, 5]
    assert draw([1, 2], 3, rng).tolist() == [1, 2, 1]
    assert set(draw((2, 4), 200, rng)) == {2, 3, 4}
    assert 14 < draw("exponential:16", 5_000, rng).mean() < 18
    with pytest.raises(AccelError, match="exponential"):
        draw("normal:3", 1, rng)
