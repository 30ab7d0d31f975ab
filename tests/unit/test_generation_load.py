"""Load on an engine in this process: every token is timed, and no request, prompt or length is lost on the way."""

from __future__ import annotations

import dataclasses
import itertools
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

import accel_lib
from accel_lib.convert.generation_files import generation_to_transformers
from accel_lib.errors import AccelError, RequestError
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.transformers import TransformersEngine
from accel_lib.load import GenerationLoadRun, generation_curve, generation_load_test
from accel_lib.load.gateway_streams import GatewayTarget
from accel_lib.load.lengths import draw
from accel_lib.load.prompts import CharacterSource, RandomSource, TextSource, make_prompts
from accel_lib.load.streams import text_source
from accel_lib.models import load_model
from accel_lib.show import plots
from tests.generation import run as run_alone
from tests.tiny import llama_folder, tiny_prompts

ROWS = 4
LAST_S = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(llama_folder(tmp_path_factory.mktemp("llama"), max_position_embeddings=4096)))


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    return generation_to_transformers(model, tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture(scope="module")
def engine(model):
    opened = Scheduler(TransformersEngine(model, rows=ROWS, cache_tokens=4096))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run(engine, artifact):
    """More at once than there are rows."""
    how = {"prompt_tokens": "16-40", "output_tokens": "exponential:6:20", "ttft_ms": 1e6, "itl_ms": 1e6}
    return generation_load_test(engine, arrivals=np.linspace(0, 0.2, 12), artifact=artifact, seed=3, **how)


def title(ax):
    return " ".join(ax.figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ").split())


def test_each_request_gets_the_tokens_that_were_drawn_for_it(run):
    assert not run.errors
    drawn = draw("exponential:6:20", 12, np.random.default_rng((3, 1)))
    assert run.frame["output_tokens"].tolist() == drawn.tolist()
    assert run.tokens.groupby("request")["tokens"].sum().tolist() == drawn.tolist()


def test_a_request_is_due_then_sent_then_gets_its_first_token_and_ends(run):
    frame = run.frame
    assert np.allclose(frame["intended_s"], np.linspace(0, 0.2, 12))
    for earlier, later in itertools.pairwise(["intended_s", "sent_s", "first_token_s", "end_s"]):
        assert (frame[earlier] <= frame[later]).all()
    assert np.allclose(frame["ttft_ms"], 1e3 * (frame["first_token_s"] - frame["intended_s"]))
    several = frame["output_tokens"] > 1
    assert np.allclose(
        frame.loc[several, "latency_ms"],
        frame.loc[several, "ttft_ms"] + frame.loc[several, "itl_ms"] * (frame.loc[several, "output_tokens"] - 1),
    )
    assert frame.loc[~several, "itl_ms"].isna().all()


def test_what_is_above_the_rows_waits_and_the_wait_is_in_the_first_token(engine):
    run = generation_load_test(engine, arrivals=[0.0] * 3 * ROWS, prompt_tokens=8, output_tokens=30)
    first = run.frame["first_token_s"].sort_values().to_numpy()
    earliest_end = run.frame["end_s"].min()
    assert (first[:ROWS] < earliest_end).all()
    assert (first[ROWS:] >= earliest_end).all()
    assert run.at_once == ROWS
    assert (run.frame["ttft_ms"] >= run.frame["first_token_s"] * 1e3 - 1e-6).all()


def test_a_closed_loop_never_has_more_in_flight_than_clients(engine):
    run = generation_load_test(engine, clients=3, requests=14, prompt_tokens=(4, 20), output_tokens=(2, 9))
    assert len(run.frame) == 14
    begun = [(at, 1) for at in run.frame["sent_s"]] + [(at, -1) for at in run.frame["end_s"]]
    level = list(itertools.accumulate(step for _, step in sorted(begun)))
    assert max(level) == 3
    assert run.clients == 3
    assert np.isnan(run.offered)


def test_a_closed_loop_of_some_seconds_waits_for_what_has_begun(engine):
    run = generation_load_test(engine, clients=2, seconds=0.5, prompt_tokens=8, output_tokens=40)
    assert not run.errors
    assert (run.frame["output_tokens"] == 40).all()
    assert run.frame["sent_s"].max() < 0.6 + run.frame["latency_ms"].max() / 1e3
    assert run.offered_s == 0.5


def test_two_hundred_streams_run_at_once(engine):
    run = generation_load_test(engine, arrivals=[0.0] * 200, prompt_tokens=4, output_tokens=3)
    assert run.frame["output_tokens"].tolist() == [3] * 200
    assert run.output_tokens_per_s == pytest.approx(600 / run.frame["end_s"].max())


def test_the_same_seed_gives_the_same_arrivals_and_lengths(engine):
    how = {"rate": 200, "requests": 5, "prompt_tokens": (4, 40), "output_tokens": "exponential:4", "warmup": 0}
    first, again, other = (generation_load_test(engine, seed=seed, **how).frame for seed in (1, 1, 2))
    columns = ["intended_s", "prompt_tokens", "output_tokens"]
    assert np.allclose(first[columns], again[columns])
    assert not np.allclose(first["intended_s"], other["intended_s"])


def test_an_engine_is_left_as_it_was_also_by_requests_whose_client_gave_up(engine):
    run = generation_load_test(
        engine, arrivals=[0.0, 0.0, 0.3], prompt_tokens=8, output_tokens=[3000, 3000, 1], timeout_s=0.2, warmup=0
    )
    assert run.errors == {"No answer came in time.": 2}
    assert run.frame["output_tokens"].iloc[0] > 0
    assert engine.idle
    assert run_alone(engine, {"a": (tiny_prompts(1)[0], accel_lib.generate.Sampling(max_tokens=2, temperature=0))})


def test_a_run_is_kept_whole(run, tmp_path):
    opened = GenerationLoadRun.open(run.save(tmp_path / "run.json"))
    pd.testing.assert_frame_equal(opened.frame, run.frame, check_exact=False)
    pd.testing.assert_frame_equal(opened.tokens, run.tokens)
    assert opened.headline == run.headline
    assert repr(opened) == repr(run)


def test_goodput_counts_what_keeps_both_targets_and_percentiles_leave_out_what_failed(run):
    assert run.goodput == pytest.approx(12 / run.offered_s)
    ttft = run.frame["ttft_ms"].to_numpy()
    strict = dataclasses.replace(run, ttft_ms=float(np.median(ttft)))
    assert int(strict.kept.sum()) == (ttft <= np.median(ttft)).sum()
    slow = dataclasses.replace(run, itl_ms=0.0)
    assert slow.kept.tolist() == (~(run.frame["itl_ms"] > 0)).tolist()  # two tokens may come at one moment
    frame = run.frame.copy()
    frame.loc[0, "error"] = "gone"
    broken = dataclasses.replace(run, frame=frame)
    assert broken.percentile("ttft_ms", 100) == ttft[1:].max()
    assert broken.goodput == pytest.approx(11 / run.offered_s)
    assert "1 × gone" in broken.headline


def test_a_late_generator_is_told_apart_from_a_slow_engine(run):
    frame = run.frame.assign(sent_s=run.frame["intended_s"] + 0.5)
    late = dataclasses.replace(run, frame=frame.assign(first_token_s=frame["sent_s"] + 0.001, ttft_ms=501.0))
    assert late.generator_bound
    assert "generator was the bottleneck" in late.headline
    assert late.naive_ttft_p95_ms == pytest.approx(1)
    assert late.percentile("ttft_ms", 95) == 501


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rate": 1, "clients": 2}, "closed loop or an open one"),
        ({"requests": 3, "seconds": 2}, "one end"),
        ({"clients": 0}, "requests and time"),
        ({"rate": float("nan")}, "requests and time"),
        ({"output_tokens": 0}, "numbers of tokens"),
        ({"prompt_tokens": 8, "shared_prefix_tokens": 8}, "no room"),
    ],
)
def test_a_load_without_meaning_is_refused_by_name(engine, asked, said):
    with pytest.raises(AccelError, match=said):
        generation_load_test(engine, **asked)


