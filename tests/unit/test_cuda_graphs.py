"""How captured sizes share memory, and how memory is counted before it is taken: the parts that need no GPU."""

import itertools

import numpy as np
import pytest

from accel_lib.engines.cuda_graphs import GraphCache, fill
from accel_lib.engines.oom import out_of_memory
from accel_lib.engines.tensorrt import check_memory
from accel_lib.errors import EngineError
from accel_lib.ragged import Ragged


@pytest.fixture
def cache():
    return GraphCache(lambda size, pool: (size, pool), new_pool=itertools.count().__next__, most=3)


def test_sizes_below_the_largest_share_its_pool(cache):
    assert [cache((tokens,), tokens=tokens)[1] for tokens in (512, 64, 512, 128)] == [0, 0, 0, 0]


def test_a_larger_size_starts_a_new_pool_that_smaller_ones_join_when_next_asked_for(cache):
    assert [cache((tokens,), tokens=tokens)[1] for tokens in (64, 128, 64, 128)] == [0, 1, 1, 1]


def test_the_size_that_was_used_longest_ago_is_dropped_first():
    captured = []
    cache = GraphCache(lambda size, _pool: captured.append(size), new_pool=object, most=3)
    for tokens in (512, 64, 128, 64, 256, 64, 512):
        cache((tokens,), tokens=tokens)
    assert captured == [(512,), (64,), (128,), (256,), (512,)]


def test_a_size_that_failed_leaves_the_next_one_to_start_anew(cache):
    cache((64,), tokens=64)

    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    capture, cache._capture = cache._capture, fail
    with pytest.raises(RuntimeError):
        cache((128,), tokens=128)
    cache._capture = capture
    assert cache((64,), tokens=64)[1] == 2


def test_rows_are_written_behind_each_other_and_the_rest_is_empty():
    rows = Ragged(np.array([5, 6, 7]), np.array([2, 1]), np.array([0, 1, 1]))
    ids, offsets, segments = (np.full(size, 9) for size in (6, 5, 6))
    fill([ids, offsets, segments], rows)
    assert ids.tolist() == [5, 6, 7, 0, 0, 0]
    assert offsets.tolist() == [0, 2, 3, 3, 3]
    assert segments.tolist() == [0, 1, 1, 0, 0, 0]


def test_rows_are_cut_where_a_batch_would_be_too_large():
    rows = Ragged.from_rows([np.full(size, size) for size in (3, 4, 9, 1, 1)])
    parts = rows.cut(7)
    assert [part.lengths.tolist() for part in parts] == [[3, 4], [9], [1, 1]]
    assert Ragged.concat(parts).ids.tolist() == rows.ids.tolist()


def test_buffers_that_a_gpu_does_not_hold_are_refused_with_the_numbers():
    needed = {"activations": 1_800_000_000, "inputs": 1_000_000}
    check_memory(needed, free=1_801_000_000)
    with pytest.raises(
        EngineError, match=r"1,800.0 MB of activations \+ 1.0 MB of inputs; 1,800.9 MB are free"
    ) as seen:
        check_memory(needed, free=1_800_900_000)
    assert out_of_memory(seen.value)
