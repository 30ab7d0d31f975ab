"""A reranker on a frozen encoder equals its reference and learns from few questions; its gain has an interval."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from accel_lib.bench import compare_ranking
from accel_lib.bench.ranking import ndcg
from accel_lib.errors import AccelError, ModelError, TextError
from accel_lib.models import Model
from accel_lib.models.modules import halves
from accel_lib.models.reranker import train_reranker
from accel_lib.ragged import SEGMENTS
from accel_lib.stats import mean_difference
from accel_lib.texts import load_texts
from accel_lib.texts.questions import Questions, load_questions
from tests.tiny import tiny_model

_COUNT = 12
SOME = dataclasses.replace(
    load_questions("train"),
    questions=load_questions("train").questions[:_COUNT],
    passages=load_questions("train").passages[:_COUNT],
    answers=tuple(range(_COUNT)),
)


@pytest.fixture(scope="module")
def reranker(model: Model) -> Model:
    return train_reranker(model, SOME)


def test_each_shipped_question_has_a_passage_and_no_subject_is_in_both_splits() -> None:
    train, test = load_questions("train"), load_questions("test")
    assert (len(train), len(test)) == (329, 165)
    assert set(test.passages) == set(load_texts("passages"))
    answers = {test.passages[answer] for answer in test.answers}
    assert len(answers) == len(test)
    assert not answers & set(train.passages)
    assert {*train.questions} & {*test.questions} == set()
    with pytest.raises(TextError, match="no such split"):
        load_questions("dev")  # type: ignore[arg-type]


def test_logits_of_pairs_and_single_texts_are_the_references(reranker: Model) -> None:
    firsts = [*SOME.questions, "a", "one word " * 400]
    seconds = [*SOME.passages[1:], SOME.passages[0], "b c " * 300, "another word " * 90]
    assert (reranker.inputs[-1], reranker.labels, reranker.pairs) == (SEGMENTS, ("relevance",), True)
    np.testing.assert_allclose(reranker.encode(firsts, seconds), reranker.reference(firsts, seconds=seconds), atol=1e-3)  # type: ignore[call-arg]
    np.testing.assert_allclose(reranker.encode(firsts), reranker.reference(firsts), atol=1e-3)


def test_training_puts_the_right_passage_first_more_often_and_is_repeatable(model: Model, reranker: Model) -> None:
    again = train_reranker(model, SOME)
    assert again.source == reranker.source
    own = compare_ranking(model, reranker, SOME, candidates=_COUNT)
    assert own.gain > 0
    assert own.ranks[1].mean() < own.ranks[0].mean()
    assert model.task == "embedding"


def test_the_sigmoid_of_a_logit_is_high_for_the_right_passage_and_low_for_one_of_another_subject(
    reranker: Model,
) -> None:
    right = reranker.encode(SOME.questions, SOME.passages)[:, 0]
    wrong = reranker.encode(SOME.questions, [load_questions("test").passages[-1]] * _COUNT)[:, 0]
    assert np.median(right) > 0 > wrong.max()


def test_what_it_cannot_be_trained_on_is_named(model: Model, reranker: Model) -> None:
    with pytest.raises(ModelError, match="embeds"):
        train_reranker(reranker, SOME)
    with pytest.raises(ModelError, match="prompts"):
        train_reranker(dataclasses.replace(model, prompts={"query": "query: "}), SOME)
    with pytest.raises(ModelError, match="halves of a pair"):
        train_reranker(tiny_model(), SOME)
    few = Questions(questions=SOME.questions[:3], passages=SOME.passages, answers=(0, 1, 2))
    with pytest.raises(TextError, match="too few questions"):
        train_reranker(model, few)


@pytest.mark.parametrize("answers", [(0,), (0, 2), (0, -1)])
def test_questions_without_their_passages_are_refused(answers: tuple[int, ...]) -> None:
    with pytest.raises(TextError):
        Questions(questions=["a", "b"], passages=["c", "d"], answers=answers)


def test_a_pair_becomes_two_rows_each_as_the_encoder_was_trained_to_read_it() -> None:
    ids = torch.tensor([[101, 7, 8, 102, 9, 102, 0], [101, 7, 102, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 0], [0] * 7])
    rows, masks = halves(ids, mask, segments)
    kept = [row[use.bool()].tolist() for row, use in zip(rows, masks, strict=True)]
    assert kept == [[101, 7, 8, 102], [101, 7, 102], [101, 9, 102], [101]]


class _Rule:
    """Gives the right passages this logit, and all others 0."""

    def __init__(self, questions: Questions, logit: int) -> None:
        passages = [questions.passages[answer] for answer in questions.answers]
        self.right = set(zip(questions.questions, passages, strict=True))
        self.logit = logit

    def encode(self, texts: list[str], seconds: list[str], /) -> np.ndarray:
        return np.array([[self.logit * (pair in self.right)] for pair in zip(texts, seconds, strict=True)])


def test_the_gain_is_that_of_the_reranked_places_and_says_which_way(model: Model) -> None:
    other = dataclasses.replace(SOME, answers=(*range(1, _COUNT), 0))  # none of which the vectors find
    best = compare_ranking(model, _Rule(other, 1), other, candidates=_COUNT)
    assert best.frame["ndcg_at_10"][1] == 1
    assert best.gain == pytest.approx(1 - best.frame["ndcg_at_10"][0])
    assert best.headline.startswith("Reranking helps: nDCG@10 0.")
    assert compare_ranking(model, _Rule(SOME, -1), SOME, candidates=_COUNT).headline.startswith("Reranking harms")
    same = compare_ranking(model, _Rule(SOME, 0), SOME, candidates=_COUNT)
    assert (same.ranks[1] == 1).all()  # equal logits put no other passage in front
    two = compare_ranking(model, _Rule(other, 1), other, candidates=2)
    assert (two.ranks[1] == two.ranks[0])[two.ranks[0] > 2].all()  # what is no candidate stays where it is
    with pytest.raises(AccelError, match="nothing to rank"):
        compare_ranking(model, _Rule(SOME, 0), SOME, candidates=1)


def test_ndcg_is_one_for_the_first_place_and_zero_beyond_the_tenth() -> None:
    np.testing.assert_allclose(ndcg(np.array([1, 3, 10, 11])), [1, 0.5, 1 / np.log2(11), 0])


def test_the_interval_of_a_mean_difference_holds_it_and_is_that_of_pairs() -> None:
    draw = np.random.default_rng(1)
    base = draw.normal(0, 10, 200)
    gain, low, high = mean_difference(base + draw.normal(0.5, 1, 200), base)
    assert low < gain < high
    assert low > 0  # of unpaired samples the interval would be ten times as wide
    assert mean_difference(base, base) == (0, 0, 0)
    with pytest.raises(AccelError, match="one length"):
        mean_difference([1.0], [1.0, 2.0])
