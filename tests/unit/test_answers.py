"""Answers are judged by words that a right one holds; what passages give has an interval, and so has its figure."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot

from accel_lib.bench import compare_answers, compare_ranking
from accel_lib.errors import AccelError
from accel_lib.show import plots
from accel_lib.texts import Questions, ShortAnswer, load_questions, load_short_answers, load_texts

BEES = ShortAnswer(question="How do bees tell where flowers are?", words=("dance", "dancing"), passage=3)
ASKED = [BEES] * 20
RIGHT, WRONG = "By dancing.", "By the sun."


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    matplotlib.pyplot.close("all")


def title(ax):
    return " ".join(ax.figure.get_suptitle().split())


def test_a_labelled_question_holds_none_of_the_words_that_its_passage_holds():
    passages, held_out = load_texts("passages"), load_questions("test")
    for each in load_short_answers():
        if each.passage is None:
            assert not each.words
        else:
            assert each.accepts(passages[each.passage]), each
            assert not each.accepts(each.question), each
            assert each.passage in held_out.answers, each


def test_there_are_as_many_questions_with_and_without_an_answer_as_it_says():
    labelled = load_short_answers()
    assert [sum(each.passage is not None for each in labelled), sum(each.passage is None for each in labelled)] == [
        82,
        24,
    ]
    assert len({each.question for each in labelled}) == len(labelled)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("They DANCE on the comb", True), ("dancing.", True), ("Abundance", False), ("", False), ("by smell", False)],
)
def test_a_right_answer_holds_a_whole_word_in_any_case(answer, right):
    assert BEES.accepts(answer) == right


def test_the_difference_of_two_ways_is_judged_in_pairs():
    found = compare_answers(ASKED, {"no passage": [WRONG] * 20, "passages": [RIGHT] * 15 + [WRONG] * 5})
    assert found.headline.startswith(
        "Passages gives more right answers than no passage, 75.0% instead of 0.0%: +75.0 points"
    )
    assert found.against("no passage", "passages").startswith("No passage gives fewer right answers than passages, ")
    assert found.frame["right"].tolist() == [0.0, 0.75]
    assert (found.frame["right_low"] <= found.frame["right"]).all()
    same = compare_answers(ASKED, {"a": [RIGHT] * 20, "b": [RIGHT] * 19 + [WRONG]})
    assert same.headline.startswith("No significant difference between a, 100.0% right, and b, 95.0%: ")


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        (ASKED, {"one way": [RIGHT] * 20}, "compared"),
        ([ShortAnswer(question="Who?", words=(), passage=None)], {"a": ["x"], "b": ["y"]}, "compared"),
        (ASKED, {"a": [RIGHT] * 20, "b": [RIGHT] * 3}, "needs its answer"),
    ],
    ids=["one way", "no words", "too few"],
)
def test_what_cannot_be_compared_is_refused(questions, answers, message):
    with pytest.raises(AccelError, match=message):
        compare_answers(questions, answers)


def test_the_figure_of_answers_has_a_bar_with_an_interval_for_each_way():
    found = compare_answers(ASKED, {"no passage": [WRONG] * 20, "passages": [RIGHT] * 20})
    ax = plots.answers(found)
    assert title(ax) == " ".join(found.headline.split())
    assert [text.get_text() for text in ax.texts] == ["0% of 20", "100% of 20"]


class Served:
    """A model whose vectors are all alike, and a reranker that prefers long passages."""

    def encode(self, texts, seconds=None):
        if seconds is None:
            return np.ones((len(texts), 2), dtype=np.float32)
        return np.array([[len(text)] for text in seconds], dtype=np.float32)


def test_the_figure_of_a_ranking_shows_how_often_the_right_passage_is_among_the_first():
    asked = Questions(questions=["a", "b"], passages=["x", "the long one", "y"], answers=[1, 1])
    found = compare_ranking(Served(), Served(), asked, candidates=3)
    assert found.ranks.tolist() == [[2, 2], [1, 1]]
    ax = plots.first_passages(found)
    assert title(ax) == found.headline
    assert [line.get_ydata()[0] for line in ax.lines] == [0, 100]  # type: ignore[index]


def test_stages_are_drawn_one_after_the_other_and_the_longest_is_named():
    ax = plots.stages(pd.DataFrame({"embed": [1.0, 3.0], "first token": [50.0, 70.0], "rest": [20.0, 40.0]}))
    assert title(ax) == 'An answer takes 92 ms on average; the longest stage is "first token" with 65%'
    assert [text.get_text() for text in ax.texts] == ["2.0 ms", "60 ms", "30 ms"]
