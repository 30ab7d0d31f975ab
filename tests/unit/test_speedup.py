"""What launches cost: the recording that ships is whole and labelled, and a machine with a GPU measures for itself."""

import numpy as np
import pytest

from accel_lib.bench.speedup import BATCH_SIZES, TOKENS, recorded_engines, recorded_speedup, speedup_over_eager
from accel_lib.machine import inspect_machine

HAS_GPU = bool(inspect_machine().gpus)


@pytest.fixture(scope="module")
def recorded():
    return recorded_speedup()


def test_the_recording_has_every_size_once(recorded):
    sizes = recorded.frame[["batch_size", "tokens"]].to_numpy().tolist()
    assert sorted(sizes) == sorted([batch, tokens] for batch in BATCH_SIZES for tokens in TOKENS)


def test_the_recording_says_where_and_when_it_was_made(recorded):
    card, _, rest = recorded.frame.attrs["recorded"].partition(", ")
    assert card.startswith("NVIDIA")
    assert np.datetime64(rest[:10]) >= np.datetime64("2026-11-01")
    assert "torch" in rest
    assert repr(recorded).endswith(f"recorded on {recorded.frame.attrs['recorded']}")


def test_the_recorded_ratios_are_those_of_the_recorded_times(recorded):
    frame = recorded.frame
    assert frame["speedup"].to_numpy() == pytest.approx(frame["baseline_ms"] / frame["candidate_ms"], rel=0.1)
    assert frame["speedup"].between(frame["speedup_low"], frame["speedup_high"]).all()


def test_the_recording_is_told_apart_from_a_measurement_by_its_figure(recorded):
    from accel_lib.show import plots

    assert plots.floor(recorded.frame).figure.get_supxlabel().startswith("recorded on NVIDIA")


def test_recorded_engines_name_their_card_and_a_tensorrt_among_them():
    table = recorded_engines()
    assert table.attrs["recorded"].startswith("NVIDIA H200, 2026-11")
    assert [name for name in table.index if name.startswith("TensorRT")]
    assert table.columns.tolist() == [f"{size} tokens" for size in ("1 × 16", "32 × 128", "256 × 128")]
    assert (table.fillna(1) > 0).all(axis=None)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_the_recording_is_shown_and_said_to_be_one(tiny_model, capsys):
    shown = speedup_over_eager(tiny_model)
    assert shown.frame.attrs["recorded"] in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_a_gpu_is_measured_up_to_the_longest_sequence_of_the_model(tiny_model):
    frame = speedup_over_eager(tiny_model, batch_sizes=(1, 4), tokens=(8, 16, 1024), seconds=1).frame
    assert frame[["batch_size", "tokens"]].to_numpy().tolist() == [[1, 8], [1, 16], [4, 8], [4, 16]]
    assert set(frame["baseline"]) == {"torch fp16"}
    assert "recorded" not in frame.attrs