def test_what_cannot_be_asked_is_refused_by_name(engine):
    with pytest.raises(AccelError, match="Nothing that generates"):
        generation_load_test(object())
    with pytest.raises(RequestError, match="context"):
        generation_load_test(engine, clients=1, requests=2, prompt_tokens=8, output_tokens=10_000, warmup=0)
    with pytest.raises(RequestError, match="cannot be reached"):
        generation_load_test("http://127.0.0.1:9", clients=1, requests=1)


@pytest.mark.parametrize(
    ("lengths", "low", "high"),
    [(7, 7, 7), ("7", 7, 7), ((3, 9), 3, 9), ("3-9", 3, 9), ("exponential:20", 1, None), ("exponential:20:25", 1, 25)],
)
def test_lengths_are_drawn_from_what_is_asked(lengths, low, high):
    drawn = draw(lengths, 2000, np.random.default_rng(0))
    assert drawn.min() == low
    assert high is None or drawn.max() == high
    if lengths == "exponential:20":
        assert drawn.mean() == pytest.approx(20, rel=0.1)


def test_a_list_of_lengths_is_taken_in_turn():
    assert draw([5, 6], 5, np.random.default_rng(0)).tolist() == [5, 6, 5, 6, 5]
    assert draw(np.array([3, 1, 2]), 2, np.random.default_rng(0)).tolist() == [3, 1]


