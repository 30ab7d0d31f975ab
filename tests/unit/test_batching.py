"""Batches cut by padded tokens: nothing lost, nothing over budget, nothing changed."""

import threading

import numpy as np
import pytest

from accel_lib.engines.batching import check_batch, padding_share, plan_batches, run_batches
from accel_lib.errors import EngineError
from accel_lib.ragged import Ragged

RANDOM = np.random.default_rng(0)
LENGTHS = [np.clip(RANDOM.lognormal(3.4, 0.8, size).astype(np.int64), 3, 256) for size in (1, 2, 7, 64, 500)]


class SumEngine:
    """Adds the ids that the mask lets through: right only if padding is masked and order restored."""

    name, device, precision, dimension, max_length = "sum", "cpu", "fp32", 1, 512

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def run(self, input_ids, attention_mask):
        self.shapes.append(input_ids.shape)
        return (input_ids * attention_mask).sum(axis=1, keepdims=True).astype(np.float32)

    def close(self) -> None:
        self.shapes.clear()


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
@pytest.mark.parametrize("budget", [64, 512, 4096])
@pytest.mark.parametrize("sort", [True, False])
def test_every_text_stands_in_one_batch_within_the_budget(lengths, budget, sort):
    batches = plan_batches(lengths, max_batch_tokens=budget, max_batch_size=32, sort=sort)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 32
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


def test_no_texts_give_no_batches():
    assert plan_batches(np.array([], dtype=np.int64), max_batch_tokens=512) == []


def test_a_text_longer_than_the_budget_still_runs_alone():
    batches = plan_batches(np.array([5, 900, 5]), max_batch_tokens=64)
    assert [list(batch) for batch in batches] == [[0, 2], [1]]


def test_a_packed_batch_is_cut_by_real_tokens():
    lengths = np.array([4, 60, 4, 60])
    assert [list(batch) for batch in plan_batches(lengths, max_batch_tokens=128, packed=True)] == [[0, 2, 1, 3]]
    assert len(plan_batches(lengths, max_batch_tokens=128)) == 2


def estimated(lengths, batches):
    """What `plan_batches` says that packed batches with padded attention cost, in tokens."""
    places = [(len(batch), int(lengths[batch].max())) for batch in batches]
    return sum(40 + rows * longest * (0.5 + 0.004 * longest) for rows, longest in places)


def test_attention_does_not_pad_short_texts_to_a_long_one():
    lengths = np.array([8, 256, 8, 8, 8, 8, 8, 8])
    batches = plan_batches(lengths, max_batch_tokens=512, packed=True, padded_attention=True)
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 2, 3, 4, 5, 6, 7], [1]]
    assert len(plan_batches(np.full(8, 8), max_batch_tokens=512, packed=True, padded_attention=True)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_of_sorted_texts_costs_less(seed):
    lengths = np.random.default_rng(seed).integers(3, 256, 9)
    batches = plan_batches(lengths, max_batch_tokens=600, padded_attention=True)
    order = np.argsort(lengths, kind="stable")
    others = [
        np.split(order, [place + 1 for place in range(8) if cuts >> place & 1]) for cuts in range(2**8)
    ]  # every way to cut nine texts in a row
    allowed = [cut for cut in others if all(len(b) == 1 or lengths[b].sum() <= 600 for b in cut)]
    assert estimated(lengths, batches) == pytest.approx(min(estimated(lengths, cut) for cut in allowed))


def test_cuts_for_attention_keep_to_the_limits():
    lengths = np.random.default_rng(0).integers(3, 64, 200)
    batches = plan_batches(lengths, max_batch_tokens=100, max_batch_size=3, padded_attention=True)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(batch) <= 3 and lengths[batch].sum() <= 100 for batch in batches)
    assert plan_batches(np.array([], dtype=np.int64), max_batch_tokens=100, padded_attention=True) == []


def test_sorting_by_length_saves_padding():
    lengths = LENGTHS[-1]
    as_they_come = padding_share(lengths, plan_batches(lengths, max_batch_tokens=2048, sort=False))
    by_length = padding_share(lengths, plan_batches(lengths, max_batch_tokens=2048))
    assert 3 * by_length < as_they_come


def test_padding_is_counted_exactly():
    lengths = np.array([2, 4, 6])
    assert padding_share(lengths, [np.array([0, 1, 2])]) == pytest.approx(1 - 12 / 18)
    assert padding_share(lengths, [np.array([i]) for i in range(3)]) == 0


@pytest.mark.parametrize("sort", [True, False])
def test_results_come_back_in_the_order_of_the_texts(sort):
    rows = [RANDOM.integers(1, 1000, length) for length in LENGTHS[-2]]
    engine = SumEngine()
    answers = run_batches(engine, rows, pad_id=7, max_batch_tokens=256, sort=sort)
    assert answers[:, 0].tolist() == [row.sum() for row in rows]
    assert len(engine.shapes) > 1


