"""Percentiles with honest intervals, and the verdict "no significant difference"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError

Samples = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]

_RESAMPLES = 20_000
NEAREST = 10  # neighbours that count
_FEWEST = 5  # samples a side, under which the bootstrap's interval is too narrow to decide by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the median of a compares with that of b: their ratio, and its interval from `low` to `high`.

    The interval is NaN where there are too few samples to give one.
    """

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
        """The verdict in words.

        Parameters
        ----------
        a_name, b_name
            What was compared.
        unit
            Of the samples, such as ``"ms"`` or ``"sentences/s"``.
        better
            Whether higher or lower samples are the better ones.
        """
        seen = f"{a_name} {_number(self.a)}, {b_name} {_number(self.b)} {unit}, a ratio of {self.ratio:.2f}"
        if math.isnan(self.low):
            return f"Too few samples to tell {a_name} from {b_name}: {seen}"
        seen += f" ({self.confidence:.0%} interval {self.low:.2f} to {self.high:.2f})"
        if not self.significant:
            return f"No significant difference between {a_name} and {b_name}: {seen}"
        first, second = (a_name, b_name) if (self.ratio > 1) == (better == "higher") else (b_name, a_name)
        return f"{first} is better than {second}: {seen}"


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share: Wilson's, which stays within 0 and 1 and holds for small samples.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Raises
    ------
    AccelError
        There are no trials, or more successes than trials.

    Examples
    --------
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
    """Interval of the `q`-th percentile from order statistics, whatever the distribution.

    How many of n samples fall below the true percentile is binomial; the bounds are the samples whose ranks leave at
    most half of 1 - `confidence` outside on each side. A bound that so few samples cannot give is NaN: at 95% the
    median needs 6 samples, the 99th percentile 368.

    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd ed. (1999), section 3.2.

    Returns
    -------
    tuple of float
        Low and high, in the unit of the samples.

    Raises
    ------
    AccelError
        There are no samples, one is not finite, or `q` is not between 0 and 100.
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

    Source: Student, "The probable error of a mean", Biometrika 6 (1908).

    Examples
    --------
    >>> low, high = mean_interval([9.0, 10.0, 11.0])
    >>> print(f"{low:.2f} to {high:.2f}")
    7.52 to 12.48
    """
    values = _sorted(samples)
    if len(values) < 2:
        return math.nan, math.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = _student((1 + confidence) / 2, len(values) - 1) * error
    return mean - half, mean + half


def compare_medians(a: Samples, b: Samples, *, confidence: float = 0.95, seed: int = 0) -> Verdict:
    """Compare two independent sets of positive samples by the ratio of their medians, with a bootstrap interval.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Raises
    ------
    AccelError
        A set is empty, or holds zero, a negative or a non-finite number.
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


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of `a` to the same row of `b`, both ``[n, dimension]``; 0 to a row of zeros."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: NDArray[np.float64] = (a * b).sum(axis=1, dtype=np.float64) / np.maximum(norms, 1e-12)
    return products


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share of each text's ten nearest neighbours that are the same in both, the text itself left out.

    Parameters
    ----------
    a, b
        Unit vectors of the same texts, float32 ``[n, dimension]``.

    Returns
    -------
    float
        NaN under 12 texts, among which ten neighbours say nothing.
    """
    if len(a) < NEAREST + 2:
        return float("nan")
    return float(kept(nearest(a), nearest(b)).mean())


def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ten nearest others of each, nearest first."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    order: NDArray[np.int64] = np.argsort(-similar, axis=1, kind="stable")[:, :NEAREST]
    return order


def kept(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each row of `a` that is in the same row of `b`."""
    return np.array([np.isin(x, y).mean() for x, y in zip(a, b, strict=True)])


def _resampled_medians(ordered: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Medians of bootstrap samples, without drawing the samples.

    A resample's k-th smallest value stands at rank ceil(n U) of the data, where U, the k-th smallest of n uniform
    numbers, is Beta(k, n + 1 - k); the next one above it is U + (1 - U) Beta(1, n - k).
    """
    n = len(ordered)
    k = (n + 1) // 2
    lower = random.beta(k, n + 1 - k, _RESAMPLES)
    upper = lower if n % 2 else lower + (1 - lower) * random.beta(1, n - k, _RESAMPLES)
    ranks = np.clip(np.ceil(n * np.stack([lower, upper])), 1, n).astype(np.int64) - 1
    return np.asarray(ordered[ranks].mean(axis=0))


def _binomial(n: int, share: float) -> NDArray[np.float64]:
    """Probabilities of 0 to n successes in n trials."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    logs: NDArray[np.float64] = log_choose + k * math.log(share) + (n - k) * math.log1p(-share)
    return np.exp(logs)


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t: the exact distribution, summed, is bisected.

    Source: M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _student_below(t: float, freedom: int) -> float:
    """Probability that Student's t is below a positive number."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for step in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    within = 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0)) if odd else sine * total
    return 0.5 + within / 2


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sorted(samples: Samples) -> NDArray[np.float64]:
    values = np.sort(np.asarray(samples, dtype=np.float64).ravel())
    if not len(values) or not np.isfinite(values).all():
        fix = "measure again, and leave out what failed"
        raise AccelError("A statistic needs finite samples, at least one.", seen=f"{len(values)} samples", fix=fix)
    return values
