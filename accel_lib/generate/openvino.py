"""OpenVINO GenAI's continuous batching behind the protocol: the engine for CPUs.

It is fed with token ids and sampling settings and read after every step. What it leaves to chance is set: precision,
cache, tokens of a step. It never bounds rows by itself, and a request that its cache cannot hold takes others with it,
so put a `Scheduler` above it. https://docs.openvino.ai/2026/openvino-workflow-generative.html
"""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_lib.artifact import GRAMMAR_FILES, OPENVINO_FILES, Artifact
from accel_lib.engines.openvino import has_bf16
from accel_lib.errors import EngineError, RequestError, require
from accel_lib.generate import Event, Finish, Limits, Sampling, Stats, TokenLogprob
from accel_lib.generate.json_schema import normalized
from accel_lib.generate.requests import check_request
from accel_lib.machine import cores, inspect_machine

_BLOCK_TOKENS = 32  # on a CPU
_THEIR_FILES = ("openvino_model.xml", "openvino_model.bin")
# With INT8 weights, activations are rounded to INT8 in groups of 32 as they are multiplied: 1.5 times as fast as
# without. BF16 around it is no faster, and further from the reference.
_COMPUTE: dict[str, dict[str, Any]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
}


@dataclasses.dataclass
class _Live:
    handle: Any
    sampling: Sampling
    stop_ids: frozenset[int]
    prompt_tokens: int
    started: bool = False
    cancelled: bool = False


