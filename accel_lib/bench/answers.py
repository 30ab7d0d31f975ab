"""How many generated answers are right, by what the model was given: the same questions, answered in several ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import UNCHANGED, capital
from accel_lib.measurement import Result, to_frame
from accel_lib.stats import mean_difference, wilson
from accel_lib.texts.questions import ShortAnswer


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AnswerComparison(Result):
    """Ways to answer the same questions: ``name``, ``requests``, ``right`` with ``_low`` and ``_high`` in `frame`.

    `right` holds, by way, whether each question's answer was right, bool ``[questions]``.
    """

    right: Mapping[str, NDArray[np.bool_]]

    @property
    def headline(self) -> str:
        """How the last way differs from the first."""
        return self.against([*self.right][-1], next(iter(self.right)))

    def against(self, way: str, other: str) -> str:
        """How the right answers of one way differ from another's, with the interval of a paired bootstrap."""
        shares = [f"{100 * float(self.right[name].mean()):.1f}%" for name in (other, way)]
        pairs = (self.right[name].astype(np.float64) for name in (way, other))
        gain, low, high = (100 * part for part in mean_difference(*pairs))
        seen = f"{gain:+.1f} points (95% interval {low:+.1f} to {high:+.1f}) on {len(self.right[way])} questions"
        if low <= 0 <= high:
            return f"{capital(UNCHANGED)} between {other}, {shares[0]} right, and {way}, {shares[1]}: {seen}"
        word = "more" if gain > 0 else "fewer"
        return f"{capital(way)} gives {word} right answers than {other}, {shares[1]} instead of {shares[0]}: {seen}"


def compare_answers(questions: Sequence[ShortAnswer], answers: Mapping[str, Sequence[str]]) -> AnswerComparison:
    """Judge answers to the same questions by the words that a right one holds.

    Parameters
    ----------
    questions
        Those of `accel_lib.texts.load_short_answers` that have an answer.
    answers
        By the name of the way in which they were made, two ways or more: one answer a question.

    Raises
    ------
    AccelError
        There is one way only, a way has not one answer a question, or a question has no words.
    """
    if len(answers) < 2 or not all(each.words for each in questions):
        fix = "pass two ways or more, and questions with words"
        raise AccelError("Answers are judged by words, and compared.", seen=f"{len(answers)} ways", fix=fix)
    if wrong := [name for name, said in answers.items() if len(said) != len(questions)]:
        seen = f"{len(answers[wrong[0]])} of {wrong[0]} for {len(questions)} questions"
        raise AccelError("Each question needs its answer.", seen=seen, fix="pass them in the order of the questions")
    right = {
        name: np.array([each.accepts(answer) for each, answer in zip(questions, said, strict=True)])
        for name, said in answers.items()
    }
    return AnswerComparison(frame=to_frame([_row(name, found) for name, found in right.items()]), right=right)


def _row(name: str, right: NDArray[np.bool_]) -> dict[str, object]:
    low, high = wilson(int(right.sum()), len(right))
    return {"name": name, "requests": len(right), "right": float(right.mean()), "right_low": low, "right_high": high}
