"""On a GPU: memory is fitted and checked, and a batch that does not fit is halved, answered and remembered."""

import numpy as np
import pytest

from accel_lib import open_engine, serve, to_torch, validate
from accel_lib.bench.memory import fit_memory, free_bytes, instance_bytes, room_for
from accel_lib.engines.batching import run_batches
from accel_lib.engines.cuda_graphs import supported
from accel_lib.engines.oom import safe_tokens
from accel_lib.machine import inspect_machine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not inspect_machine().gpus, reason="no NVIDIA GPU answers nvidia-smi here"),
]


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("torch cannot use the GPU")
    return module


def test_memory_on_the_gpu_is_predicted_for_a_batch_it_was_not_fitted_on(model, torch, tmp_path):  # noqa: ARG001
    fit = fit_memory(
        to_torch(model, output=tmp_path / "torch", progress=False),
        length=128, sizes=(64, 128, 256), check=512, device="cuda",
    )  # fmt: skip
    print(fit)
    assert fit.model.device == "cuda:0"
    assert abs(fit.error) < 0.25
    assert fit.model.largest_batch(free_bytes("cuda:0")) > 512


def test_a_batch_that_runs_out_of_gpu_memory_is_halved_answered_and_remembered(model, torch):
    engine = open_engine(model, device="cuda")
    rows = [np.full(128, 2_000, dtype=np.int64) for _ in range(512)]
    few = run_batches(engine, rows[:8])
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 300 * 2**20) / total))
    try:
        answers = run_batches(engine, rows, max_batch_tokens=512 * 128)
        limit = safe_tokens(engine)
        again = run_batches(engine, rows, max_batch_tokens=512 * 128)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(f"512 × 128 tokens did not fit into 300 MiB; {limit:,} tokens a batch do")
    assert limit < 512 * 128
    assert safe_tokens(engine) == limit
    np.testing.assert_allclose(answers, np.repeat(few[:1], 512, axis=0), atol=1e-4)
    np.testing.assert_allclose(again, answers, atol=1e-4)
    engine.close()


def held_by(torch, engine, shapes):
    """Bytes that an engine holds after batches of these shapes, beside what it held before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    answers = []
    for shape in shapes:
        ids = np.full(shape, 2_000, dtype=np.int64)
        answers.append(engine.run(ids, np.ones_like(ids)))
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() - before, answers


@pytest.mark.parametrize("packed", [False, True])
def test_sixteen_captured_shapes_hold_little_more_memory_than_the_largest_alone(model, torch, packed):
    if packed and not supported("cuda:0"):
        pytest.skip("FlashAttention needs compute capability 8.0")
    options = {"packed": True} if packed else {"cuda_graphs": True}
    shapes = [(4 * many, 128) for many in range(1, 17)]
    alone = open_engine(model, device="cuda", precision="fp16", **options)
    largest, _ = held_by(torch, alone, shapes[-1:])
    alone.close()
    engine = open_engine(model, device="cuda", precision="fp16", **options)
    held, answers = held_by(torch, engine, shapes)
    print(f"packed={packed}: {held / 1e6:,.0f} MB for 16 shapes, {largest / 1e6:,.0f} MB for the largest")
    assert 0 < held < 1.3 * largest
    again, replayed = held_by(torch, engine, shapes)
    assert again < 0.3 * largest
    for first, second in zip(answers, replayed, strict=True):
        np.testing.assert_allclose(first, np.repeat(answers[0][:1], len(first), axis=0), atol=5e-3)
        np.testing.assert_allclose(second, first, atol=5e-3)
    engine.close()


@pytest.mark.triton
def test_memory_for_another_copy_on_the_gpu_is_looked_at_before_it_is_loaded(model, texts, torch, tmp_path):  # noqa: ARG001
    artifact = validate(
        to_torch(model, output=tmp_path / "torch", progress=False), reference=model, texts=texts
    ).artifact
    (tmp_path / "model_repository").mkdir()
    with serve(tmp_path / "model_repository") as server:
        served = server.add("torch", artifact)
        assert instance_bytes(served) > 0
        assert room_for(served, 1) == ""
        assert "are free" in room_for(served, 100_000)