NO_LENGTHS: tuple[object, ...] = (0, -1, (3, 2), (0, 3), [], [2, 0], 2.5, "", "3-", "1-2-3", "x:3", "exponential")
NO_LENGTHS += ("exponential:0", "exponential:5:4", "exponential:nan", "exponential:inf")


@pytest.mark.parametrize("lengths", NO_LENGTHS)
def test_what_is_no_length_is_refused_by_name(lengths):
    with pytest.raises(AccelError, match="numbers of tokens"):
        draw(lengths, 3, np.random.default_rng(0))


def prompts(source, lengths, **how):
    options = {"shared_prefix_tokens": 0, "random": np.random.default_rng(0)} | how
    return make_prompts(source, np.array(lengths), **options)


def test_prompts_have_the_wanted_tokens_with_the_template_s(artifact):
    source = text_source(artifact)
    assert isinstance(source, TextSource)
    made = prompts(source, [5, 12, 40, 300])
    assert [len(prompt.token_ids) for prompt in made] == [max(5, source.overhead_tokens + 1), 12, 40, 300]


def test_prompts_share_no_more_than_they_are_asked_to():
    source = RandomSource(10_000, np.random.default_rng(5))
    for shared in (0, 20):
        made = [prompt.token_ids for prompt in prompts(source, [64] * 50, shared_prefix_tokens=shared)]
        assert len({ids[:shared] for ids in made}) == 1
        assert len({ids[shared : shared + 4] for ids in made}) == 50
    again = prompts(source, [64] * 50, random=np.random.default_rng(6))
    assert not {each.token_ids[:4] for each in again} & {ids[:4] for ids in made}


def test_a_prompt_for_an_unknown_tokenizer_is_cut_by_characters():
    source = CharacterSource(4.0, 10)
    short, long = prompts(source, [30, 110])
    assert len(short.text) == pytest.approx(80, abs=2)
    assert len(long.text) == pytest.approx(400, abs=2)


def chunk(content="", *, usage=None, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], "usage": usage}


def counted(tokens):
    return {"prompt_tokens": 9, "completion_tokens": tokens}


STREAMS = {
    "usage in every chunk": [
        chunk("", usage=counted(2)),
        chunk("a b", usage=counted(2)),
        chunk("c", usage=counted(3)),
        chunk(usage=counted(4), finish="length"),
        {"choices": [], "usage": counted(4)},
    ],
    "usage at the end": [
        chunk(""),
        chunk("a b"),
        chunk("c"),
        chunk(finish="length"),
        {"choices": [], "usage": counted(4)},
    ],
    "no usage": [chunk("a"), chunk("b"), chunk("c"), chunk("d"), chunk(finish="stop")],
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("size", [7, 10_000])
def test_server_sent_events_are_read_however_they_are_cut(stream, size):
    whole = (
        b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in stream) + b": c\n\ndata: [DONE]\n\n"
    )
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    got = GatewayTarget("http://x").read([(float(at), piece) for at, piece in enumerate(pieces)], "")
    assert sum(got.counts) == 4
    assert list(got.times_s) == sorted(got.times_s)
    assert got.end_s <= len(pieces)
    assert not got.error


def test_an_error_inside_a_stream_is_that_of_its_request():
    failed = b'data: {"error": {"message": "The engine failed."}}\n\ndata: [DONE]\n\n'
    content = b"data: " + json.dumps(chunk("a", usage=counted(1))).encode() + b"\n\n"
    got = GatewayTarget("http://x").read([(1.0, content), (2.0, failed)], "")
    assert got.error == "The engine failed."
    assert sum(got.counts) == 1


@pytest.mark.slow
def test_a_curve_goes_from_below_to_above_what_can_be_done(engine):
    how = {"prompt_tokens": 6, "output_tokens": 20, "ttft_ms": 1e6}
    curve = generation_curve(engine, shares=(0.5, 3.0), seconds=1, clients=2 * ROWS, **how)
    assert curve.frame["rate_per_s"].is_monotonic_increasing
    assert curve.frame["ttft_p95_ms"].iloc[1] > curve.frame["ttft_p95_ms"].iloc[0]
    assert "300% of capacity" in curve.headline
    assert title(plots.kept(curve)) == curve.headline
    assert "a" in title(plots.kept({"a": curve, "b": curve}))
    assert "time to first token" in title(plots.token_latency(curve))


def test_a_timeline_says_how_many_run_at_once_and_compares_runs(run):
    said = title(plots.streams(run))
    assert f"At most {run.at_once} of 12 requests" in said
    ax = plots.streams({"first": run, "second": run})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    failed = run.frame.assign(error="gone", first_token_s=np.nan)
    assert "12 fail" in title(plots.streams(dataclasses.replace(run, frame=failed)))
