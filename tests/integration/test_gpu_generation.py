"""On a GPU: the engine that generates gives transformers' tokens, through Triton too; its kernels, plain numbers."""

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest

from accel_lib import serve, to_onnx, to_tensorrt
from accel_lib.engines.cuda_graphs import supported
from accel_lib.errors import EngineError
from accel_lib.generate import Sampling
from accel_lib.generate.onnxruntime import OnnxEngine
from accel_lib.generate.open import open_generation
from accel_lib.generate.scheduler import Scheduler
from accel_lib.machine import inspect_machine
from accel_lib.models import load_model
from tests.generation import collect, greedy, ids_of, reference, run
from tests.tiny import llama_folder, tiny_prompts

GPUS = inspect_machine().gpus
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU answers nvidia-smi here")]
PROMPTS = tiny_prompts(12)
ROWS = 5
SEEDED = [Sampling(max_tokens=24, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(8)]


@pytest.fixture(scope="module", autouse=True)
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip(f"torch {module.__version__} cannot use {GPUS[0].name}")
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = llama_folder(tmp_path_factory.mktemp("llama") / "tiny", hidden_size=64, num_key_value_heads=2)
    return load_model(folder, task="generation")


def opened(model, precision, **options):
    from accel_lib.generate.torch import TorchEngine

    limits = {"rows": ROWS, "cache_tokens": 2048, "step_tokens": 128}
    return contextlib.closing(TorchEngine(model, device="cuda", precision=precision, **limits | options))


@pytest.fixture(scope="module")
def engine(model):
    with opened(model, "fp32") as exact:
        yield exact


def test_greedy_tokens_are_transformers_own_with_more_requests_than_rows(engine, model):
    requests = {str(index): (prompt, greedy(6 + 4 * index)) for index, prompt in enumerate(PROMPTS)}
    requests["long"] = ([9 + index % 90 for index in range(400)], greedy(40))
    found = run(engine, requests)
    assert all(found[key] == reference(model, prompt, each.max_tokens) for key, (prompt, each) in requests.items())
    assert engine.device == "cuda:0"


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(engine):
    together = run(engine, {str(index): (PROMPTS[index], each) for index, each in enumerate(SEEDED)})
    for index, sampling in enumerate(SEEDED):
        assert run(engine, {"a": (PROMPTS[index], sampling)})["a"] == together[str(index)]


def test_older_gpus_compute_it_in_graphs_too(model, monkeypatch):
    """Without the kernels: attention then gathers a bound of tokens, and each bound is a graph."""
    monkeypatch.setattr("accel_lib.generate.torch.supported", lambda _: False)
    with opened(model, "fp32") as engine:
        requests = {str(index): (prompt, greedy(6 + 4 * index)) for index, prompt in enumerate(PROMPTS)}
        requests["sampled"] = (PROMPTS[0], SEEDED[0])
        found = run(engine, requests)
        assert run(engine, {"a": requests["sampled"]})["a"] == found.pop("sampled")
    assert all(found[key] == reference(model, *_of(requests[key])) for key in found)


def _of(request):
    return request[0], request[1].max_tokens


def test_everything_a_request_may_ask_for_works_in_graphs(engine, model):
    requests = {
        "penalized": Sampling(
            max_tokens=12, temperature=0, repetition_penalty=1.5, frequency_penalty=1.0, ignore_eos=True
        ),
        "filtered": Sampling(max_tokens=12, temperature=1.0, top_k=1),
        "long": greedy(12, min_tokens=12),
        "sampled": Sampling(max_tokens=12, temperature=1.2, seed=3, ignore_eos=True),
        "plain": greedy(12, logprobs=5, ignore_eos=True),
    }
    found = run(engine, {key: (PROMPTS[0], each) for key, each in requests.items()})
    assert found["plain"] == reference(model, PROMPTS[0], 12, eos_token_id=None)
    assert found["filtered"] == reference(model, PROMPTS[0], 12)
    assert found["penalized"] != found["plain"]
    assert all(len(found[key]) == 12 for key in ("penalized", "long", "sampled"))
    assert found["sampled"] == run(engine, {"a": (PROMPTS[0], requests["sampled"])})["a"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_log_probabilities_in_half_precision_are_near_the_references(model, torch, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no BF16")
    with opened(model, precision) as engine:
        scheduler = Scheduler(engine)
        for index, prompt in enumerate(PROMPTS):
            scheduler.add(str(index), prompt, greedy(8, logprobs=0, ignore_eos=True))
        events = collect(scheduler)
    for index, prompt in enumerate(PROMPTS):
        ids = ids_of(events[str(index)])
        given = [each.logprob for event in events[str(index)] for each in event.logprobs]
        with torch.inference_mode():
            logits = model.network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1)[range(8), ids].numpy()
        assert np.abs(given - wanted).mean() < (0.05 if precision == "fp16" else 0.4)


def test_requests_come_and_go_in_every_order_and_each_gets_its_own_tokens(engine, model):
    wanted = {index: reference(model, prompt, 24, eos_token_id=None) for index, prompt in enumerate(PROMPTS)}
    scheduler, random = Scheduler(engine), np.random.default_rng(0)
    events: dict[str, Any] = {}
    sent: dict[str, tuple[int, int]] = {}
    for number in range(150):
        index, tokens = int(random.integers(len(PROMPTS))), int(random.integers(1, 25))
        sent[str(number)] = index, tokens
        scheduler.add(str(number), PROMPTS[index], greedy(tokens, ignore_eos=True))
        if random.random() < 0.3:
            scheduler.cancel(str(random.integers(number + 1)))
        for _ in range(random.integers(4)):
            for event in scheduler.step():
                events.setdefault(event.key, []).append(event)
    collect(scheduler, events=events)
    for key, (index, tokens) in sent.items():
        ids = ids_of(events[key])
        assert ids == wanted[index][: len(ids)], key
        assert events[key][-1].finish == "cancelled" or len(ids) == tokens
    assert engine.stats().cache_use == 0


def test_a_cache_that_the_gpu_does_not_hold_is_refused_with_a_fix(model):
    with pytest.raises(EngineError, match="fewer cache_tokens"), opened(model, "fp16", cache_tokens=2**36):
        pass


SHAPES = {(9, 3, 64), (12, 2, 128), (4, 1, 256), (4, 4, 16), (6, 2, 96)}


@pytest.mark.parametrize(("heads", "kv_heads", "size"), sorted(SHAPES))
@pytest.mark.parametrize("normed", [False, True])
def test_the_kernels_give_the_plain_operations_numbers(torch, heads, kv_heads, size, normed):
    if not supported("cuda:0"):
        pytest.skip("the kernels are for compute capability 8.0 and up")
    from accel_lib.models import paged_kernels, paged_operations
    from accel_lib.models.paged_decoder import PAGE_TOKENS, Norm, Shape, Tokens

    torch.manual_seed(0)
    shape = Shape(heads=heads, kv_heads=kv_heads, head_size=size, scaling=size**-0.5)
    for dtype, near in ((torch.float16, 3e-3), (torch.float32, 1e-5)):
        weights = (torch.rand(size, device="cuda", dtype=dtype) + 0.5 for _ in range(2))
        norms = tuple(Norm(weight, 1e-6) for weight in weights) if normed else None
        for block, context in itertools.product((1, 16), (90, 2048)):
            pages = context // PAGE_TOKENS + 1
            tables = torch.zeros((4, pages), dtype=torch.int32, device="cuda")
            tables[:3] = (torch.randperm(3 * pages, device="cuda") + 1).view(3, pages)
            slots = torch.arange(3, device="cuda").repeat_interleave(block)
            last = torch.randint(block, context - block, (3,), device="cuda")
            positions = (last[:, None] + torch.arange(block, device="cuda")).view(-1)
            places = tables[slots, positions // PAGE_TOKENS].long() * PAGE_TOKENS + positions % PAGE_TOKENS
            cache = torch.randn((2, (3 * pages + 1) * PAGE_TOKENS, kv_heads, size), device="cuda", dtype=dtype)
            joined = torch.randn((3 * block, (heads + 2 * kv_heads) * size), device="cuda", dtype=dtype)
            rotation = torch.rand((2, context, size // 2), device="cuda")
            found = []
            for operations in (paged_operations, paged_kernels):
                plan = operations.plan(shape, blocks=3, block=block, context=context)
                at, written = Tokens(slots, positions, places, tables, block, plan), cache.clone()
                query = operations.rotate_and_store(joined.clone(), written, rotation, norms, at, shape)
                found.append((query, written, operations.attend(query, written, at, shape)))
            for plain, seen in zip(*found, strict=True):
                assert (seen.float() - plain.float()).norm() < near * plain.float().norm(), (dtype, block, context)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_the_other_kernels_give_the_plain_numbers(torch, activation):
    if not supported("cuda:0"):
        pytest.skip("the kernels are for compute capability 8.0 and up")
    from accel_lib.models import paged_kernels, paged_operations
    from accel_lib.models.paged_decoder import Linear, Norm

    torch.manual_seed(0)
    for tokens, width in ((1, 96), (7, 1536)):
        values, addend = (torch.randn((tokens, width), device="cuda") for _ in range(2))
        norm = Norm(torch.rand(width, device="cuda"), 1e-5)
        linear = Linear(torch.randn((203, width), device="cuda"), torch.randn(203, device="cuda"))
        keys, heat = torch.arange(tokens, device="cuda") * 12345, torch.linspace(0, 2, tokens, device="cuda")
        plain, seen = (
            (
                each.add_norm(total, addend, norm), total, each.product(values, linear),
                each.product(values, Linear(linear.weight, None)), each.gated(values, activation),
                each.add_noise(values, heat + (tokens == 1), keys),
            )
            for each, total in ((paged_operations, values.clone()), (paged_kernels, values.clone()))
        )  # fmt: skip
        for a, b in zip(plain, seen, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


@pytest.mark.triton
def test_triton_generates_on_the_gpu(model, tmp_path):
    from accel_lib.convert.generation_files import generation_to_transformers

    artifact = generation_to_transformers(model, tmp_path / "artifact")
    (tmp_path / "model_repository").mkdir()
    with serve(tmp_path / "model_repository") as server:
        served = server.add("generation", artifact)
        for text in ("w20 w30 w40", "w50 w7", "w199 w198 w197 w196"):
            ids = reference(model, model.encode(text), 4)
            assert served.generate(text, max_tokens=4, temperature=0) == model.decode(ids)
        assert "GPU device 0" in server.log


def test_a_tensorrt_engine_generates_what_its_onnx_file_does(model, tensorrt_here, tmp_path):  # noqa: ARG001
    half = to_onnx(model, precision="fp16", output=tmp_path / "fp16", progress=False)
    plan = to_tensorrt(half, max_batch_size=ROWS, output=tmp_path / "plan", progress=False)
    requests = {str(index): (prompt, greedy(12)) for index, prompt in enumerate(PROMPTS)}
    engines = OnnxEngine(half, rows=1, device="cpu"), open_generation(plan, rows=ROWS)
    expected, found = (run(engine, requests) for engine in engines)
    same = sum(found[key] == ids for key, ids in expected.items())
    assert same >= 0.75 * len(requests)  # two ways of rounding to 16 bits may choose another token now and again
    engines[1].close()
