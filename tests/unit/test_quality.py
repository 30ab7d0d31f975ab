"""Quality classes: what is in which, and what is in none."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
import pytest

from accel_lib.bench import quality_judge
from accel_lib.errors import AccelError
from accel_lib.stats import Quality, measure_quality

GOOD = Quality(cosine_min=0.99995, cosine_mean=0.99999, kept=0.9995, kept_low=0.999, kept_high=1.0, texts=1_024)


def vectors(seed=0, n=64):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "exact"),
        ({"kept": 0.9985}, "near"),
        ({"cosine_min": 0.9995}, "near"),
        ({"kept": 0.98}, "small"),
        ({"cosine_min": 0.98}, "small"),
        ({"kept": 0.929}, None),
        ({"cosine_mean": 0.9949}, None),
        ({"accuracy_change": -0.01, "accuracy_low": -0.03, "accuracy_high": 0.01}, "exact"),
        ({"accuracy_change": -0.03, "accuracy_low": -0.05, "accuracy_high": -0.01}, None),
        ({"kept": math.nan}, None),
        ({"cosine_min": math.nan, "cosine_mean": math.nan, "logits": 0.04}, "near"),
        ({"cosine_min": math.nan, "cosine_mean": math.nan, "logits": 0.5}, None),
    ],
)
def test_every_limit_of_a_class_counts(change, expected):
    assert dataclasses.replace(GOOD, **change).quality_class == expected


def test_the_same_vectors_in_another_length_are_exact():
    found = measure_quality(3 * vectors(), vectors())
    assert (found.quality_class, found.kept) == ("exact", 1.0)


def test_a_little_noise_is_in_a_lower_class_and_much_of_it_in_none():
    noise = vectors(1)
    classes = [measure_quality(vectors() + scale * noise, vectors()).quality_class for scale in (0.0, 0.002, 1.0)]
    assert classes[0] == "exact"
    assert classes[1] in ("near", "small")
    assert classes[2] is None


def test_the_interval_of_the_neighbours_is_around_their_share():
    found = measure_quality(vectors() + 0.2 * vectors(1), vectors())
    assert 0 <= found.kept_low < found.kept < found.kept_high <= 1


def test_an_accuracy_is_compared_text_by_text():
    right = np.arange(200) >= 10  # 190 of 200
    worse = right.copy()
    worse[100:106] = False
    same = measure_quality(vectors(), vectors(), correct=(right, right))
    lower = measure_quality(vectors(), vectors(), correct=(worse, right))
    assert (same.accuracy_change, same.quality_class) == (0.0, "exact")
    assert lower.accuracy_change == pytest.approx(-0.03)
    assert lower.quality_class is None  # unpaired, 190 and 184 of 200 would not differ


def test_a_classifier_is_judged_by_its_labels_and_its_logits():
    logits = vectors()[:, :3]
    near = measure_quality(logits + 0.01 * vectors(1)[:, :3], logits, activation="softmax")
    assert near.quality_class in ("near", "small")
    assert measure_quality(-logits, logits, activation="softmax").quality_class is None


def test_vectors_of_another_width_or_too_few_texts_are_refused():
    with pytest.raises(AccelError, match="one shape"):
        measure_quality(vectors()[:, :8], vectors())
    with pytest.raises(AccelError, match="12 texts"):
        measure_quality(vectors(n=11), vectors(n=11))


class Words:
    """A reference whose vectors count words: texts that share words are close to each other."""

    def reference(self, texts):
        rows = [[zlib.crc32(word.encode()) % 1_024 for word in text.lower().split()] for text in texts]
        return np.stack([np.bincount(row, minlength=1_024) for row in rows]).astype(np.float32)


@pytest.mark.slow
def test_a_judge_compares_over_a_thousand_texts_and_the_labels_of_those_it_held_out():
    judge = quality_judge(Words())
    assert len(set(judge.texts)) >= 1_000
    same = judge.quality(Words().reference)
    assert (same.quality_class, same.accuracy_change) == ("exact", 0.0)
    turned = judge.quality(lambda texts: -Words().reference(texts))  # neighbours stay, what the head says does not
    assert turned.kept == 1.0
    assert turned.accuracy_high < 0
    assert turned.quality_class is None
