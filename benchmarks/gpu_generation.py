"""A language model on a GPU: ours beside transformers' static cache with torch.compile, and its continuous batching.

Run on a machine with a GPU (five minutes, most of them torch.compile's):

    python -m benchmarks.gpu_generation --output gpu-generation.json
    python -m benchmarks.gpu_generation --without-peers
    python -m benchmarks.gpu_generation --table gpu-generation.json

Shapes have random weights, in FP16; with `--model` a trained one is held against FP32 too. Steps are timed by the host,
from one set of tokens in its memory to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from accel_lib.generate import GenerationEngine, Sampling
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.torch import TorchEngine
from accel_lib.machine import inspect_machine
from accel_lib.models import load_model
from accel_lib.models.decoder import Decoder
from accel_lib.models.generation import GenerationModel
from accel_lib.models.paged_decoder import cache_bytes_per_token
from accel_lib.texts import load_texts

CONTEXT = 8192
SHAPES: dict[str, Callable[[], Any]] = {
    "SmolLM2-135M": lambda: transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    ),
    "Qwen2.5-1.5B": lambda: transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=1_536, intermediate_size=8_960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    ),
}  # fmt: skip
FIRST = "SmolLM2-135M"
ROWS = (1, 8, 64, 256)
PEER_ROWS = (1, 64, 256)  # each is compiled
PROMPT_TOKENS = 64
WARM_STEPS, TIMED_STEPS = 30, 100
REQUESTS, MEAN_TOKENS, MOST_TOKENS = 256, 40, 160  # of exponential lengths
TARGETS = {("SmolLM2-135M", 1): 900, ("SmolLM2-135M", 64): 35_000, ("SmolLM2-135M", 256): 100_000}
TARGET_LENGTHS = 30_000
PROMPTS, ANSWER_TOKENS = 16, 48
SEEDED = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-generation.json"))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--without-peers", action="store_true", help="leave transformers out, which compiles")
    parser.add_argument("--model", help="name or folder of a trained model, to hold FP16 against FP32")
    parser.add_argument("--table", type=Path, help="print kept results as Markdown and end")
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(asked.table.read_text())))
        return
    kept: dict[str, Any] = {"facts": facts(), "steps": [], "lengths": [], "agreement": {}}
    print(kept["facts"], flush=True)
    if asked.model:
        kept["agreement"] = agreement(load_model(asked.model, task="generation"))
        print(kept["agreement"], flush=True)
    for name in asked.shapes:
        model = random_model(name)
        measure(name, model, asked.rows, kept)
        if not asked.without_peers:
            peers(name, model, kept)
        asked.output.write_text(json.dumps(kept, indent=1) + "\n")
        del model
        torch.cuda.empty_cache()
    for line in verdict(kept):
        print(line)


def facts() -> dict[str, Any]:
    card = inspect_machine().gpus[0]
    return {
        "card": card.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "copy_tb_per_s": copy_rate() / 1e12,
        "prompt_tokens": PROMPT_TOKENS,
        "requests": f"{REQUESTS} at once, prompts of 34 to 151 tokens, answers exponential, mean {MEAN_TOKENS} tokens",
    }


def copy_rate() -> float:
    """Bytes read and written per second by a copy of 4 GB inside the GPU's memory."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    taken = []
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * source.numel() / float(np.median(taken))


