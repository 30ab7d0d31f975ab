"""Engines behind one protocol: the same numbers, the device that was asked for, and refusals that say what to do."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from accel_lib import load_model, open_engine, to_torch
from accel_lib.artifact import Artifact
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ArtifactError, EngineError
from tests.families import FAMILIES


@pytest.fixture(scope="module")
def torch_artifact(tiny_model, tmp_path_factory):
    return to_torch(tiny_model, output=tmp_path_factory.mktemp("engines") / "torch")


def rows_of(model):
    return model.tokenizer(["short", "a somewhat longer text than the first", "and one of a middle length"])


def test_onnx_runtime_and_pytorch_agree_on_the_real_model(model, onnx_fp32):
    rows = rows_of(model)
    with_torch, with_onnx = (run_batches(open_engine(candidate), rows) for candidate in (model, onnx_fp32))
    assert np.abs(with_torch - with_onnx).max() < 1e-5


def test_an_exported_program_gives_the_numbers_of_its_model(tiny_model, torch_artifact):
    rows = rows_of(tiny_model)
    saved, live = (run_batches(open_engine(candidate), rows) for candidate in (torch_artifact, tiny_model))
    assert np.abs(saved - live).max() < 1e-6


def test_an_engine_says_what_it_is(onnx_fp32):
    engine = open_engine(onnx_fp32, device="cpu", threads=1)
    assert (engine.name, engine.device, engine.precision) == ("onnx fp32", "cpu", "fp32")
    assert (engine.dimension, engine.max_length) == (384, 256)


def test_a_text_over_the_limit_is_refused_before_it_runs(onnx_fp32):
    ids = np.ones((1, 257), np.int64)
    with pytest.raises(EngineError, match="1 to 256 tokens"):
        open_engine(onnx_fp32).run(ids, ids)


@pytest.mark.parametrize("device", ["tpu", "7", "cuda:", "cuda:-1", ""])
def test_an_unknown_device_is_refused(tiny_model, device):
    with pytest.raises(EngineError, match=f"seen: '{device}'"):
        open_engine(tiny_model, device=device)


def test_a_gpu_that_is_not_there_is_an_error_not_a_slower_answer(tiny_model, onnx_fp32):
    for candidate in (tiny_model, onnx_fp32):
        with pytest.raises(EngineError) as refusal:
            open_engine(candidate, device="cuda:7")
        assert 'device="cpu"' in refusal.value.fix or "device='cpu'" in refusal.value.fix


@pytest.mark.parametrize("kind", ["tiny_model", "onnx_fp32", "torch_artifact"])
def test_ids_outside_the_vocabulary_are_refused_and_the_engine_lives_on(kind, request):
    engine = open_engine(request.getfixturevalue(kind), device="cpu")
    mask = np.ones((1, 4), np.int64)
    with pytest.raises(EngineError, match="refused the batch"):
        engine.run(np.full((1, 4), 10**6), mask)
    assert np.isfinite(engine.run(np.full((1, 4), 101), mask)).all()


@pytest.mark.parametrize("kind", ["tiny_model", "onnx_fp32", "torch_artifact"])
def test_one_text_of_one_token_runs_and_an_engine_closes_twice(kind, request):
    engine = open_engine(request.getfixturevalue(kind), device="cpu")
    one = np.ones((1, 1), np.int64)
    assert engine.run(one, one).shape == (1, engine.dimension)
    engine.close()
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a process is bound to cores in Linux")
def test_a_process_bound_to_one_core_gets_no_threads_that_would_wait_for_it(onnx_fp32):
    code = (
        "import os, pathlib, sys; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]);"
        "from accel_lib import Artifact, open_engine; import onnxruntime, pandas;"
        "threads = lambda: len(os.listdir('/proc/self/task'));"
        "artifact = Artifact.load(pathlib.Path(sys.argv[1])); before = threads();"
        "engine = open_engine(artifact, device='cpu'); print(threads() - before)"
    )
    command = [sys.executable, "-c", code, str(onnx_fp32.folder)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == 0


def test_engines_that_share_cores_may_stop_spinning_and_answer_the_same(onnx_fp32):
    ids = np.full((2, 8), 101)
    mask = np.ones_like(ids)
    patient, restless = (open_engine(onnx_fp32, threads=2, allow_spinning=spin) for spin in (False, True))
    assert np.array_equal(patient.run(ids, mask), restless.run(ids, mask))


def test_onnx_runtime_keeps_no_reports_to_its_maker(onnx_fp32, tmp_path):
    code = f"from accel_lib import Artifact, open_engine; open_engine(Artifact.load({str(onnx_fp32.folder)!r}))"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.rglob("onnxruntime.db"))


def test_importing_the_engines_imports_no_engine():
    code = "import sys, accel_lib.engines.batching; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "onnx", "onnxruntime", "transformers", "pandas", "tensorrt_rtx"}


def test_half_precision_on_a_cpu_is_refused_not_ignored(tiny_model):
    with pytest.raises(EngineError, match="precision 'fp16' on cpu"):
        open_engine(tiny_model, device="cpu", precision="fp16")


@pytest.mark.parametrize("kind", ["onnx_fp32", "torch_artifact"])
def test_a_file_that_is_no_model_is_refused_with_the_command_that_makes_one(kind, request, tmp_path):
    artifact: Artifact = request.getfixturevalue(kind)
    broken = artifact.copy_to(tmp_path / "broken")
    broken.path.write_bytes(b"not a model")
    with pytest.raises(ArtifactError) as refusal:
        open_engine(broken)
    assert "accel.to_" in refusal.value.fix


def test_batches_side_by_side_give_the_numbers_of_batches_in_a_row(onnx_fp32):
    rows = [np.random.default_rng(0).integers(5, 60, length) for length in (3, 9, 4, 12, 5, 7)]
    engine = open_engine(onnx_fp32, device="cpu", threads=2)
    assert engine.lanes == 2  # type: ignore[attr-defined]
    together = run_batches(engine, rows, max_batch_size=2)
    assert together == pytest.approx(run_batches(engine, rows, max_batch_size=2, side_by_side=False), abs=1e-6)
    engine.close()


def test_a_head_that_looks_for_padding_finds_the_model_s_own(tmp_path):
    folder = FAMILIES["qwen3"](tmp_path / "qwen3", kind="SequenceClassification", num_labels=3)
    decoder = load_model(folder, max_length=64)
    texts = ["a small cat", "how many people live in berlin " * 4, "music"]
    with contextlib.closing(open_engine(decoder, device="cpu")) as engine:
        assert engine.pad_id == decoder.tokenizer.pad_id != 0
        seen = run_batches(engine, decoder.tokenizer(texts), sort=False)
    np.testing.assert_allclose(seen, decoder.reference(texts), atol=1e-4)