@pytest.mark.parametrize(("asked", "rows"), [(None, 4), (2, 2), (100, 4)])
def test_an_engine_that_holds_few_rows_is_never_given_more(asked, rows):
    engine = SumEngine()
    engine.max_batch_size = 4  # type: ignore[attr-defined]
    answers = run_batches(engine, [np.array([i, 1]) for i in range(50)], max_batch_size=asked)
    assert answers[:, 0].tolist() == [i + 1 for i in range(50)]
    assert max(shape[0] for shape in engine.shapes) == rows


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (np.ones((2, 3), np.int64), np.ones((2, 4), np.int64)),
        (np.ones((2, 3), np.int32), np.ones((2, 3), np.int64)),
        (np.ones(3, np.int64), np.ones(3, np.int64)),
        (np.ones((1, 0), np.int64), np.ones((1, 0), np.int64)),
        (np.ones((1, 9), np.int64), np.ones((1, 9), np.int64)),
    ],
    ids=["shapes differ", "wrong type", "one dimension", "no token", "too long"],
)
def test_a_batch_that_does_not_fit_is_refused_with_what_was_seen(ids, mask):
    with pytest.raises(EngineError, match="1 to 8 tokens") as refusal:
        check_batch(ids, mask, max_length=8)
    assert str(ids.shape) in refusal.value.seen


def test_rows_behind_each_other_give_the_numbers_of_rows_that_are_apart():
    rows = [RANDOM.integers(1, 1000, length) for length in LENGTHS[-2]]
    apart, behind = (run_batches(SumEngine(), given, max_batch_tokens=256) for given in (rows, Ragged.from_rows(rows)))
    assert apart.tolist() == behind.tolist()


def test_an_engine_that_takes_no_padding_is_given_none():
    class Unpadded(SumEngine):
        def run_ragged(self, rows):
            self.shapes.append(rows.lengths.tolist())
            return np.add.reduceat(rows.ids, np.cumsum(rows.lengths) - rows.lengths)[:, None].astype(np.float32)

    engine = Unpadded()
    rows = [np.full(length, length) for length in (5, 2, 9, 2)]
    assert run_batches(engine, rows, max_batch_size=2)[:, 0].tolist() == [25, 4, 81, 4]
    assert engine.shapes == [[2, 2], [5, 9]]


def test_ragged_rows_are_taken_and_padded_as_rows_are():
    rows = Ragged.from_rows([np.array([1, 2, 3]), np.array([4]), np.array([5, 6])])
    taken = rows.take(np.array([2, 0]))
    assert taken.ids.tolist() == [5, 6, 1, 2, 3]
    ids, mask = taken.padded(9)
    assert ids.tolist() == [[5, 6, 9], [1, 2, 3]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    back = Ragged.concat([Ragged.from_padded(ids, mask), Ragged.from_rows([])])
    assert (back.ids.tolist(), back.lengths.tolist()) == (taken.ids.tolist(), [2, 3])


def test_padding_on_the_left_is_left_out_too():
    rows = Ragged.from_padded(np.array([[0, 0, 7], [1, 2, 3]]), np.array([[0, 0, 1], [1, 1, 1]]))
    assert (rows.ids.tolist(), rows.lengths.tolist()) == ([7, 1, 2, 3], [1, 3])


class TwoLanes(SumEngine):
    """Two batches at a time, each of which waits until the other one runs."""

    lanes = 2

    def __init__(self, refuses=None):
        super().__init__()
        self._both, self._refuses = threading.Barrier(2), refuses

    def run_on_one_core(self, ids, mask):
        self._both.wait(timeout=30)
        if (ids == self._refuses).any():
            raise EngineError("No", seen="a batch", fix="none")
        return self.run(ids, mask)


def test_batches_run_side_by_side_and_answer_in_order():
    engine, rows = TwoLanes(), [np.array([i, 1]) for i in range(8)]
    assert run_batches(engine, rows, max_batch_size=2)[:, 0].tolist() == [i + 1 for i in range(8)]
    assert len(engine.shapes) == 4
    assert run_batches(SumEngine(), rows, max_batch_size=2)[:, 0].tolist() == [i + 1 for i in range(8)]


def test_one_batch_and_a_caller_who_declines_get_all_cores():
    engine = TwoLanes()
    engine._both.abort()  # a lane would raise
    assert run_batches(engine, [np.array([1, 1])])[:, 0].tolist() == [2]
    rows = [np.array([i, 1]) for i in range(4)]
    for declined in ({"side_by_side": False}, {"sort": False}):
        assert run_batches(engine, rows, max_batch_size=2, **declined)[:, 0].tolist() == [1, 2, 3, 4]


def test_a_batch_that_a_lane_refuses_is_refused():
    with pytest.raises(EngineError, match="No"):
        run_batches(TwoLanes(refuses=3), [np.array([i, 1]) for i in range(4)], max_batch_size=2)
