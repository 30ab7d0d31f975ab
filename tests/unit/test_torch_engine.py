"""What is special about the engine in PyTorch: it reads a pass late, samples by itself, and keeps its cache in pages.

What it has in common with every engine is in `tests/unit/test_generate.py`; what only a GPU shows, in
`tests/integration/test_gpu_generation.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from accel_lib.artifact import Artifact
from accel_lib.convert.generation_files import generation_to_transformers
from accel_lib.errors import EngineError, ModelError, RequestError
from accel_lib.generate import Sampling
from accel_lib.generate.open import open_generation
from accel_lib.generate.passes import _rows_size
from accel_lib.generate.sampler import Mode, Sampler
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.torch import TorchEngine
from accel_lib.generate.transformers import TransformersEngine
from accel_lib.models import load_model, paged_operations
from accel_lib.models.decoder import Decoder
from accel_lib.models.paged_decoder import PagedDecoder
from tests import causal
from tests.generation import collect, greedy, ids_of, reference, run
from tests.tiny import WORDS, llama_folder, tiny_prompts

PROMPTS = tiny_prompts(6)
FREE = Sampling(max_tokens=16, temperature=1.0, seed=5, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(folder, **options):
    return load_model(llama_folder(folder / "tiny", **options), task="generation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engine(model):
    opened = TorchEngine(model, device="cpu", rows=4, cache_tokens=1024)
    yield opened
    opened.close()


FAMILIES = {
    "qwen2": lambda shape: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape)),
    "qwen3": lambda shape: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=8)),
    "gemma": lambda shape: transformers.GemmaForCausalLM(transformers.GemmaConfig(**shape, head_dim=16)),
    "llama with biases, untied": lambda shape: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**shape | {"tie_word_embeddings": False}, attention_bias=True, mlp_bias=True)
    ),
}
SHAPE = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.4, "bos_token_id": 0,
    "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_converts_gives_transformers_own_tokens(family, tmp_path):
    torch.manual_seed(1)
    network = FAMILIES[family](SHAPE)
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    model = tiny(tmp_path, network=network)
    engine = TorchEngine(model, device="cpu", rows=4, cache_tokens=1024)
    requests = {str(index): (prompt, greedy(20, ignore_eos=True)) for index, prompt in enumerate(PROMPTS)}
    found = run(engine, requests)
    engine.close()
    assert all(found[key] == reference(model, prompt, 20, eos_token_id=None) for key, (prompt, _) in requests.items())


def test_another_family_is_refused_by_name(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    model = tiny(tmp_path, network=transformers.GPT2LMHeadModel(config))
    with pytest.raises(ModelError, match="gpt2"):
        TorchEngine(model, device="cpu")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gemma 2, windows and caps", "capped scores"),
        ("gemma 3, wide windows", "two rotary embeddings"),
        ("mistral, windows", "windows"),
        ("phi3, half of a head turned", "turned in part"),
    ],
)
def test_what_its_layers_do_not_compute_is_refused_by_name(family, said, tmp_path):
    model = tiny(tmp_path, network=causal.FAMILIES[family]())
    with pytest.raises(ModelError, match=said):
        TorchEngine(model, device="cpu")


def test_a_precision_that_does_not_run_there_and_a_gpu_that_is_not_there_are_refused(model):
    with pytest.raises(EngineError, match="fp16 on cpu"):
        TorchEngine(model, device="cpu", precision="fp16")
    with pytest.raises(EngineError, match="no such GPU"):
        TorchEngine(model, device="cuda:63")


def test_more_than_it_holds_is_refused_and_the_others_do_not_notice(engine, model):
    for index in range(4):
        engine.add(str(index), PROMPTS[index], greedy(8))
    with pytest.raises(RequestError, match="is full"):
        engine.add("4", PROMPTS[4], greedy(8))
    with pytest.raises(RequestError, match="key is live"):
        engine.add("0", PROMPTS[0], greedy(8))
    events: dict = {}
    while engine.stats().running:
        for event in engine.step():
            events.setdefault(event.key, []).append(event)
    assert {key: ids_of(each) for key, each in events.items()} == {
        str(index): reference(model, PROMPTS[index], 8) for index in range(4)
    }


@pytest.mark.parametrize("step_tokens", [16, 48, 4096])
def test_prompts_cut_into_chunks_give_the_same_tokens(model, step_tokens):
    engine = TorchEngine(model, device="cpu", rows=4, cache_tokens=2048, step_tokens=step_tokens)
    long = [9 + index % 90 for index in range(300)]
    requests = {"long": (long, greedy(9)), **{str(index): (PROMPTS[index], greedy(9)) for index in range(3)}}
    found = run(engine, requests)
    engine.close()
    assert all(found[key] == reference(model, prompt, 9) for key, (prompt, _) in requests.items())


def test_pages_and_rows_come_back_after_any_end(engine, model):
    scheduler = Scheduler(engine)
    stop = reference(model, PROMPTS[0], 4, eos_token_id=None)[2]
    for turn in range(30):
        scheduler.add(f"stop {turn}", PROMPTS[0], greedy(60, stop_ids=(stop,), ignore_eos=True))
        scheduler.add(f"length {turn}", PROMPTS[1], greedy(1 + turn))
        scheduler.add(f"gone {turn}", PROMPTS[2], greedy(60))
        for _ in range(turn % 4):
            scheduler.step()
        scheduler.cancel(f"gone {turn}")
        collect(scheduler)
    assert (engine.stats().running, engine.stats().cache_use) == (0, 0)
    assert sorted(engine._pages) == list(range(1, 33))
    assert sorted(engine._slots) == [0, 1, 2, 3]


def test_logits_that_are_no_numbers_end_their_own_request_alone(tmp_path):
    folder = llama_folder(tmp_path / "tiny", tie_word_embeddings=False)
    model = load_model(folder, task="generation")
    bad = WORDS - 1
    with torch.no_grad():
        model.network.model.embed_tokens.weight[bad] = torch.nan
    engine = TorchEngine(model, device="cpu", rows=2, cache_tokens=128)
    scheduler = Scheduler(engine)
    prompts = [[token for token in prompt if token != bad] for prompt in PROMPTS]
    for turn in range(4):  # the pages that it wrote into are used again
        scheduler.add(f"good {turn}", prompts[turn], greedy(12, ignore_eos=True))
        scheduler.add(f"bad {turn}", [6, bad, 7], greedy(12))
        events = collect(scheduler)
        assert "no number" in events[f"bad {turn}"][-1].error
        assert ids_of(events[f"good {turn}"]) == reference(model, prompts[turn], 12, eos_token_id=None)
    engine.close()


def test_a_seed_gives_the_same_text_beside_requests_that_need_more(engine):
    alone = run(engine, {"a": (PROMPTS[0], FREE)})["a"]
    others = {
        "penalized": dataclasses.replace(FREE, seed=6, repetition_penalty=1.3, frequency_penalty=0.5),
        "filtered": dataclasses.replace(FREE, seed=7, top_p=0.8, top_k=20),
        "greedy": greedy(10, logprobs=3),
    }
    beside = run(engine, {**{key: (PROMPTS[0], each) for key, each in others.items()}, "a": (PROMPTS[0], FREE)})
    assert beside["a"] == alone
    assert run(engine, {"b": (PROMPTS[0], dataclasses.replace(FREE, seed=8))})["b"] != alone
    first, second = (run(engine, {"c": (PROMPTS[0], dataclasses.replace(FREE, seed=None))})["c"] for _ in range(2))
    assert first != second


def test_the_likeliest_tokens_are_reported_in_order_and_without_penalties(engine, model):
    sampling = greedy(6, logprobs=4, ignore_eos=True, repetition_penalty=1.7)
    scheduler = Scheduler(engine)
    scheduler.add("a", PROMPTS[3], sampling)
    events = collect(scheduler)["a"]
    ids = ids_of(events)
    with torch.inference_mode():
        logits = model.network(torch.tensor([PROMPTS[3] + ids])).logits[0, len(PROMPTS[3]) - 1 : -1]
    wanted, order = logits.log_softmax(-1).sort(descending=True)
    for place, given in enumerate(each for event in events for each in event.logprobs):
        assert [token for token, _ in given.top] == order[place, :4].tolist()
        np.testing.assert_allclose([value for _, value in given.top], wanted[place, :4].numpy(), atol=1e-4)


SHARES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def drawn(count, **settings):
    """How often each token of a fixed distribution is chosen, by as many seeds."""
    sampler = Sampler(count, len(SHARES), "cpu", paged_operations)
    slots = torch.arange(count)
    samplings = [Sampling(max_tokens=1, seed=seed, **settings) for seed in range(count)]
    sampler.start(slots, [[0]] * count, samplings, [frozenset()] * count)
    logits = torch.tensor(np.log(SHARES), dtype=torch.float32).expand(count, -1)
    chosen = sampler.choose(logits, slots, max(map(Mode.of, samplings)))
    return np.bincount(chosen.ids.numpy(), minlength=len(SHARES)) / count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"temperature": 1.0}, SHARES),
        ({"temperature": 0.5}, SHARES**2 / (SHARES**2).sum()),
        ({"temperature": 1.0, "top_k": 2}, np.array([4, 3, 0, 0, 0]) / 7),
        ({"temperature": 1.0, "top_p": 0.6}, np.array([4, 3, 0, 0, 0]) / 7),
        ({"temperature": 1.0, "top_p": 0.75, "top_k": 4}, np.array([8, 6, 3, 0, 0]) / 17),
        ({"temperature": 0.0}, np.array([1, 0, 0, 0, 0])),
    ],
)
def test_tokens_are_drawn_by_their_probabilities(settings, wanted):
    count = 20_000
    assert np.abs(drawn(count, **settings) - wanted).max() < 5 * np.sqrt(0.25 / count)


def test_noise_differs_by_seed_by_place_and_by_token_and_is_uniform():
    keys = paged_operations.mixed(torch.arange(64) * 3 + 1)
    scores = paged_operations.add_noise(torch.zeros(64, 5000), torch.ones(64), keys)
    shares = torch.exp(-torch.exp(-scores.double())).numpy()  # the distribution function of Gumbel's noise
    assert len(np.unique(scores.numpy())) > 0.99 * scores.numel()
    assert abs(shares.mean() - 0.5) < 0.003
    assert np.abs(np.histogram(shares, bins=20, range=(0, 1))[0] / shares.size - 0.05).max() < 0.002
    assert np.abs(np.corrcoef(shares)[np.triu_indices(64, 1)]).max() < 0.08


def test_sizes_of_graphs_waste_at_most_a_third():
    assert [_rows_size(rows) for rows in (1, 2, 3, 4, 5, 7, 9, 13, 200)] == [1, 2, 3, 4, 6, 8, 12, 16, 256]
    assert all(rows <= _rows_size(rows) < 1.5 * rows for rows in range(1, 300))


def test_a_captured_pass_may_see_more_than_its_texts_have(model):
    """On older GPUs attention gathers a bound of tokens: what lies beyond a text's own changes nothing."""
    decoder = PagedDecoder(
        Decoder(model.network, model.folder), pages=9, context_tokens=128, device="cpu", dtype=torch.float32,
        operations=paged_operations,
    )  # fmt: skip
    tables = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]], dtype=torch.int32)
    ids = torch.tensor(PROMPTS[0][:2] * 8)
    slots, positions = torch.ones(16, dtype=torch.int64), torch.arange(16)
    logits = []
    with torch.inference_mode():
        for plan in (16, 128):
            decoder.caches.fill_(torch.nan)
            total = torch.empty(16, 32)
            decoder.forward(ids, slots, positions, tables, total=total, block=16, plan=plan)
            logits.append(decoder.logits(total))
        wanted = model.network(ids[None]).logits[0]
    torch.testing.assert_close(logits[0], logits[1])
    torch.testing.assert_close(logits[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_artifact_opens_the_engine_of_its_device(model, tmp_path):
    artifact = generation_to_transformers(model, tmp_path / "artifact")
    scheduler = open_generation(Artifact.load(artifact.folder), device="cpu", rows=2, cache_tokens=128)
    assert isinstance(scheduler.engine, TransformersEngine)
    scheduler.close()
    with pytest.raises(EngineError, match="no such GPU"):
        open_generation(artifact, device="cuda:63")
