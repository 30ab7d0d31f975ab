"""Memory: a batch that does not fit is halved and remembered, and what fits is predicted before it is tried."""

from __future__ import annotations

import numpy as np
import pytest

from accel_lib.bench.memory import MemoryModel, fit_memory
from accel_lib.engines.batching import run_batches
from accel_lib.engines.oom import out_of_memory, safe_tokens
from accel_lib.errors import AccelError, EngineError
from tests.tiny import TABLE, tiny_artifact

ROWS = [np.full(length, 2, dtype=np.int64) for length in np.random.default_rng(0).integers(3, 60, 64)]


class Narrow:
    """Adds ids, and has memory for so many padded tokens, as an engine on a small GPU would."""

    name, device, precision, dimension, max_length = "narrow", "cpu", "fp32", 1, 512

    def __init__(self, holds, error):
        self.holds, self.error, self.refused = holds, error, 0

    def run(self, input_ids, attention_mask):
        if input_ids.size > self.holds:
            self.refused += 1
            raise self.error
        return (input_ids * attention_mask).sum(axis=1, keepdims=True).astype(np.float32)

    def close(self):
        pass


def refusal(words):
    return EngineError("Refused the batch.", seen=words, fix="a smaller one")


@pytest.mark.parametrize(
    "error",
    [
        refusal("CUDA out of memory. Tried to allocate 2.00 GiB"),
        refusal("BFCArena: Failed to allocate memory for requested buffer of size 4096"),
        refusal("std::bad_alloc"),
        MemoryError(),
    ],
    ids=["torch", "onnxruntime", "c++", "python"],
)
def test_a_batch_that_does_not_fit_is_halved_and_every_text_still_answered(error):
    engine = Narrow(200, error)
    answers = run_batches(engine, ROWS, max_batch_tokens=2_000)
    assert answers[:, 0].tolist() == [2 * len(row) for row in ROWS]
    assert engine.refused <= 4


def test_what_ran_out_of_memory_once_is_not_tried_again():
    engine = Narrow(200, refusal("out of memory"))
    assert safe_tokens(engine) is None
    run_batches(engine, ROWS, max_batch_tokens=2_000)
    tried = engine.refused
    assert 0 < safe_tokens(engine) <= 200
    run_batches(engine, ROWS, max_batch_tokens=2_000)
    assert engine.refused == tried


def test_another_refusal_is_no_matter_of_memory():
    engine = Narrow(200, refusal("indices out of range"))
    with pytest.raises(EngineError, match="out of range"):
        run_batches(engine, ROWS, max_batch_tokens=2_000)
    assert safe_tokens(engine) is None


def test_a_single_text_that_does_not_fit_is_an_error_that_says_so():
    with pytest.raises(EngineError, match="A single text does not fit into memory"):
        run_batches(Narrow(2, MemoryError()), ROWS[:3])


def test_the_cause_of_an_error_counts():
    error = EngineError("Refused.", fix="none")
    error.__cause__ = RuntimeError("CUDA out of memory")
    assert out_of_memory(error)


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    wide = np.random.default_rng(0).normal(size=(200, 2_048)).astype(np.float32)
    artifact = tiny_artifact(tmp_path_factory.mktemp("memory") / "tiny", wide)
    return fit_memory(artifact, length=64, sizes=(32, 64, 128), check=256)


def test_memory_is_fitted_from_few_batches_and_checked_on_a_larger_one(fit):
    assert fit.frame["role"].tolist() == ["fitted", "fitted", "fitted", "checked"]
    least = 64 * 2_048 * 4  # the one tensor of every token's numbers
    assert fit.model.bytes_a_token * 64 > least / 3
    assert abs(fit.error) < 0.5
    assert "texts of 64 tokens" in fit.headline


def test_the_largest_safe_batch_grows_with_memory_and_shrinks_with_instances():
    model = MemoryModel(device="cpu", length=128, weights_bytes=10**8, fixed_bytes=2 * 10**8, bytes_a_token=10**5)
    assert model.bytes(1_000) == 3 * 10**8
    assert model.bytes(1_000, instances=2) == 6 * 10**8
    assert model.largest_batch(10**9, reserve=0) == 8 * 10**8 // 10**5 // 128
    assert model.largest_batch(10**9, instances=2, reserve=0) == 3 * 10**8 // 10**5 // 128
    assert model.largest_batch(10**9, length=16, reserve=0) == 8 * 10**8 // 10**5 // 16


def test_a_model_that_does_not_fit_at_all_says_what_it_needs():
    model = MemoryModel(device="cpu", length=128, weights_bytes=10**8, fixed_bytes=2 * 10**8, bytes_a_token=10**5)
    with pytest.raises(AccelError, match="not even one text"):
        model.largest_batch(10**8)


def test_a_size_that_ran_out_of_memory_bounds_the_safe_batch():
    model = MemoryModel(device="cpu", length=10, weights_bytes=0, fixed_bytes=0, bytes_a_token=1, failed_tokens=1_000)
    assert model.largest_batch(10**9) == 50


def test_a_batch_beyond_all_memory_ends_its_own_process_and_bounds_the_safe_one(tmp_path):
    artifact = tiny_artifact(tmp_path / "tiny", TABLE)
    fit = fit_memory(artifact, length=64, sizes=(8, 16), check=10**12)
    assert fit.frame["role"].tolist() == ["fitted", "fitted"]
    assert fit.model.failed_tokens == 64 * 10**12
    assert "ran out of memory" in fit.headline


def test_a_fit_needs_two_sizes(tmp_path):
    artifact = tiny_artifact(tmp_path / "tiny", TABLE)
    with pytest.raises(AccelError, match="two sizes"):
        fit_memory(artifact, length=64, sizes=(1,))
