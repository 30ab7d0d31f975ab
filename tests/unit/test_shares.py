"""Two shares compared: the interval is where it should be, and looking again and again does not fool it."""

from __future__ import annotations

import numpy as np
import pytest

from accel_lib.errors import AccelError
from accel_lib.load.version_trial import narrowing
from accel_lib.stats import compare_shares, requests_needed


def draw(random, share, n):
    return random.random(n) < share


def test_the_interval_is_newcombes():
    found = compare_shares([True] * 48 + [False] * 32, [True] * 56 + [False] * 14)  # his example (a), the other way
    assert (round(-found.high, 4), round(-found.low, 4)) == (-0.3339, -0.0524)
    assert found.difference == pytest.approx(0.2)


def test_it_holds_as_often_as_it_says_and_so_does_the_one_for_all_looks():
    random = np.random.default_rng(0)
    once = anytime = 0
    for _ in range(600):
        a, b = draw(random, 0.9, 600), draw(random, 0.92, 600)
        found = compare_shares(a, b)
        once += found.low <= 0.02 <= found.high
        anytime += found.anytime_low <= 0.02 <= found.anytime_high
    assert 0.92 < once / 600 < 0.98
    assert anytime / 600 > 0.99


def test_peeking_fools_the_interval_for_one_look_and_not_the_one_for_all():
    random = np.random.default_rng(1)
    fooled = {"low": 0, "anytime_low": 0}
    for _ in range(300):
        a, b = draw(random, 0.85, 2_000), draw(random, 0.85, 2_000)
        looks = [compare_shares(a[:n], b[:n]) for n in range(40, 2_001, 40)]
        fooled["low"] += any(look.low > 0 or look.high < 0 for look in looks)
        fooled["anytime_low"] += any(look.significant for look in looks)
    assert fooled["low"] / 300 > 0.2
    assert fooled["anytime_low"] / 300 <= 0.05


def test_the_sentence_names_both_versions_and_which_has_more():
    sure, unsure = (
        compare_shares([True] * 50 + [False] * 50, [True] * 95 + [False] * 5),
        compare_shares([True], [False]),
    )
    assert sure.sentence("1", "2", "right answers").startswith("2 has more right answers than 1: ")
    assert unsure.sentence("1", "2", "right answers").startswith("No significant difference between 1 and 2: ")


def test_versions_that_never_differ_are_not_significant():
    assert not compare_shares([True] * 50, [True] * 50).significant


def test_a_gain_of_two_points_takes_thousands_of_requests_and_they_show_it_as_often_as_was_asked():
    needed = requests_needed(0.90, 0.02)
    assert needed == 6422
    random = np.random.default_rng(3)
    seen = 0
    for _ in range(400):
        found = compare_shares(draw(random, 0.90, needed // 2), draw(random, 0.92, needed // 2))
        seen += found.low > 0
    assert 0.74 < seen / 400 < 0.86


@pytest.mark.parametrize(("share", "gain"), [(0, 0.1), (0.9, 0.1), (0.5, 0), (1.2, 0.1)])
def test_a_gain_that_cannot_be_is_refused(share, gain):
    with pytest.raises(AccelError, match="No sample shows"):
        requests_needed(share, gain)


def test_empty_samples_are_refused():
    with pytest.raises(AccelError, match="needs trials"):
        compare_shares([], [True])


def test_the_interval_narrows_as_requests_come_in():
    random = np.random.default_rng(4)
    versions = random.choice(["1", "2"], 3_000)
    frame = narrowing(versions, draw(random, 0.9, 3_000), a="1", b="2")
    width = (frame["anytime_high"] - frame["anytime_low"]).to_numpy()
    assert frame["requests"].iloc[-1] == 3_000
    assert (frame["low"] <= frame["difference"]).all()
    assert width[-1] < width[0] / 5
