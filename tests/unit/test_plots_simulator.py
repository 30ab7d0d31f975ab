"""The simulator's figures say what their data say."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from accel_lib.show import plots
from accel_lib.simulation.curve import Curve, latency_curve
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


def test_the_name_of_the_measured_dots_covers_neither_the_band_nor_a_line():
    loads = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0]
    p95, p50 = [20, 27, 38, 46, 58, 79, 100, 125, 190, 460], [11, 18, 23, 27, 33, 44, 53, 68, 97, 178]
    simulated = pd.DataFrame({"kind": "simulated", "share": loads, "p95_ms": p95, "p50_ms": p50})
    dots = pd.DataFrame({"kind": "measured", "share": [0.3, 0.6, 0.8], "p95_ms": [23.0, 37.0, 108.0]})
    dots["p95_ms_low"], dots["p95_ms_high"] = dots["p95_ms"] * 0.95, dots["p95_ms"] * 1.05
    ax = plots.curve(Curve(frame=pd.concat([simulated, dots], ignore_index=True), capacity=200.0), 40, factor=1.25)
    ax.figure.draw_without_rendering()
    (name,) = [text.get_window_extent() for text in ax.texts if text.get_text() == "p95, measured"]
    band = ax.collections[0]
    drawn = [(band, band.get_paths()[0], True), *((line, line.get_path(), False) for line in ax.lines[:2])]
    for part, path, filled in drawn:
        assert not part.get_transform().transform_path(path).intersects_bbox(name, filled)
