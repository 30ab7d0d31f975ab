"""Questions about the shipped passages, for training a reranker and for measuring what it gains.

Line n of ``questions.txt`` asks what line n of ``passages.txt`` answers, in other words than the answer's where it can.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from accel_lib.errors import TextError
from accel_lib.texts import corpora

_EVERY = 3  # one subject of three is held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions, the passages to search, and which passage answers each.

    Parameters
    ----------
    questions
        One text each.
    passages
        What is searched.
    answers
        Of each question, the index of its passage.
    name
        What tables call them.
    """

    questions: Sequence[str]
    passages: Sequence[str]
    answers: Sequence[int]
    name: str = "questions"

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.questions) or not self.questions:
            seen = f"{len(self.questions)} questions and {len(self.answers)} answers"
            raise TextError("Each question needs its answer.", seen=seen, fix="pass as many answers as questions")
        if wrong := [answer for answer in self.answers if not 0 <= answer < len(self.passages)]:
            fix = f"number the passages from 0 to {len(self.passages) - 1}"
            raise TextError("An answer is no passage.", seen=wrong[0], fix=fix)

    def __len__(self) -> int:
        return len(self.questions)


def load_questions(split: Literal["train", "test"] = "train") -> Questions:
    """The questions that ship with the package; no subject is in both splits.

    Parameters
    ----------
    split
        ``"train"``: 329 questions on 26 subjects, with the passages on these alone. ``"test"``: 165 questions on the
        other 13, with all 494 passages to search.

    Raises
    ------
    TextError
        There is no such split.
    """
    if split not in ("train", "test"):
        raise TextError("There is no such split.", seen=repr(split), fix='load_questions("train") or ("test")')
    subjects = zip(corpora.blocks("questions"), corpora.blocks("passages"), strict=True)
    questions: list[str] = []
    passages: list[str] = []
    answers: list[int] = []
    for number, (asked, told) in enumerate(subjects):
        chosen = (number % _EVERY == _EVERY - 1) == (split == "test")
        if chosen:
            questions += asked
            answers += range(len(passages), len(passages) + len(told))
        if chosen or split == "test":
            passages += told
    return Questions(questions=questions, passages=passages, answers=answers, name=f"questions-{split}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortAnswer:
    """A question and how to tell a right answer to it: one of some words is in it.

    Parameters
    ----------
    question
        The question, which holds none of the words.
    words
        Any of them, as a whole word in upper or lower case, makes an answer right; none where no passage answers.
    passage
        Index of the passage that answers, in ``load_texts("passages")``; None where none does.
    """

    question: str
    words: Sequence[str]
    passage: int | None

    def accepts(self, answer: str) -> bool:
        """Whether an answer holds one of the words. It may say something wrong beside it: this does not see that."""
        return any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in self.words)


def load_short_answers() -> list[ShortAnswer]:
    """Questions with the words of a right answer: 82 on the subjects of ``load_questions("test")``, and 24 without one.

    The 24 are in no passage; half of them are on a subject that the passages have.
    """
    return [
        ShortAnswer(
            question=row["question"],
            words=row["words"].split("|") if row["words"] else (),
            passage=int(row["passage"]) if row["passage"] else None,
        )
        for row in corpora.table("short-answers")
    ]
