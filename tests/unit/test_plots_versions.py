"""Figures of experiments: their titles are computed, and are right for each way that a trial can end."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from accel_lib.load.version_trial import narrowing
from accel_lib.show import plots
from accel_lib.stats import requests_needed


def course(first, second, n=1_500):
    random = np.random.default_rng(0)
    versions = random.choice(["1", "2"], n)
    right = random.random(n) < np.where(versions == "1", first, second)
    return narrowing(versions, right, a="1", b="2")


@pytest.mark.parametrize(
    ("first", "second", "title"),
    [
        (0.9, 0.9, r"After 1,500 requests the difference may still be anything from -\d"),
        (0.9, 0.6, r"From \d+ requests on it is sure: fewer right answers, by -\d"),
        (0.6, 0.9, r"From \d+ requests on it is sure: more right answers, by \+\d"),
    ],
    ids=["flat", "falling", "rising"],
)
def test_the_title_says_whether_and_when_a_difference_was_sure(first, second, title):
    ax = plots.narrowing(course(first, second))
    said = " ".join(ax.figure.get_suptitle().split())
    assert pd.Series([said]).str.match(title).all(), said
    assert ax.get_xlabel().startswith("requests")
    assert "points" in ax.get_ylabel()


def test_the_title_names_the_price_of_small_gains():
    frame = pd.DataFrame([{"gain": gain, "requests": requests_needed(0.9, gain)} for gain in (0.01, 0.08)])
    ax = plots.needed(frame)
    assert " ".join(ax.figure.get_suptitle().split()) == (
        "A gain of 8 points shows after 270 requests, one of 1 after 26,986: 8 times smaller, 100 times as many"
    )
    assert ax.get_xscale() == "log"
