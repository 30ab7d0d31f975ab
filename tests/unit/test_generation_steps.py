"""Steps of generation: what is measured on a real engine, and what made-up numbers are said to mean."""

import dataclasses

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.bench import GenerationSteps, machine_limits, time_steps
from accel_lib.bench.generation_steps import MachineLimits
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.errors import EngineError
from accel_lib.load import ModeComparison
from accel_lib.models import load_model
from accel_lib.show import plots
from tests.tiny import llama_folder

LIMITS = MachineLimits(device="cpu", precision="fp32", read_gb_per_s=20, gflops=200)


def steps(decode_ms, *, precision="fp32", weight_bytes=400e6, reading_ms=20.0, multiplying_ms=1.0):
    """Made-up measurements of 1, 2, 4 … rows, and two prompts."""
    rows = [2**power for power in range(len(decode_ms))]
    frame = pd.DataFrame({"kind": "decode", "rows": rows, "tokens": rows, "ms": decode_ms})
    prompts = pd.DataFrame({"kind": "prefill", "rows": 1, "tokens": [16, 1016], "ms": [40.0, 1040.0]})
    frame = pd.concat([frame, prompts], ignore_index=True)
    frame["tokens_per_s"] = 1e3 * frame["tokens"] / frame["ms"]
    frame["reading_ms"], frame["multiplying_ms"] = reading_ms, multiplying_ms * frame["tokens"]
    frame["weights"], frame["weight_bytes"] = 100_000_000, weight_bytes
    frame["precision"], frame["device"] = precision, "cpu"
    frame.attrs["machine"] = "made up"
    return GenerationSteps(frame=frame)


def title(ax):
    return " ".join(ax.figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model = load_model(llama_folder(folder / "tiny", tie_word_embeddings=False), task="generation")
    artifact = generation_to_openvino(model, output=folder / "openvino", progress=False)
    return model, artifact, time_steps(model, artifact, rows=(1, 2, 4), prompt_tokens=(4, 64), limits=LIMITS)


def test_each_number_of_rows_and_each_prompt_is_measured(measured):
    _, _, found = measured
    assert found.decode["rows"].tolist() == [1, 2, 4]
    assert found.prefill["tokens"].tolist() == [4, 64]
    assert (found.frame["ms"] > 0).all()
    assert found.decode["ms_low"].notna().all()


def test_limits_of_another_device_are_refused(measured):
    model, artifact, _ = measured
    with pytest.raises(EngineError, match="another device"):
        time_steps(model, artifact, limits=dataclasses.replace(LIMITS, device="cuda"))


def test_weights_that_are_only_looked_up_are_not_counted(measured):
    model, _, found = measured
    table = model.network.get_input_embeddings().weight
    assert found.frame["weights"].iloc[0] == sum(w.numel() for w in model.network.parameters()) - table.numel()


def test_the_limits_follow_from_bytes_and_from_arithmetic(measured):
    _, _, found = measured
    row = found.decode.iloc[-1]
    assert row["reading_ms"] == pytest.approx(1e3 * 4 * row["weights"] / 20e9)
    assert row["multiplying_ms"] == pytest.approx(1e3 * 2 * row["weights"] * 4 / 200e9)


@pytest.mark.slow
def test_a_machine_reads_and_multiplies():
    limits = machine_limits()
    assert limits.read_gb_per_s > 0
    assert limits.gflops > limits.read_gb_per_s / 4 * 2  # more with 256 columns than with one
    assert "GB/s" in str(limits)


@pytest.mark.parametrize(
    ("decode_ms", "rows"), [([10, 20, 40], 2.0), ([10, 10, 12, 17, 25], 11.0), ([10, 11, 12], None)]
)
def test_a_step_doubles_between_two_measurements_or_nowhere(decode_ms, rows):
    assert steps(decode_ms).doubling_rows == (rows if rows is None else pytest.approx(rows))
    said = "not yet twice as long" if rows is None else f"with {rows:.0f} rows a step is twice as long"
    assert said in steps(decode_ms).explanation


def test_the_headline_says_what_rows_cost_and_give():
    found = steps([25.0, 26.0, 30.0, 50.0])
    assert found.headline == ("A step of 8 rows takes 2.0× as long as one of 1, and gives 4.0× the tokens per second")
    assert "20 ms here, 80% of what a step of one row takes (25 ms)" in found.explanation
    assert found.first_token.endswith("1.0 ms for each token of a prompt, 25 ms for one that is generated alone")


def test_fewer_bytes_are_compared_at_both_ends():
    smaller = steps([10.0, 12.0, 40.0], precision="int8", weight_bytes=100e6)
    assert smaller.against(steps([40.0, 40.0, 40.0])) == (
        "INT8 on the CPU reads 25% of the bytes of FP32 on the CPU: a step of 1 row is 4.0× as fast, one of 4 rows 1.0×"
    )


def test_the_figures_say_what_was_measured():
    found = steps([25.0, 26.0, 30.0, 50.0])
    assert title(plots.step_times(found)) == found.headline
    other = steps([10.0, 12.0, 20.0, 45.0], precision="int8", weight_bytes=100e6)
    assert title(plots.step_times(found, other)) == other.against(found)
    assert title(plots.first_token(found)) == found.first_token
    assert title(plots.roofline(found)) == (
        "The two limits meet at 20 tokens: one row reaches 80% of its limit, a prompt of 1,016 tokens 98%"
    )


@pytest.mark.parametrize(
    ("speedups", "headline"),
    [
        ([1.0, 0.95, 1.04], "A tie: nothing differs from static batching by more than 10% in tokens per second"),
        ([1.0, 0.95, 2.1], "Tokens per second in units of static batching: dynamic 0.95× and continuous 2.1×"),
    ],
)
def test_ways_of_batching_that_hardly_differ_are_a_tie(speedups, headline):
    frame = pd.DataFrame({"setting": ["static", "dynamic", "continuous"], "speedup": speedups})
    assert ModeComparison(frame=frame, runs={}).headline == headline


def test_gains_are_shown_beside_their_predictions():
    frame = pd.DataFrame({"spread": ["equal", "any"], "measured": [1.02, 2.0], "predicted": [1.0, 2.2]})
    ax = plots.mode_gains(frame)
    assert title(ax) == "Continuous over static batching: 1.0× for equal, 2.0× for any (predicted 2.2×)"
    assert [text.get_text() for text in ax.texts] == ["1.0×, predicted 1.0×", "2.0×, predicted 2.2×"]


def test_a_precision_whose_arithmetic_was_not_measured_has_one_limit_in_the_roofline():
    found = steps([25.0, 26.0], multiplying_ms=np.nan)
    ax = plots.roofline(found)
    assert title(ax).startswith("One row reaches 80% of its limit")
    assert [line.get_label() for line in ax.lines] == ["limit: reading the weights"]