class OpenVINOEngine:
    """Continuous batching on a CPU.

    Parameters
    ----------
    artifact
        What `accel_lib.convert.generation.generation_to_openvino` wrote.
    rows
        Requests at once.
    cache_tokens
        Tokens in the cache, rounded down to blocks of 32.
    threads
        CPU threads; None takes the cores that this process may use.
    step_tokens
        Most tokens of a step, prompts and answers together: a long prompt is cut, so that the others wait shortly.
    prefix_cache
        Keep the cache of ended requests as long as there is room, for prompts that begin alike.

    Raises
    ------
    EngineError
        The artifact is of another kind, is BF16 on a CPU without it, or does not open.
    """

    device = "cpu"

    def __init__(
        self,
        artifact: Artifact,
        *,
        rows: int = 8,
        cache_tokens: int = 16_384,
        threads: int | None = None,
        step_tokens: int = 128,
        prefix_cache: bool = True,
    ) -> None:
        manifest = artifact.manifest
        if (manifest.task, manifest.format) != ("generation", "openvino"):
            raise EngineError(
                "This engine runs language models that were converted to OpenVINO.",
                seen=f"{artifact.name}, {manifest.task}",
                fix="generation_to_openvino(accel.load_model('SmolLM2-135M-Instruct'))",
            )
        self.name = artifact.name
        self.precision = manifest.precision
        self.stop_ids = manifest.stop_ids
        blocks = cache_tokens // _BLOCK_TOKENS
        self.limits = Limits(
            rows=rows,
            cache_tokens=blocks * _BLOCK_TOKENS,
            block_tokens=_BLOCK_TOKENS,
            context_tokens=manifest.max_length,
            vocabulary=manifest.dimension,
            step_tokens=step_tokens,
        )
        self._genai = require("openvino_genai", extra="generate")
        self._ov = require("openvino", extra="openvino")
        self._has_grammar = all((artifact.folder / name).is_file() for name in GRAMMAR_FILES)
        self._live: dict[str, _Live] = {}
        self._count = 0
        self._stats = Stats(
            running=0, waiting=0, cache_use=0.0, steps=0, prompt_tokens=0, cached_tokens=0, generated_tokens=0
        )
        self._pipeline = self._opened(artifact, blocks, threads or cores(), step_tokens, prefix_cache)

    def _opened(self, artifact: Artifact, blocks: int, threads: int, step_tokens: int, prefix_cache: bool) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = blocks
        scheduler.max_num_batched_tokens = step_tokens
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = prefix_cache
        properties = compute_properties(self.precision) | {"INFERENCE_NUM_THREADS": threads}
        grammar = GRAMMAR_FILES if self._has_grammar else ()
        names = zip((*OPENVINO_FILES, *grammar), (*_THEIR_FILES, *grammar), strict=True)
        with tempfile.TemporaryDirectory(prefix="accel-generation-") as folder:
            for own, theirs in names:
                Path(folder, theirs).symlink_to((artifact.folder / own).resolve())
            try:
                return self._genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
            except RuntimeError as error:
                raise EngineError(
                    "OpenVINO cannot open this language model.",
                    seen=_last_line(error),
                    fix="convert it again: generation_to_openvino(model)",
                ) from error

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request; raises `RequestError` for one that it does not hold or honour."""
        check_request(self.limits, prompt_ids, sampling)
        if sampling.json_schema and not self._has_grammar:
            raise RequestError(
                "This artifact was converted without what a JSON schema needs.",
                seen=f"no {GRAMMAR_FILES[0]}",
                fix="convert the model again, or leave response_format out",
            )
        if key in self._live:
            raise RequestError("A request of that key is live.", seen=key, fix="give each request a key of its own")
        stops = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.stop_ids))
        ids = self._ov.Tensor(np.array([prompt_ids], dtype=np.int64))
        self._count += 1
        try:
            handle = self._pipeline.add_request(self._count, ids, self._settings(sampling, stops))
        except RuntimeError as error:
            raise RequestError(
                "OpenVINO refuses this request.", seen=_last_line(error), fix="leave out what it names"
            ) from error
        self._live[key] = _Live(handle, sampling, stops, len(prompt_ids))

    def _settings(self, sampling: Sampling, stops: frozenset[int]) -> Any:
        """Their name of each setting; those of sampling only where there is some, as they are refused otherwise."""
        chosen: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "min_new_tokens": sampling.min_tokens,
            "stop_token_ids": set(stops),
            "eos_token_id": min(stops, default=0),
            "ignore_eos": not stops,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logprobs": 0 if sampling.logprobs is None else 1,
            "apply_chat_template": False,
        }
        if sampling.temperature > 0:
            chosen |= {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or self.limits.vocabulary,
                "rng_seed": random.getrandbits(63) if sampling.seed is None else sampling.seed,
            }
        if sampling.json_schema:
            schema = normalized(sampling.json_schema)
            chosen["structured_output_config"] = self._genai.StructuredOutputConfig(json_schema=schema)
        return self._genai.GenerationConfig(**chosen)

    def cancel(self, key: str) -> None:
        """End a request; its event comes with the next step."""
        live = self._live.get(key)
        if live:
            live.handle.stop()
            live.cancelled = True

    def step(self) -> list[Event]:
        """One forward pass, with chunks of prompts in it."""
        if self._pipeline.has_non_finished_requests():
            try:
                self._pipeline.step()
            except RuntimeError as error:
                raise EngineError(
                    "OpenVINO's pipeline failed in a step.",
                    seen=_last_line(error),
                    fix="close this engine and open another one",
                ) from error
        events = [event for key, live in list(self._live.items()) if (event := self._event(key, live))]
        new = sum(len(event.token_ids) for event in events)
        self._stats = dataclasses.replace(
            self._stats, steps=self._stats.steps + 1, generated_tokens=self._stats.generated_tokens + new
        )
        return events

    def _event(self, key: str, live: _Live) -> Event | None:
        if live.cancelled:
            del self._live[key]
            return Event(key=key, finish="cancelled")
        ids, logprobs = self._read(live)
        status = live.handle.get_status()
        if not ids and status == self._genai.GenerationStatus.RUNNING:
            return None
        if ids and not live.started:
            live.started = True
            self._stats = dataclasses.replace(self._stats, prompt_tokens=self._stats.prompt_tokens + live.prompt_tokens)
        if status == self._genai.GenerationStatus.RUNNING:
            return Event(key=key, token_ids=ids, logprobs=logprobs)
        del self._live[key]
        if status == self._genai.GenerationStatus.IGNORED:
            return Event(key=key, token_ids=ids, error="The engine's cache was full, and it gave this request up.")
        finish: Finish = "stop" if ids and ids[-1] in live.stop_ids else "length"
        return Event(key=key, token_ids=ids, logprobs=logprobs, finish=finish)

    def _read(self, live: _Live) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...]]:
        ids: list[int] = []
        logprobs: list[float] = []
        while live.handle.can_read():
            for output in live.handle.read().values():
                ids += output.generated_ids
                logprobs += output.generated_log_probs
        if live.sampling.logprobs is None:
            return tuple(ids), ()
        return tuple(ids), tuple(TokenLogprob(token_id=i, logprob=p) for i, p in zip(ids, logprobs, strict=True))

    def stats(self) -> Stats:
        """Counts since the start, and the cache as the pipeline reports it."""
        use = float(self._pipeline.get_metrics().cache_usage) / 100
        return dataclasses.replace(self._stats, running=len(self._live), cache_use=use if math.isfinite(use) else 0.0)

    def close(self) -> None:
        """Give memory and threads back."""
        for live in self._live.values():
            live.handle.stop()
        self._live.clear()
        del self._pipeline


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]


def compute_properties(precision: str) -> dict[str, Any]:
    """What OpenVINO would otherwise choose by the CPU that it finds.

    Raises
    ------
    EngineError
        BF16 on a CPU that does not multiply it.
    """
    if precision == "bf16" and not has_bf16():
        raise EngineError(
            "This CPU does not multiply BF16 numbers.",
            seen=", ".join(inspect_machine().isa) or "no vector instructions",
            fix="open an fp32 or an int8 artifact: generation_to_openvino(model)",
        )
    return dict(_COMPUTE[precision])
