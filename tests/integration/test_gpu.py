"""On a GPU: every engine gives the numbers of PyTorch on the CPU, or says why it does not run there."""

from typing import Any

import numpy as np
import pytest

from accel_lib import ensure, load_model, load_test, open_engine, serve, to_onnx, to_tensorrt, to_torch, validate
from accel_lib.convert.tensorrt import inspect_engine
from accel_lib.engines.batching import run_batches
from accel_lib.engines.cuda_graphs import supported
from accel_lib.engines.oom import safe_tokens
from accel_lib.errors import EngineError
from accel_lib.load.monitor import read_metrics
from accel_lib.machine import inspect_machine
from accel_lib.models.varlen import varlen_attention
from tests.families import FAMILIES

GPUS = inspect_machine().gpus
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU answers nvidia-smi here")]


@pytest.fixture(scope="module", autouse=True)
def cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} cannot use {GPUS[0].name}")


@pytest.fixture(scope="module")
def rows(model, texts):
    return model.tokenizer(texts)


@pytest.fixture(scope="module")
def expected(model, rows):
    return run_batches(open_engine(model, device="cpu"), rows)


@pytest.fixture(scope="module")
def plan(model, tensorrt_here, tmp_path_factory):  # noqa: ARG001
    """A real engine for this GPU, by whichever library can build one here."""
    half = to_onnx(model, precision="fp16", progress=False)
    return to_tensorrt(half, max_batch_size=8, output=tmp_path_factory.mktemp("gpu") / "plan", progress=False)


def smallest_cosine(output, expected):
    assert np.isfinite(output).all()
    norms = np.linalg.norm(output, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((output * expected).sum(axis=1) / norms).min())


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("fp16", 0.999)])
def test_pytorch_on_the_gpu_agrees_with_the_cpu(model, rows, expected, precision, least, cuda_graphs):
    engine = open_engine(model, device="cuda", precision=precision, cuda_graphs=cuda_graphs)
    assert (engine.device, engine.precision) == ("cuda:0", precision)
    for _ in range(2):  # with CUDA graphs the second round replays what the first one captured
        assert smallest_cosine(run_batches(engine, rows, max_batch_tokens=1024), expected) >= least
    engine.close()


