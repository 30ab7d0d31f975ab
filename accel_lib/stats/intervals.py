"""Percentiles, means and shares with confidence intervals, and the verdict "no significant difference"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError, require
from accel_lib.formatting import UNCHANGED, capital

Samples = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]

_RESAMPLES = 20_000
_FEWEST = 5  # samples a side, under which the bootstrap's interval is too narrow to decide by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the median of a compares with that of b: their ratio, and its interval; NaN where samples are too few."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    confidence: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1, that is: whether a and b differ."""
        return self.low > 1 or self.high < 1

    def sentence(self, a_name: str, b_name: str, unit: str, *, better: Literal["higher", "lower"] = "higher") -> str:
        """The verdict in words; `unit` is that of the samples, `better` says which of them are."""
        seen = f"{a_name} {_number(self.a)}, {b_name} {_number(self.b)} {unit}, a ratio of {self.ratio:.2f}"
        if math.isnan(self.low):
            return f"Too few samples to tell {a_name} from {b_name}: {seen}"
        seen += f" ({self.confidence:.0%} interval {self.low:.2f} to {self.high:.2f})"
        if not self.significant:
            return f"{capital(UNCHANGED)} between {a_name} and {b_name}: {seen}"
        first, second = (a_name, b_name) if (self.ratio > 1) == (better == "higher") else (b_name, a_name)
        return f"{first} is {'faster' if unit.startswith('ms') else 'better'} than {second}: {seen}"


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of n trials: Wilson's, which stays within 0 and 1 and holds for small samples.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> low, high = wilson(8, 10)
    >>> print(f"{low:.3f} to {high:.3f}")
    0.490 to 0.943
    """
    if n < 1 or not 0 <= successes <= n:
        fix = "pass n >= 1 trials and 0 <= successes <= n"
        raise AccelError("A share needs trials.", seen=f"{successes} successes of {n}", fix=fix)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile(samples: Samples, q: float) -> float:
    """The `q`-th percentile, `q` from 0 to 100, linear between neighbours as NumPy's."""
    return float(np.percentile(_sorted(samples), q))


def percentile_interval(samples: Samples, q: float, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the `q`-th percentile (0 < `q` < 100) from order statistics, whatever the distribution.

    How many of n samples fall below the true percentile is binomial; the bounds are the samples whose ranks leave at
    most half of 1 - `confidence` outside on each side. A bound that too few samples cannot give is NaN: at 95% the
    median needs 6 samples, the 99th percentile 368.

    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd ed. (1999), section 3.2.
    """
    ordered = _sorted(samples)
    if not 0 < q < 100:
        raise AccelError("Only percentiles between 0 and 100 have an interval.", seen=f"q={q}", fix="pass 0 < q < 100")
    n, outside = len(ordered), (1 - confidence) / 2
    below = np.cumsum(_binomial(n, q / 100))  # below[k]: probability that at most k samples are below the percentile
    low = int(np.searchsorted(below, outside, side="right"))  # rank, from 1; 0 where there is none
    high = int(np.searchsorted(below, 1 - outside, side="left")) + 1  # rank, from 1; n + 1 where there is none
    return (float(ordered[low - 1]) if low > 0 else math.nan, float(ordered[high - 1]) if high <= n else math.nan)


def median_interval(samples: Samples, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the median from order statistics; NaN under 6 samples at 95%. See `percentile_interval`."""
    return percentile_interval(samples, 50, confidence)


def mean_interval(samples: Samples, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of a few samples, from Student's t; NaN for one sample.

    >>> low, high = mean_interval([9.0, 10.0, 11.0])
    >>> print(f"{low:.2f} to {high:.2f}")
    7.52 to 12.48
    """
    values = _sorted(samples)
    if len(values) < 2:
        return math.nan, math.nan
    student = float(require("scipy.special", extra="models").stdtrit(len(values) - 1, (1 + confidence) / 2))
    mean, half = float(values.mean()), student * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def mean_difference(a: Samples, b: Samples, *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``a - b`` for samples in pairs, such as two systems on the same questions, and its bootstrap interval.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    >>> gain, low, high = mean_difference([1.0, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5])
    >>> print(f"{gain:.3f}, {low:.3f} to {high:.3f}")
    0.375, 0.125 to 0.500
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        seen, fix = f"{first.shape} and {second.shape}", "pass two lists of one length"
        raise AccelError("Samples in pairs come in two lists of one length.", seen=seen, fix=fix)
    off = first - second
    drawn = np.random.default_rng(seed).multinomial(len(off), np.full(len(off), 1 / len(off)), _RESAMPLES)
    low, high = np.quantile(drawn @ off / len(off), [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return float(off.mean()), low, high


def compare_medians(a: Samples, b: Samples, *, confidence: float = 0.95, seed: int = 0) -> Verdict:
    """Compare two independent sets of positive samples by the ratio of their medians, with a bootstrap interval.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    ordered = [_sorted(a), _sorted(b)]
    if min(values[0] for values in ordered) <= 0:
        fix = "compare durations or rates that are above zero"
        raise AccelError("A ratio of medians needs positive samples.", seen=min(v[0] for v in ordered), fix=fix)
    a_median, b_median = (float(np.median(values)) for values in ordered)
    low = high = math.nan
    if min(map(len, ordered)) >= _FEWEST:
        random = np.random.default_rng(seed)
        ratios = _resampled_medians(ordered[0], random) / _resampled_medians(ordered[1], random)
        low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Verdict(a=a_median, b=b_median, ratio=a_median / b_median, low=low, high=high, confidence=confidence)


def _resampled_medians(ordered: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Medians of bootstrap samples without drawing the samples, which takes the same time for any number of them.

    A resample's k-th smallest value is the data's at rank ceil(n U), where U, the k-th smallest of n uniform numbers,
    is Beta(k, n + 1 - k); the next one above it is U + (1 - U) Beta(1, n - k).
    """
    n = len(ordered)
    k = (n + 1) // 2
    lower = random.beta(k, n + 1 - k, _RESAMPLES)
    upper = lower if n % 2 else lower + (1 - lower) * random.beta(1, n - k, _RESAMPLES)
    ranks = np.clip(np.ceil(n * np.stack([lower, upper])), 1, n).astype(np.int64) - 1
    return np.asarray(ordered[ranks].mean(axis=0))


def _binomial(n: int, share: float) -> NDArray[np.float64]:
    """Probabilities of 0 to n successes in n trials; in NumPy, as the gateway, which asks for them, has no scipy."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    logs: NDArray[np.float64] = log_choose + k * math.log(share) + (n - k) * math.log1p(-share)
    return np.exp(logs)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sorted(samples: Samples) -> NDArray[np.float64]:
    values = np.sort(np.asarray(samples, dtype=np.float64).ravel())
    if not len(values) or not np.isfinite(values).all():
        fix = "measure again, and leave out what failed"
        raise AccelError("A statistic needs finite samples, at least one.", seen=f"{len(values)} samples", fix=fix)
    return values
