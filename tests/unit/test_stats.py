"""The intervals cover what they claim, and no difference is seen where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accel_lib.errors import AccelError
from accel_lib.stats import compare_medians, median_interval, percentile, percentile_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_stays_between_0_and_1() -> None:
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 1)[0] == 0.0


def test_more_confidence_is_a_wider_interval() -> None:
    narrow, wide = wilson(50, 100, 0.8), wilson(50, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_a_share_of_nothing_is_refused(successes: int, n: int) -> None:
    with pytest.raises(AccelError, match=f"{successes} successes of {n}"):
        wilson(successes, n)


def test_a_percentile_is_what_numpy_says_in_any_order() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(samples, 50) == 3.0
    assert percentile(samples, 95) == np.percentile(samples, 95)


@pytest.mark.parametrize(("n", "ranks"), [(6, (1, 6)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33))])
def test_the_median_interval_has_the_ranks_of_the_sign_test_tables(n: int, ranks: tuple[int, int]) -> None:
    assert median_interval(np.arange(1, n + 1)) == ranks


def test_a_bound_that_so_few_samples_cannot_give_is_nan() -> None:
    assert all(math.isnan(bound) for bound in median_interval([1.0, 2.0, 3.0, 4.0, 5.0]))
    low, high = percentile_interval(np.arange(367.0), 99)
    assert low < 364
    assert math.isnan(high)
    assert percentile_interval(np.arange(368.0), 99)[1] == 367


@pytest.mark.parametrize(("q", "n"), [(50, 15), (90, 80), (95, 200), (99, 900)])
def test_percentile_intervals_cover_the_true_value_as_often_as_they_say(q: float, n: int) -> None:
    random = np.random.default_rng(1)
    truth = -math.log(1 - q / 100)  # of the exponential distribution
    intervals = [percentile_interval(random.exponential(size=n), q) for _ in range(1_000)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.94 <= covered <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(5, 5), (6, 9), (12, 12), (100, 60)])
def test_the_interval_of_a_ratio_covers_the_true_ratio_as_often_as_it_says(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    verdicts = [
        compare_medians(2 * random.lognormal(0, 0.2, sizes[0]), random.lognormal(0, 0.2, sizes[1]), seed=i)
        for i in range(400)
    ]
    assert np.mean([verdict.low <= 2 <= verdict.high for verdict in verdicts]) >= 0.93


@pytest.mark.parametrize("n", [5, 6, 40])
def test_resampled_medians_are_those_of_drawn_resamples(n: int) -> None:
    a, b = np.random.default_rng(3).lognormal(size=(2, n))
    resamples = np.random.default_rng(4).integers(n, size=(2, 20_000, n))
    ratios = np.median(a[resamples[0]], axis=1) / np.median(b[resamples[1]], axis=1)
    verdict = compare_medians(a, b)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), rel=0.05)


def test_identical_data_has_no_significant_difference() -> None:
    samples = np.random.default_rng(5).gamma(3, size=30)
    verdict = compare_medians(samples, samples)
    assert verdict.ratio == 1
    assert not verdict.significant
    assert verdict.sentence("new", "old", "ms").startswith("No significant difference between new and old: new ")


def test_shifted_data_differs_and_the_sentence_knows_which_way_is_better() -> None:
    slow = np.random.default_rng(6).normal(20, 1, 25)
    verdict = compare_medians(slow, slow / 2)
    assert verdict.significant
    assert verdict.low < verdict.ratio == 2 < verdict.high
    assert verdict.sentence("fp32", "fp16", "ms", better="lower").startswith("fp16 is faster than fp32: fp32 ")
    assert verdict.sentence("fp16", "fp32", "texts/s").startswith("fp16 is better than fp32: fp16 ")
    assert "a ratio of 2.00 (95% interval 1." in verdict.sentence("fp16", "fp32", "texts/s")


def test_four_samples_a_side_are_too_few_to_tell() -> None:
    verdict = compare_medians([1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3])
    assert math.isnan(verdict.low)
    assert not verdict.significant
    assert verdict.sentence("a", "b", "ms").startswith("Too few samples to tell a from b")


def test_a_verdict_is_the_same_each_time() -> None:
    a, b = np.random.default_rng(7).lognormal(size=(2, 20))
    assert compare_medians(a, b) == compare_medians(a, b)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_samples_that_are_missing_or_not_finite_are_refused(samples: list[float]) -> None:
    with pytest.raises(AccelError, match="finite samples"):
        percentile(samples, 50)


def test_a_ratio_of_medians_needs_positive_samples() -> None:
    with pytest.raises(AccelError, match="positive"):
        compare_medians([1.0, 2.0], [0.0, 2.0])


@pytest.mark.parametrize("q", [0, 100, 101])
def test_only_percentiles_inside_have_an_interval(q: float) -> None:
    with pytest.raises(AccelError, match=f"q={q}"):
        percentile_interval([1.0, 2.0], q)
