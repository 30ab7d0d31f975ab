"""Two shares compared, such as correct predictions of two versions: the difference, its interval, and what it takes.

`Difference.low` and `.high` hold for one look at a planned end. Who looks again and again, and stops when there is a
difference, needs `anytime_low` and `anytime_high`: a confidence sequence, which holds for all looks together.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from accel_lib.errors import AccelError
from accel_lib.formatting import UNCHANGED, capital
from accel_lib.stats.intervals import wilson

_SHARPEST_AT = 1_000  # requests at which the interval for all looks is narrowest in relation to that for one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How the share of `b` differs from that of `a`, both from 0 to 1.

    Parameters
    ----------
    low, high
        Interval of the difference for one look, planned beforehand (fixed horizon).
    anytime_low, anytime_high
        Interval that holds for every look at a growing sample, all together (sequential).
    n
        Trials of both.
    """

    a: float
    b: float
    low: float
    high: float
    anytime_low: float
    anytime_high: float
    n: int
    confidence: float

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a

    @property
    def significant(self) -> bool:
        """Whether the sequential interval leaves out zero: it may be acted on at any look."""
        return self.anytime_low > 0 or self.anytime_high < 0

    def sentence(self, a_name: str, b_name: str, what: str) -> str:
        """The verdict in words; `what` names the share, such as ``"right answers"``."""
        seen = (
            f"{a_name} {self.a:.1%}, {b_name} {self.b:.1%} {what}, a difference of {100 * self.difference:+.1f} points "
            f"({self.confidence:.0%} interval {100 * self.anytime_low:+.1f} to {100 * self.anytime_high:+.1f}, "
            f"{self.n:,} requests)"
        )
        if not self.significant:
            return f"{capital(UNCHANGED)} between {a_name} and {b_name}: {seen}"
        more, less = (b_name, a_name) if self.difference > 0 else (a_name, b_name)
        return f"{more} has more {what} than {less}: {seen}"


def compare_shares(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> Difference:
    """Compare two independent samples of yes and no, such as the correct predictions of two versions.

    Sources: R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), method 10; I. Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence
    sequences", Annals of Statistics 52 (2024), for the interval that holds at any time.
    """
    ones = [int(np.count_nonzero(sample)) for sample in (a, b)]
    sizes = [int(np.size(sample)) for sample in (a, b)]
    p, q = (one / max(1, n) for one, n in zip(ones, sizes, strict=True))
    (p_low, p_high), (q_low, q_high) = (wilson(one, n, confidence) for one, n in zip(ones, sizes, strict=True))
    # Half a success and half a failure more: no share is so sure that its spread is zero.
    spreads = [(one + 0.5) / (n + 1) * (1 - (one + 0.5) / (n + 1)) / n for one, n in zip(ones, sizes, strict=True)]
    half = math.sqrt(sum(spreads)) * _anytime_quantile(sum(sizes), confidence)
    return Difference(
        a=p,
        b=q,
        low=q - p - math.hypot(q - q_low, p_high - p),
        high=q - p + math.hypot(q_high - q, p - p_low),
        anytime_low=max(-1.0, q - p - half),
        anytime_high=min(1.0, q - p + half),
        n=sum(sizes),
        confidence=confidence,
    )


def requests_needed(share: float, gain: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Requests, both versions together in equal parts, to see a gain in one look.

    `share` is the old version's, `gain` how much more the new one has, both from 0 to 1.

    >>> requests_needed(0.90, 0.02)
    6422
    """
    better = share + gain
    if not (0 < share < 1 and 0 < better < 1 and gain):
        fix = "pass shares between 0 and 1, and a gain that is not 0"
        raise AccelError("No sample shows that gain.", seen=f"{share} to {better}", fix=fix)
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    return 2 * math.ceil(z**2 * (share * (1 - share) + better * (1 - better)) / gain**2)


def _anytime_quantile(n: int, confidence: float) -> float:
    """Standard errors on each side that a growing sample leaves at no time with probability `confidence`."""
    alpha = 1 - confidence
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / _SHARPEST_AT
    return math.sqrt(2 * (n * rho2 + 1) / (n * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