def random_model(name: str) -> GenerationModel:
    """Of a shape, with random weights on the GPU, and nothing that reads text."""
    torch.manual_seed(0)
    config = SHAPES[name]()
    with torch.device("cuda"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return GenerationModel(
        name=name,
        source="random weights",
        folder=Path(),
        network=network.eval().requires_grad_(False),
        tokenizer=cast("Any", None),
        chat_template=None,
        context_tokens=CONTEXT,
        vocabulary=config.vocab_size,
        stop_ids=(),
    )


def measure(name: str, model: GenerationModel, many: list[int], kept: dict[str, Any]) -> None:
    """Steps of so many rows, greedy and sampled, and requests of mixed lengths."""
    began = time.perf_counter()
    engine = TorchEngine(model, device="cuda", rows=max(many), cache_tokens=max(many) * 1024)
    print(f"{name}: opened in {time.perf_counter() - began:.1f} s", flush=True)
    with contextlib.closing(engine):
        for rows in many:
            for temperature in (0.0, 1.0):
                step_ms = median_step_ms(engine, rows, temperature)
                limit_ms = 1e3 * step_bytes(model, rows) / (kept["facts"]["copy_tb_per_s"] * 1e12)
                add_step(
                    kept, name, engine.name, rows, step_ms, temperature=temperature, memory_share=limit_ms / step_ms
                )
        for _ in range(3):
            tokens, seconds = answer_all(engine, lengths(model.vocabulary))
            add_lengths(kept, name, engine.name, tokens, seconds)


def add_step(kept: dict[str, Any], shape: str, engine: str, rows: int, step_ms: float, **more: float) -> None:
    row = {
        "shape": shape,
        "engine": engine,
        "rows": rows,
        "step_ms": step_ms,
        "tokens_per_s": 1e3 * rows / step_ms,
        **more,
    }
    kept["steps"].append(row)
    print(row, flush=True)


def add_lengths(kept: dict[str, Any], shape: str, engine: str, tokens: int, seconds: float) -> None:
    row = {"shape": shape, "engine": engine, "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
    kept["lengths"].append(row)
    print(row, flush=True)


def step_bytes(model: GenerationModel, rows: int) -> float:
    """The least that a step reads: the weights, whose table of embeddings is the head too, and the cache."""
    decoder = Decoder(model.network, model.folder)
    cached = PROMPT_TOKENS + WARM_STEPS + TIMED_STEPS / 2
    return model.size_bytes / 2 + rows * cached * cache_bytes_per_token(decoder, torch.float16)


def median_step_ms(engine: GenerationEngine, rows: int, temperature: float) -> float:
    """All rows running, from one step to the next."""
    scheduler = Scheduler(engine)
    random = np.random.default_rng(0)
    for index in range(rows):
        ids = random.integers(0, engine.limits.vocabulary, PROMPT_TOKENS).tolist()
        tokens = WARM_STEPS + TIMED_STEPS + 10
        scheduler.add(
            str(index), ids, Sampling(max_tokens=tokens, temperature=temperature, seed=index, ignore_eos=True)
        )
    for _ in range(WARM_STEPS):
        scheduler.step()
    times = [time.perf_counter()]
    made = 0
    for _ in range(TIMED_STEPS):
        made += sum(len(event.token_ids) for event in scheduler.step())
        times.append(time.perf_counter())
    if made != rows * TIMED_STEPS:
        raise AssertionError(f"{made} tokens in {TIMED_STEPS} steps of {rows} rows")
    while not scheduler.idle:
        scheduler.step()
    return 1e3 * (times[-1] - times[0]) / TIMED_STEPS


def lengths(vocabulary: int) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens to answer each with."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, vocabulary, random.integers(34, 152)).tolist() for _ in range(REQUESTS)]
    answers = np.clip(random.exponential(MEAN_TOKENS, REQUESTS), 1, MOST_TOKENS).astype(int)
    return list(zip(prompts, answers.tolist(), strict=True))


def answer_all(engine: GenerationEngine, requests: list[tuple[list[int], int]]) -> tuple[int, float]:
    """Tokens, and the seconds that they took."""
    scheduler = Scheduler(engine)
    began = time.perf_counter()
    for index, (prompt, tokens) in enumerate(requests):
        scheduler.add(str(index), prompt, Sampling(max_tokens=tokens, temperature=0, ignore_eos=True))
    made = 0
    while not scheduler.idle:
        made += sum(len(event.token_ids) for event in scheduler.step())
    return made, time.perf_counter() - began


def peers(name: str, model: GenerationModel, kept: dict[str, Any]) -> None:
    """transformers' own ways, in FP16 too, with the settings that make each fastest here."""
    network: Any = model.network.half()
    for rows in PEER_ROWS:
        with reported(f"{name}, static cache with compile, {rows} rows"):
            add_step(kept, name, "transformers, static cache, compiled", rows, compiled_step_ms(network, rows))
    for label, graphs in (("transformers, continuous batching", None), ("the same, CUDA graphs asked for", True)):
        with reported(f"{name}, {label}"):
            for _ in range(2):
                add_lengths(kept, name, label, *continuous(network, lengths(model.vocabulary), graphs))


def compiled_step_ms(network: Any, rows: int) -> float:
    """`generate` on a static cache, which compiles the step with CUDA graphs; the difference of two lengths."""
    ids = torch.randint(0, network.config.vocab_size, (rows, PROMPT_TOKENS), device="cuda")
    common = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "cache_implementation": "static"}

    def seconds(tokens: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        network.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, **common
        )
        torch.cuda.synchronize()
        return time.perf_counter() - began

    short, long = WARM_STEPS, WARM_STEPS + TIMED_STEPS
    for tokens in (long, short, long):
        seconds(tokens)
    return 1e3 * float(np.median([seconds(long) - seconds(short) for _ in range(3)])) / TIMED_STEPS


def continuous(network: Any, requests: list[tuple[list[int], int]], graphs: bool | None) -> tuple[int, float]:
    """transformers' manager, with all requests at once."""
    manager = network.init_continuous_batching(
        generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            max_batch_tokens=2048, max_requests_per_batch=REQUESTS, use_cuda_graph=graphs, max_memory_percent=0.5
        ),
    )
    manager.start()
    try:
        began = time.perf_counter()
        for index, (prompt, tokens) in enumerate(requests):
            manager.add_request(prompt, request_id=str(index), max_new_tokens=tokens)
        made = ended = 0
        while ended < len(requests):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError(str(manager.background_thread_status.fatal_error))
            if result is not None and result.is_finished():
                made, ended = made + len(result.generated_tokens), ended + 1
        return made, time.perf_counter() - began
    finally:
        manager.stop(block=True)


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """What a peer cannot do is printed, and the others go on."""
    try:
        yield
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {str(error)[:300]}", flush=True)


