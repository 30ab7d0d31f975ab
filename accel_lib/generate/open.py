"""From an artifact to the engine that generates with it, with admission above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError
from accel_lib.generate import GenerationEngine
from accel_lib.generate.scheduler import Policy, Scheduler
from accel_lib.models.hub import ModelSource

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

_ROWS = 8
_CACHE_TOKENS = 16_384
_MAX_WAITING = 512
_STEP_TOKENS = 128


def open_generation(
    artifact: Artifact,
    *,
    threads: int | None = None,
    rows: int = _ROWS,
    cache_tokens: int = _CACHE_TOKENS,
    max_waiting: int = _MAX_WAITING,
    step_tokens: int = _STEP_TOKENS,
    policy: Policy = "continuous",
) -> Scheduler:
    """An engine for an artifact, behind a `Scheduler`.

    Parameters
    ----------
    threads
        CPU threads; None leaves them to the engine.
    rows, cache_tokens
        Requests that run at once, and tokens of theirs in the key-value cache.
    max_waiting
        Requests that wait for a place; more are refused.
    step_tokens
        Most tokens of a step, prompts and answers together, where the engine cuts prompts as it is told: OpenVINO.
    policy
        When a request joins those that run: see `Scheduler`.

    Raises
    ------
    EngineError
        There is no engine for its format.
    """
    engine = _engine(artifact, threads, rows, cache_tokens, step_tokens)
    return Scheduler(engine, max_waiting=max_waiting, policy=policy)


def _engine(
    artifact: Artifact, threads: int | None, rows: int, cache_tokens: int, step_tokens: int
) -> GenerationEngine:
    if artifact.manifest.format == "transformers":
        from accel_lib.generate.transformers import TransformersEngine

        return TransformersEngine(_model(artifact, threads), rows=rows, cache_tokens=cache_tokens)
    if artifact.manifest.format == "openvino":
        from accel_lib.generate.openvino import OpenVINOEngine

        return OpenVINOEngine(artifact, rows=rows, cache_tokens=cache_tokens, threads=threads, step_tokens=step_tokens)
    if artifact.manifest.format == "onnx":
        from accel_lib.generate.onnxruntime import OnnxEngine

        return OnnxEngine(artifact, rows=rows, cache_tokens=cache_tokens, threads=threads)
    raise EngineError(
        "No engine generates with this artifact.",
        seen=artifact.name,
        fix="convert the model again: accel convert --model SmolLM2-135M-Instruct --output <folder>",
    )


def _model(artifact: Artifact, threads: int | None) -> GenerationModel:
    import torch

    from accel_lib.models.generation import build_generation_model

    if threads:
        torch.set_num_threads(threads)
    manifest = artifact.manifest
    place = ModelSource(name=manifest.model, source=manifest.source, folder=artifact.folder)
    return build_generation_model(place, max_length=manifest.max_length)