def test_packed_batches_with_graphs_agree_with_the_cpu(model, rows, expected, tmp_path):
    half = to_torch(model, precision="fp16", packed=True, output=tmp_path / "packed", progress=False)
    if not supported("cuda:0"):
        with pytest.raises(EngineError, match="FlashAttention"):
            open_engine(half, device="cuda")
        return
    for engine in (open_engine(half), open_engine(model, device="cuda", precision="fp16", packed=True)):
        for size in (None, 1, 7, None):
            assert smallest_cosine(run_batches(engine, rows, max_batch_size=size), expected) >= 0.999
        engine.close()


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (8, 8), (15, 0)], ids=str)
@pytest.mark.parametrize("shared", [1, 2])
def test_flash_attention_sees_the_window_that_the_cpu_sees(window, shared):
    torch = pytest.importorskip("torch")
    if not supported("cuda:0"):
        pytest.skip("FlashAttention needs compute capability 8.0")
    torch.manual_seed(0)
    lengths = (70, 1, 40, 9)
    query, key, value = (torch.randn(sum(lengths), heads, 16).half() for heads in (4, 4 // shared, 4 // shared))
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    exact = varlen_attention(query.float(), key.float(), value.float(), offsets, 70, 0.3, *window)
    on_gpu = (each.cuda() for each in (query, key, value, offsets))
    seen = varlen_attention(*on_gpu, 70, 0.3, *window).float().cpu()
    assert seen.numpy() == pytest.approx(exact.numpy(), abs=4e-3)


@pytest.mark.parametrize("family", ["modernbert", "gemma3", "mistral", "qwen3"])
def test_packed_batches_of_a_family_with_windows_agree_with_its_reference(family, texts, tmp_path):
    if not supported("cuda:0"):
        pytest.skip("FlashAttention needs compute capability 8.0")
    model = load_model(str(FAMILIES[family](tmp_path / family, kind="sentence")), max_length=200)
    half = to_torch(model, precision="fp16", packed=True, output=tmp_path / "packed", progress=False)
    assert validate(half, reference=model, texts=texts, device="cuda").passed
    engine, rows = open_engine(half, device="cuda"), model.tokenize(texts)
    assert rows.lengths.max() > 64
    for size in (None, 1, 7):
        assert smallest_cosine(run_batches(engine, rows, max_batch_size=size), model.reference(list(texts))) >= 0.999
    engine.close()


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_packed_classifiers_agree_with_their_reference(family, texts, tmp_path):
    if not supported("cuda:0"):
        pytest.skip("FlashAttention needs compute capability 8.0")
    folder = FAMILIES[family](tmp_path / family, kind="SequenceClassification", num_labels=3)
    model = load_model(str(folder), max_length=200)
    pairs = {"seconds": list(texts)[::-1]} if model.pairs else {}
    engine = open_engine(model, device="cuda", precision="fp16", packed=True)
    expected = model.reference(list(texts), **pairs)
    seen = run_batches(engine, model.tokenize(texts, **pairs))
    assert seen == pytest.approx(expected, abs=float(0.02 * np.abs(expected).max()))
    engine.close()


def test_auto_takes_the_gpu_and_leaves_the_model_on_the_cpu(model):
    assert open_engine(model).device == "cuda:0"
    assert {parameter.device.type for parameter in model.module.parameters()} == {"cpu"}


def test_an_exported_program_moves_to_the_gpu_whole(model, rows, expected, tmp_path):
    engine = open_engine(to_torch(model, output=tmp_path / "torch", progress=False), device="cuda")
    assert smallest_cosine(run_batches(engine, rows), expected) >= 0.9999


def test_a_gpu_beyond_the_last_is_refused(model):
    with pytest.raises(EngineError, match="sees no such GPU"):
        open_engine(model, device="cuda:99")


def test_onnx_runtime_runs_on_the_provider_it_has_or_refuses(onnx_fp32, rows, expected):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        assert open_engine(onnx_fp32).device == "cpu"
        with pytest.raises(EngineError, match="has no CUDA"):
            open_engine(onnx_fp32, device="cuda")
        return
    engine = open_engine(onnx_fp32, device="cuda")
    assert engine.device == "cuda:0"
    assert smallest_cosine(run_batches(engine, rows), expected) >= 0.9999


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_tensorrt_agrees_with_the_cpu_in_batches_it_holds(plan, rows, expected, cuda_graphs):
    engine = open_engine(plan, cuda_graphs=cuda_graphs)
    for _ in range(2):
        assert smallest_cosine(run_batches(engine, rows), expected) >= 0.999
    engine.close()


def test_sixteen_captured_shapes_of_tensorrt_share_one_buffer(plan):
    torch = pytest.importorskip("torch")
    engine: Any = open_engine(plan, cuda_graphs=True)
    activations = engine._memory.numel()
    free = torch.cuda.mem_get_info()[0]
    for batch, tokens in ((batch, tokens) for batch in (1, 2, 4, 8) for tokens in (16, 32, 64, 128)):
        ids = np.full((batch, tokens), 2_000, dtype=np.int64)
        engine.run(ids, np.ones_like(ids))
    taken = free - torch.cuda.mem_get_info()[0]
    print(f"{activations / 1e6:,.0f} MB of activations; 16 graphs took {taken / 1e6:,.0f} MB")
    assert taken < 8 * activations  # by themselves they would take 16 times as much
    engine.close()


def test_a_tensorrt_engine_can_be_looked_into_where_it_runs(plan):
    report = inspect_engine(plan)
    assert len(report.layers)
    assert report.size_bytes == plan.size_bytes


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The course's model in a Triton on the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_REPOSITORY", str(tmp_path_factory.mktemp("model_repository")))
        repository = ensure("embedding")
    with serve(repository) as running:
        yield running


def memory_used(server):
    """Bytes of the GPU in use, as Triton's own metrics have it."""
    metrics = read_metrics(server.metrics_url)
    return metrics.loc[metrics["name"] == "nv_gpu_memory_used_bytes", "value"].max()


@pytest.mark.triton
def test_triton_serves_both_versions_of_the_course_on_the_gpu(server, texts, expected):
    for version, least in ((1, 0.9999), (2, 0.999)):
        served = server.model("embedding", version=version)
        assert smallest_cosine(served.encode(texts), expected) >= least
    assert "GPU device 0" in server.log
    assert memory_used(server) > 0


@pytest.mark.triton
def test_more_instances_on_the_gpu_are_added_in_place_and_give_the_same_vectors(server, texts, expected):
    served, before = server.model("embedding"), server.log.count("(GPU device 0)")
    assert (served.config.max_batch_size, served.config.instance_count) == (1024, 2)
    served.configure(instance_kind="gpu", instance_count=3)
    assert smallest_cosine(served.encode(texts), expected) >= 0.999
    assert server.log.count("(GPU device 0)") > before
    run = load_test(served, texts, concurrency=16, seconds=2)
    assert not (run.frame["error"] != "").any()
    metrics = read_metrics(server.metrics_url)
    assert {"nv_gpu_utilization", "nv_gpu_power_usage"} <= set(metrics["name"])


def test_what_would_be_served_in_a_t4_s_memory_fits(model, rows):
    torch = pytest.importorskip("torch")
    engine = open_engine(model, device="cuda", precision="fp16")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 15 * 2**30 / 4 / total))
    try:
        answers = run_batches(engine, rows * 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(answers).all()
    assert safe_tokens(engine) is None
    engine.close()
