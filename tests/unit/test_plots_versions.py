"""Figures of experiments: their titles are computed, and are right for each way that a trial can end."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from accel_lib.load.version_trial import Trial, narrowing
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
        (
            0.9,
            0.6,
            r"Sure after \d+ requests: version 2 has \d+\.\d to \d+\.\d points fewer right .* version 1",
        ),
        (
            0.6,
            0.9,
            r"Sure after \d+ requests: version 2 has \d+\.\d to \d+\.\d points more right .* version 1",
        ),
    ],
    ids=["flat", "falling", "rising"],
)
def test_the_title_says_whether_and_when_a_difference_was_sure(first, second, title):
    ax = plots.narrowing(course(first, second))
    said = " ".join(ax.figure.get_suptitle().split())
    assert pd.Series([said]).str.match(title).all(), said
    assert ax.get_xlabel().startswith("requests")
    assert "points" in ax.get_ylabel()


def trial(first, second):
    random = np.random.default_rng(0)
    versions = random.choice(["1", "2"], 1_500)
    right = random.random(1_500) < np.where(versions == "1", first, second)
    answers = pd.DataFrame({"version": versions, "right": right, "ms": 1.0})
    return Trial(frame=pd.DataFrame(), answers=answers, a="1", b="2", lost=0)


def test_looks_at_which_one_would_have_stopped_are_counted():
    equal, worse = trial(0.9, 0.9), trial(0.9, 0.5)
    assert equal.peeking.endswith("the sequential one at 0")
    assert worse.peeking.startswith(f"Of {len(worse.course)} looks the fixed-horizon interval leaves out zero at ")
    once, always = (int(part) for part in re.findall(r" at (\d+)", worse.peeking))
    assert once >= always > 0
    assert worse.alarms == once - always


def test_the_title_names_the_price_of_small_gains():
    frame = pd.DataFrame([{"gain": gain, "requests": requests_needed(0.9, gain)} for gain in (0.01, 0.08)])
    ax = plots.needed(frame)
    assert " ".join(ax.figure.get_suptitle().split()) == (
        "A gain of 8 points shows after 270 requests, one of 1 after 26,986: 8 times smaller, 100 times as many"
    )
    assert ax.get_xscale() == "log"
