"""What a benchmark compares: this library's engines and sentence-transformers, each with its ways to batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import TOKENIZER_FILE, Artifact
from accel_lib.engines import open_engine
from accel_lib.engines.batching import batch_tokens, padding_share, plan_batches, run_batches
from accel_lib.models.model import Model
from accel_lib.models.tokenizer import Tokenizer, prompt_text

BASELINE = "sentence-transformers"
_UNLIMITED = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to cut texts into batches; a batch holds at most `max_batch_tokens` padded tokens."""

    name: str
    max_batch_size: int = _UNLIMITED
    max_batch_tokens: int = _UNLIMITED
    sort: bool = True

    def limits(self) -> dict[str, Any]:
        """Keyword arguments of ``plan_batches`` and ``run_batches``."""
        return {name: getattr(self, name) for name in ("max_batch_size", "max_batch_tokens", "sort")}

    def padding(self, lengths: NDArray[np.int64]) -> float:
        """Share of padding among the tokens computed."""
        return padding_share(lengths, plan_batches(lengths, **self.limits()))


ONE_BY_ONE = Strategy(name="one by one", max_batch_size=1, sort=False)
AS_THEY_COME = Strategy(name="32 as they come", max_batch_size=32, sort=False)
SORTED = Strategy(name="32 sorted by length", max_batch_size=32)


def budget(tokens: int) -> Strategy:
    """Sorted by length, and cut so that a batch stays within a number of padded tokens."""
    return Strategy(name=f"sorted, ≤ {tokens:,} tokens", max_batch_tokens=tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that turns texts into vectors or logits, and the batching strategies worth trying with it."""

    name: str
    precision: str
    device: str
    size_bytes: int
    encode: Callable[[Sequence[str], Strategy], NDArray[np.float32]]
    lengths: Callable[[Sequence[str]], NDArray[np.int64]]
    strategies: tuple[Strategy, ...]
    close: Callable[[], None]
    packed: bool = False

    def padding(self, texts: Sequence[str], strategy: Strategy) -> float:
        """Share of padding among the tokens it computes."""
        return 0.0 if self.packed else strategy.padding(self.lengths(texts))


def open_candidate(candidate: Model | Artifact, *, device: str = "auto", **options: Any) -> Candidate:
    """Open a candidate on this machine, with options of its engine; raises what ``open_engine`` raises."""
    engine = open_engine(candidate, device=device, **options)
    tokenizer, prompt = _text_side(candidate)
    profiles = candidate.manifest.profiles if isinstance(candidate, Artifact) else ()
    packed = getattr(engine, "packed", False)
    widest = min((profile.max[0] for profile in profiles), default=_UNLIMITED)

    def encode(texts: Sequence[str], strategy: Strategy) -> NDArray[np.float32]:
        limits = strategy.limits() | {"max_batch_size": min(strategy.max_batch_size, widest)}
        return run_batches(engine, tokenizer(texts, prompt=prompt), tokenizer.pad_id, **limits)

    def lengths(texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([len(row) for row in tokenizer(texts, prompt=prompt)], dtype=np.int64)

    return Candidate(
        name=engine.name,
        precision=engine.precision,
        device=engine.device,
        size_bytes=candidate.size_bytes,
        encode=encode,
        lengths=lengths,
        strategies=(ONE_BY_ONE, SORTED, *map(budget, _budgets(engine.device))),
        close=engine.close,
        packed=packed,
    )


def baseline(model: Model, *, device: str, half: bool = False) -> Candidate:
    """sentence-transformers' own ``encode``, or transformers' own forward pass for its classifiers."""
    forward = _reference_forward(model, device=device, half=half)

    def encode(texts: Sequence[str], strategy: Strategy) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        output = forward([texts[index] for index in order], strategy.max_batch_size)
        return output[np.argsort(order)]

    return Candidate(
        name=f"{BASELINE} fp16" if half else BASELINE,
        precision="fp16" if half else "fp32",
        device=device,
        size_bytes=model.size_bytes // (2 if half else 1),
        encode=encode,
        lengths=model.lengths,
        strategies=tuple(_sorted(size) for size in ((1, 8, 32) if device == "cpu" else (32, 128, 256))),
        close=lambda: None,
    )


def _text_side(candidate: Model | Artifact) -> tuple[Tokenizer, str]:
    """Tokenizer and default prompt."""
    if isinstance(candidate, Model):
        return candidate.tokenizer, prompt_text(candidate.prompts, candidate.default_prompt)
    manifest = candidate.manifest
    tokenizer = Tokenizer.load(candidate.folder / TOKENIZER_FILE, manifest.max_length)
    return tokenizer, prompt_text(manifest.prompts, manifest.default_prompt)


def _sorted(size: int) -> Strategy:
    return (
        ONE_BY_ONE if size == 1 else dataclasses.replace(SORTED, name=f"{size} sorted by length", max_batch_size=size)
    )


def _budgets(device: str) -> tuple[int, int]:
    usual = batch_tokens(device)
    return (usual, 4 * usual) if device == "cpu" else (usual // 4, usual)


def _reference_forward(model: Model, *, device: str, half: bool) -> Callable[[list[str], int], NDArray[np.float32]]:
    """The reference on a device: as it is on the CPU, a copy moved over on a GPU."""
    if device == "cpu":
        return lambda texts, size: model.reference(texts, batch_size=size)
    loaded = copy.deepcopy(model.reference.loaded).to(device)
    loaded = loaded.half() if half else loaded
    if hasattr(loaded, "encode"):
        return lambda texts, size: loaded.encode(texts, batch_size=size, show_progress_bar=False)
    return lambda texts, size: _classify(loaded, texts, size, model.max_length)


def _classify(classifier: Any, texts: list[str], size: int, max_length: int) -> NDArray[np.float32]:
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            inputs = classifier.tokenizer(
                batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            ).to(classifier.device)
            parts.append(classifier(**inputs).logits.float().cpu().numpy())
    return np.concatenate(parts)
