"""Arrivals come at the rate that was asked for, in order, and the same ones for the same seed."""

import numpy as np
import pytest

from accel_lib.errors import AccelError
from accel_lib.load.arrivals import constant, poisson, steps


def test_constant_arrivals_are_evenly_spaced():
    assert np.diff(constant(50, 2)) == pytest.approx(0.02)
    assert len(constant(50, 2)) == 100


def test_poisson_arrivals_have_the_gaps_of_callers_who_know_nothing_of_each_other():
    gaps = np.diff(poisson(200, 100))
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


@pytest.mark.parametrize("times", [poisson(80, 5), steps([(50, 1), (5, 2)])], ids=["poisson", "steps"])
def test_arrivals_are_in_order_and_inside_the_run(times):
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 5


def test_steps_change_the_rate_where_they_say():
    times = steps([(100, 10), (400, 10)])
    assert (times < 10).sum() == pytest.approx(1_000, rel=0.1)
    assert (times >= 10).sum() == pytest.approx(4_000, rel=0.05)


def test_the_seed_decides():
    assert poisson(50, 2, seed=3).tolist() == poisson(50, 2, seed=3).tolist()
    assert poisson(50, 2, seed=3).tolist() != poisson(50, 2, seed=4).tolist()


@pytest.mark.parametrize("parts", [[(0, 1)], [(5, 0)], [(float("nan"), 1)], [(-1, 1)], [], [(1e-9, 1)]])
def test_no_rate_and_no_time_are_refused(parts):
    with pytest.raises(AccelError, match=r"above 0|higher rate"):
        steps(parts)
