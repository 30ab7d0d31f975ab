"""How far a converted language model is from its reference, token by token.

Equal tokens judge exact precisions alone: with others one near-tie changes all that follows. So the reference also
reads what the candidate wrote, and at each place the likeliest tokens and the distributions are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.convert.declared import as_declared
from accel_lib.errors import require
from accel_lib.generate import GenerationEngine, Sampling
from accel_lib.generate.onnxruntime import OnnxEngine, OnnxNetwork
from accel_lib.generate.openvino import OpenVINOEngine
from accel_lib.generate.openvino_logits import OpenVINOLogits
from accel_lib.generate.scheduler import Scheduler
from accel_lib.generate.tensorrt import TensorRTEngine, TensorRTNetwork
from accel_lib.models.generation import GenerationModel

_ANSWER_TOKENS = 24
_ROWS = 8
_LONG_TOKENS = 1024
_CHUNK = 128  # tokens whose distributions are compared at once: 50 MB each of a vocabulary of 49,152
_Logits = Callable[[Sequence[int]], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was measured; see `measure_agreement`.

    Parameters
    ----------
    fits
        Whether there is one logit for each token id.
    finite
        Whether all logits are numbers.
    greedy
        Share of prompts whose greedy tokens, up to the end, are those that the reference would have written.
    top1
        Share of places at which both have the same likeliest token, given the same text before it.
    divergence, worst
        Kullback-Leibler divergence from the reference's distribution, in nats a token: mean, and of the worst text.
    """

    fits: bool
    finite: bool
    greedy: float = 0.0
    top1: float = 0.0
    divergence: float = np.inf
    worst: float = np.inf


def measure_agreement(
    artifact: Artifact, reference: GenerationModel, texts: Sequence[str], *, threads: int | None = None
) -> Agreement:
    """Let the artifact answer each of the texts, and compare each token, and those of one long text too."""
    prompts = [_prompt(reference, text) for text in texts]
    room = _ROWS * (max(map(len, prompts)) + _ANSWER_TOKENS + 64)
    engine, logits_of = _opened(artifact, room, threads)
    answers = _greedy_answers(engine, prompts)
    greedy: list[bool] = []
    same: list[NDArray[np.bool_]] = []
    divergences: list[NDArray[np.float64]] = []
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    for index, ids in enumerate([*sequences, _long(reference, texts)]):
        right, found = _reference_logits(reference, ids), logits_of(ids)
        if found.shape != right.shape or not np.isfinite(found).all():
            return Agreement(fits=found.shape == right.shape, finite=bool(np.isfinite(found).all()))
        if index < len(prompts):
            greedy.append(_is_greedy(len(prompts[index]), answers[index], right, reference.stop_ids))
        same.append(found.argmax(axis=1) == right.argmax(axis=1))
        divergences.append(kl_divergence(right, found))
    return Agreement(
        fits=True,
        finite=True,
        greedy=float(np.mean(greedy)),
        top1=float(np.concatenate(same).mean()),
        divergence=float(np.concatenate(divergences).mean()),
        worst=float(max(each.mean() for each in divergences)),
    )


def _prompt(reference: GenerationModel, text: str) -> list[int]:
    if reference.chat_template is None:
        return reference.encode(text)
    return reference.encode_chat([{"role": "user", "content": text}])


def _long(reference: GenerationModel, texts: Sequence[str]) -> list[int]:
    """One sequence of many positions, for what only goes wrong far from the beginning."""
    ids: list[int] = []
    while len(ids) < min(_LONG_TOKENS, reference.context_tokens):
        ids += reference.encode(" ".join(texts))
    return ids[: min(_LONG_TOKENS, reference.context_tokens)]


def _opened(artifact: Artifact, cache_tokens: int, threads: int | None) -> tuple[GenerationEngine, _Logits]:
    """The engine of an artifact, and what gives the logits of whole sequences as that engine computes them."""
    if artifact.manifest.format == "onnx":
        half = artifact.manifest.precision == "fp16"
        graph = as_declared(artifact.path)[0] if half else None  # a CPU would compute it in FP32
        network = OnnxNetwork(artifact, device="cpu", threads=threads, graph=graph)
        return OnnxEngine(artifact, rows=_ROWS, cache_tokens=cache_tokens, network=network), network.logits
    if artifact.manifest.format == "tensorrt":
        on_gpu = TensorRTNetwork(artifact)
        return TensorRTEngine(artifact, rows=_ROWS, network=on_gpu), on_gpu.logits
    engine = OpenVINOEngine(artifact, rows=_ROWS, cache_tokens=cache_tokens, threads=threads)
    return engine, OpenVINOLogits(artifact, threads=threads)


def _greedy_answers(engine: GenerationEngine, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens that the engine gives, several requests at a time."""
    scheduler = Scheduler(engine)
    answers: list[list[int]] = [[] for _ in prompts]
    try:
        for index, prompt in enumerate(prompts):
            scheduler.add(str(index), prompt, Sampling(max_tokens=_ANSWER_TOKENS, temperature=0))
        while not scheduler.idle:
            for event in scheduler.step():
                answers[int(event.key)] += event.token_ids
    finally:
        scheduler.close()
    return answers


def _reference_logits(reference: GenerationModel, ids: Sequence[int]) -> NDArray[np.float32]:
    torch = require("torch", extra="models")
    with torch.inference_mode():
        logits: NDArray[np.float32] = reference.network(torch.tensor([list(ids)])).logits[0].float().numpy()
    return logits


def _is_greedy(prompt_tokens: int, answer: Sequence[int], right: NDArray[np.float32], stop_ids: Sequence[int]) -> bool:
    """Whether the reference would have written this answer, token by token, and ended it there."""
    if not answer:
        return False
    ended = answer[-1] in stop_ids or len(answer) == _ANSWER_TOKENS
    return ended and right[prompt_tokens - 1 : -1].argmax(axis=1).tolist() == list(answer)


def kl_divergence(right: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of two sets of logits ``[tokens, vocabulary]``, in nats, float64 ``[tokens]``."""
    torch = require("torch", extra="models")
    parts = []
    for start in range(0, len(right), _CHUNK):
        own, theirs = (
            torch.from_numpy(each[start : start + _CHUNK]).double().log_softmax(dim=1) for each in (right, found)
        )
        parts.append(torch.nn.functional.kl_div(theirs, own, reduction="none", log_target=True).sum(dim=1).numpy())
    return np.concatenate(parts)
