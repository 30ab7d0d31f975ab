"""Quality classes: how close to its reference a candidate must be, so that only like is compared with like in speed."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import percent
from accel_lib.scores import Activation, logit_errors, same_answers
from accel_lib.stats.intervals import mean_interval, wilson
from accel_lib.stats.similarity import cosine, kept_neighbours

QualityClass = Literal["exact", "near", "small"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a quality class asks for.

    Parameters
    ----------
    cosine_min, cosine_mean
        Least allowed cosine of a text's vector to the reference's, at worst and on average.
    kept
        Least share of each text's ten nearest neighbours that stay; of a classifier, of texts that keep their label.
    logits
        Most that a classifier's logits may differ, typically, in shares of their spread (`accel_lib.scores`).
    """

    cosine_min: float
    cosine_mean: float
    kept: float
    logits: float


QUALITY_CLASSES: dict[QualityClass, Limits] = {
    "exact": Limits(cosine_min=0.9999, cosine_mean=0.9999, kept=0.999, logits=0.005),
    "near": Limits(cosine_min=0.999, cosine_mean=0.999, kept=0.99, logits=0.05),
    "small": Limits(cosine_min=-1.0, cosine_mean=0.995, kept=0.93, logits=0.35),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How close a candidate is to its reference, and the class that follows.

    Parameters
    ----------
    cosine_min, cosine_mean
        Cosine of vectors to the reference's; NaN for classifiers.
    kept, kept_low, kept_high
        Share of the ten nearest neighbours (for classifiers: of labels) that stay, with its 95% interval.
    texts
        How many texts these were measured on.
    logits
        For classifiers: how far logits typically are from the reference's, in shares of their spread; else NaN.
    accuracy_change, accuracy_low, accuracy_high
        Correct answers on labelled texts, candidate less reference, as a share, with the 95% interval of the paired
        difference; NaN where no labels were given.
    """

    cosine_min: float = math.nan
    cosine_mean: float = math.nan
    kept: float
    kept_low: float
    kept_high: float
    texts: int
    logits: float = math.nan
    accuracy_change: float = math.nan
    accuracy_low: float = math.nan
    accuracy_high: float = math.nan

    @property
    def quality_class(self) -> QualityClass | None:
        """The strictest class that it is in; None where it is in none, and then its speed is not compared."""
        return next((name for name in QUALITY_CLASSES if self.reaches(name)), None)

    def reaches(self, wanted: QualityClass) -> bool:
        """Whether it is in a class, or in a stricter one; an accuracy that is certainly lower is in none."""
        limits = QUALITY_CLASSES[wanted]
        far = (
            self.kept < limits.kept
            or self.cosine_min < limits.cosine_min
            or self.cosine_mean < limits.cosine_mean
            or self.logits > limits.logits
            or self.accuracy_high < 0
        )
        return not (far or math.isnan(self.kept))

    def __str__(self) -> str:
        what = "ten nearest kept" if math.isnan(self.logits) else "labels kept"
        words = [f"{100 * self.kept:.1f}% of {what} ({100 * self.kept_low:.1f}–{100 * self.kept_high:.1f}%)"]
        if math.isnan(self.logits):
            words = [f"cosine {self.cosine_mean:.5f}, at least {self.cosine_min:.5f}", *words]
        else:
            words.append(f"logits off by {percent(self.logits)} of their spread")
        if not math.isnan(self.accuracy_change):
            ends = f"{100 * self.accuracy_low:+.1f} to {100 * self.accuracy_high:+.1f}"
            words.append(f"accuracy {100 * self.accuracy_change:+.1f} points ({ends})")
        return f"{self.quality_class or 'no class'}: {', '.join(words)}; {self.texts:,} texts"


def measure_quality(
    seen: NDArray[np.float32],
    reference: NDArray[np.float32],
    *,
    correct: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    activation: Activation | None = None,
) -> Quality:
    """Compare a candidate's outputs with the reference's on the same texts.

    Parameters
    ----------
    seen, reference
        Vectors or logits, float32 ``[n, dimension]``; at least 12 texts, better 1,000 and more.
    correct
        On further, labelled texts: whether the candidate's and the reference's answers are right, bool ``[m]`` each.
    activation
        Of a classifier's logits (`accel_lib.scores`); None compares vectors.

    Raises
    ------
    AccelError
        The shapes differ, or there are too few texts.
    """
    if seen.shape != reference.shape or len(seen) < 12:
        raise AccelError(
            "Quality is measured on 12 texts or more, with outputs of one shape.",
            seen=f"{seen.shape} and {reference.shape}",
            fix="pass the outputs of both for the same texts, such as load_texts('mixed', limit=1024)",
        )
    accuracy = _accuracy(*correct) if correct else {}
    if activation is not None:
        same = same_answers(seen, reference, activation)
        kept, (low, high) = float(same.mean()), wilson(int(same.sum()), len(same))
        off = logit_errors(seen, reference).typical
        return Quality(kept=kept, kept_low=low, kept_high=high, texts=len(seen), logits=off, **accuracy)
    near, shares = cosine(seen, reference), kept_neighbours(seen, reference)
    low, high = mean_interval(shares)
    return Quality(
        cosine_min=float(near.min()),
        cosine_mean=float(near.mean()),
        kept=float(shares.mean()),
        kept_low=max(0.0, low),
        kept_high=min(1.0, high),
        texts=len(seen),
        **accuracy,
    )


def _accuracy(candidate: NDArray[np.bool_], reference: NDArray[np.bool_]) -> dict[str, float]:
    """The paired difference with its interval: texts that both get right, or wrong, say nothing."""
    change = candidate.astype(float) - reference.astype(float)
    low, high = mean_interval(change)
    return {"accuracy_change": float(change.mean()), "accuracy_low": low, "accuracy_high": high}
