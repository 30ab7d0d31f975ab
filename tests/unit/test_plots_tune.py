"""Figures of memory and of a step test: the finding is the title, and it turns where the data does."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.bench.memory import MemoryFit, MemoryModel
from accel_lib.show import plots
from accel_lib.tuning.actuators import Admission
from accel_lib.tuning.control import Decision
from accel_lib.tuning.controlled_load import ControlledRun
from accel_lib.tuning.step_response import StepTest


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    matplotlib.pyplot.close("all")  # type: ignore[attr-defined]


def title(ax):
    return " ".join(ax.figure.get_suptitle().replace("\N{NO-BREAK SPACE}", " ").split())


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


def run(within, *, shed=0.0, lost=0, log=()):
    frame = pd.DataFrame(
        {
            "window": range(6), "start_s": [5.0 * n for n in range(6)], "offered_per_s": [20, 80, 80, 80, 80, 20],
            "p95_ms": [10, 90, 40, 30, 30, 10], "within": within, "shed": shed, "goodput_per_s": 40.0,
            "lost": [lost, 0, 0, 0, 0, 0], "settled": [False, False, False, False, True, False],
            "met": [share >= 0.95 for share in [within] * 6], "actions": "",
        }
    )  # fmt: skip
    return ControlledRun(frame=frame, p95_ms=50, log=tuple(log))


def step_test(over_best, over_worst):
    log = [(1, Decision(action="batching", words="", actuator=Admission(), settings={"max_batch_size": 64})),
           (0, Decision(action="admission", words="", actuator=Admission(), settings={"limit": 4}))]  # fmt: skip
    frame = pd.DataFrame(
        {"seed": [0], "windows": [4], "met": [4], "lost": [0], "over_best": over_best, "over_worst": over_worst}
    )
    runs = {"controller": run(1.0, log=log), "best static": run(1.0), "worst static": run(0.5)}
    said = {"best static": "batches of up to 64", "worst static": "no batches"}
    return StepTest(frame=frame, runs=runs, settings=said)


def test_a_step_test_shows_the_controller_beside_the_static_settings():
    ax = plots.control(step_test(0.99, 3))
    assert title(ax) == (
        "Without knowing the load, the controller gives 99% of the best static setting's goodput, 3.0× the worst's"
    )
    assert "batches of up to 64" in words(ax)
    assert "target 50 ms" in words(ax)
    legend = " ".join(text.get_text() for text in ax.get_legend().get_texts())
    assert "best static: batches of up to 64" in legend
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "seconds (blue triangles: the controller sets another admission limit)",
        "p95 of each window, ms",
    )


def test_a_controller_passes_that_is_nearly_as_good_as_the_best_setting_and_better_than_the_worst():
    assert not step_test(0.6, 1.0).passed
    assert step_test(0.95, 2.0).passed


def test_a_run_says_how_many_settled_windows_met_the_target_and_what_was_shed_or_lost():
    assert run(1.0).headline.startswith("In 1 of 1 settled window 95% of all that came was answered within 50 ms")
    assert "10% were not admitted; 3 lost" in run(0.8, shed=0.1, lost=3).headline
    assert run(0.8).settled == (0, 1)


def test_memory_says_what_fits_and_how_far_the_check_was_off():
    model = MemoryModel(device="cpu", length=128, weights_bytes=10**8, fixed_bytes=2 * 10**8, bytes_a_token=10**5)
    frame = pd.DataFrame(
        {"batch_size": [8, 64], "tokens": [1_024, 8_192], "measured_mb": [302, 1_000], "predicted_mb": [302, 1_019],
         "role": ["fitted", "checked"]}
    )  # fmt: skip
    fit = MemoryFit(frame=frame, model=model, free_bytes=4 * 10**9)
    ax = plots.memory(fit)
    assert title(ax) == (
        "An instance needs 200 MB and 100 kB a token, 2% from what a larger batch needed; "
        "265 texts of 128 tokens are safe in the 4.0 GB that are free"
    )
    assert ax.get_ylabel() == "memory of one instance, MB"
