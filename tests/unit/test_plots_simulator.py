"""The simulator's figures say what their data say."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.show import plots
from accel_lib.simulation.curve import latency_curve
from accel_lib.simulation.simulator import simulate
from tests.unit.test_plots import title, words
from tests.unit.test_simulate import calibration


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_the_curve_shows_lines_dots_and_the_target():
    service = calibration(max_batch_size=1)
    measured = {0.5: simulate(service, rate=100, requests=500, seed=7)}
    curve = latency_curve(service, measured=measured, requests=2_000)
    ax = plots.curve(curve.frame, 40)
    assert title(ax) == curve.headline
    assert {"p95, simulated", "p50, simulated", "p95, measured", "target 40 ms"} <= set(words(ax))
    assert "latency, ms" in ax.get_ylabel()


def test_errors_are_shown_by_setting_beside_the_limits():
    frame = pd.DataFrame(
        {
            "workload": ["short", "mixed"],
            "setting": ["half", "clients"],
            "throughput_error": [0.02, -0.03],
            "p95_error": [0.1, -0.3],
            "others": 0.0,
        }
    )
    ax = plots.fidelity(frame, 0.05, 0.1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["short: half", "mixed: clients"]
    assert "medians of 2 settings" in title(ax)
    assert ax.get_xlim()[1] > 30
