"""Batches rounded up to few shapes: the rows that were there stay, and what is added is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from accel_lib.engines.shape_buckets import ShapeBuckets, round_up, to_bucket


def batch(lengths):
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return np.where(mask, 7, 9), mask, mask * 3


@pytest.mark.parametrize("packed", [False, True])
def test_the_rows_stay_and_what_is_added_is_bounded(packed):
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = batch(rng.integers(1, 250, rng.integers(1, 40)).tolist())
        shaped = to_bucket(rows, pad_id=9, max_length=256, packed=packed)
        count, longest = rows[0].shape
        for given, grown in zip(rows, shaped, strict=True):
            assert np.array_equal(grown[:count, :longest], given)
        ids, mask, _ = shaped
        assert not mask[:count, longest:].any()
        assert (ids[mask == 0] == 9).all()
        assert (ids[count:] == 9).all()
        assert mask[count:].any(axis=1).all()
        assert mask.shape[1] <= 256
        assert mask.sum() <= 1.2 * rows[1].sum() + 16
        assert len(mask) <= 1.3 * count + 2


def test_mixed_batches_of_a_service_meet_few_shapes():
    rng = np.random.default_rng(1)
    batches = [batch(rng.integers(8, 120, rng.integers(2, 33)).tolist()) for _ in range(2_000)]
    raw = {(*rows[1].shape, int(rows[1].sum())) for rows in batches}
    shaped = [to_bucket(rows, pad_id=0, max_length=256, packed=True)[1] for rows in batches]
    assert len({int(mask.sum()) for mask in shaped}) < 100 < len({tokens for *_, tokens in raw}) / 5
    assert len({mask.shape for mask in shaped}) < len({shape[:2] for shape in raw}) / 3


def test_a_text_alone_in_a_packed_graph_gets_no_company():
    rows = batch([37])
    assert to_bucket(rows, pad_id=0, max_length=256, packed=True) is rows
    assert to_bucket(rows, pad_id=0, max_length=38, packed=False)[1].shape == (1, 38)


def test_a_batch_that_comes_again_and_again_is_computed_as_it_is():
    shaped, rows, others = ShapeBuckets(pad_id=0, max_length=256, packed=True), batch([37, 21]), batch([37, 22])
    sizes = [shaped(*rows)[1].shape for _ in range(6)]
    assert sizes[:4] == [to_bucket(rows, pad_id=0, max_length=256, packed=True)[1].shape] * 4
    assert sizes[0] != sizes[4] == sizes[5] == rows[1].shape
    assert shaped(*others)[1].shape != others[1].shape


def test_sizes_are_few_and_near():
    sizes = [round_up(size) for size in range(1, 2_049)]
    assert len(set(sizes)) == 8 + 8 * 8
    assert all(size <= rounded <= 1.125 * size for size, rounded in enumerate(sizes, start=1))
