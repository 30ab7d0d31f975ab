"""The simulator's figures say what their data say."""

from __future__ import annotations

import matplotlib
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
    ax = plots.curve(curve, 40)
    assert title(ax) == curve.headline
    assert {"p95, simulated", "p50, simulated", "p95, measured", "target 40 ms"} <= set(words(ax))
    assert "latency, ms" in ax.get_ylabel()