def agreement(model: GenerationModel) -> dict[str, Any]:
    """Greedy answers in FP32 and FP16 beside transformers' in FP32; and seeds, alone beside in a batch."""
    prompts = [model.encode_chat([{"role": "user", "content": text}]) for text in load_texts("passages", limit=PROMPTS)]
    exact = [greedy(model, prompt) for prompt in prompts]
    found: dict[str, Any] = {"model": model.name, "prompts": PROMPTS, "tokens": ANSWER_TOKENS}
    for precision in ("fp32", "fp16", "bf16"):
        with contextlib.closing(
            TorchEngine(model, device="cuda", precision=precision, rows=PROMPTS, cache_tokens=PROMPTS * 1024)
        ) as engine:
            plain = Sampling(max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True)
            same = answers(engine, prompts, [plain] * PROMPTS)
            seeded = [
                Sampling(max_tokens=ANSWER_TOKENS, temperature=1.0, seed=each, ignore_eos=True)
                for each in range(SEEDED)
            ]
            together = answers(engine, prompts[:SEEDED], seeded)
            alone = [answers(engine, [prompt], [each])[0] for prompt, each in zip(prompts, seeded, strict=True)]
        found[precision] = {
            "greedy_equal": sum(a == b for a, b in zip(same, exact, strict=True)),
            "likeliest_alike": likeliest_alike(model, prompts, same),
            "seeded_alone_as_in_a_batch": sum(a == b for a, b in zip(alone, together, strict=True)),
        }
    return found


def greedy(model: GenerationModel, prompt: list[int]) -> list[int]:
    network: Any = model.network.cuda()
    ids = torch.tensor([prompt], device="cuda")
    common = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        made = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, **common)
    return made[0, len(prompt) :].tolist()


def answers(engine: GenerationEngine, prompts: list[list[int]], samplings: list[Sampling]) -> list[list[int]]:
    scheduler = Scheduler(engine)
    for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        scheduler.add(str(index), prompt, sampling)
    made: list[list[int]] = [[] for _ in prompts]
    while not scheduler.idle:
        for event in scheduler.step():
            made[int(event.key)] += event.token_ids
    return made


def likeliest_alike(model: GenerationModel, prompts: list[list[int]], made: list[list[int]]) -> float:
    """Share of the tokens that are the reference's likeliest too, after the same text."""
    network: Any = model.network.cuda()
    same = []
    for prompt, answer in zip(prompts, made, strict=True):
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + answer], device="cuda")).logits[0, len(prompt) - 1 : -1]
        same += (logits.argmax(-1).cpu().numpy() == np.array(answer)).tolist()
    return float(np.mean(same))


def table(kept: dict[str, Any]) -> str:
    """A row an engine and shape: greedy tokens per second by rows, and of mixed lengths; what is best of the latter."""
    steps = [row for row in kept["steps"] if row.get("temperature", 0) == 0]
    lines = [
        "| Shape | Engine | " + " | ".join(f"{rows} rows" if rows > 1 else "1 row" for rows in ROWS) + " | mixed |"
    ]
    lines.append("|---" * (len(ROWS) + 3) + "|")
    for shape, engine in dict.fromkeys((row["shape"], row["engine"]) for row in (*steps, *kept["lengths"])):
        own = {row["rows"]: row for row in steps if (row["shape"], row["engine"]) == (shape, engine)}
        mixed = [row["tokens_per_s"] for row in kept["lengths"] if (row["shape"], row["engine"]) == (shape, engine)]
        cells = [cell(own[rows]) if rows in own else "" for rows in ROWS]
        lines.append(f"| {shape} | {engine} | {' | '.join(cells)} | {f'{max(mixed):,.0f}' if mixed else ''} |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    share = f" ({row['memory_share']:.0%})" if "memory_share" in row else ""
    return f"{row['tokens_per_s']:,.0f}{share}"


def verdict(kept: dict[str, Any]) -> list[str]:
    """Each target of the first shape, and whether it was met."""
    found = {(row["shape"], row["rows"]): row for row in kept["steps"] if row.get("temperature") == 0}
    lines = []
    for key, wanted in TARGETS.items():
        if key in found:
            lines.append(line(f"{key[0]}, {key[1]} rows", found[key]["tokens_per_s"], wanted))
    mixed = [
        row["tokens_per_s"] for row in kept["lengths"] if row["shape"] == FIRST and row["engine"].startswith("PyTorch")
    ]
    return lines + ([line(f"{FIRST}, mixed lengths", float(np.median(mixed)), TARGET_LENGTHS)] if mixed else [])


def line(what: str, seen: float, wanted: float) -> str:
    return f"{'met' if seen >= wanted else 'MISSED'}: {what}, {seen:,.0f} tokens/s, wanted {wanted:,.0f}"


if __name__ == "__main__":
    main()
