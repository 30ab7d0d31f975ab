"""From an artifact to the engine that generates with it, with admission above."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from accel_lib.artifact import Artifact
from accel_lib.errors import EngineError, ModelError
from accel_lib.generate import GenerationEngine
from accel_lib.generate.scheduler import Policy, Scheduler
from accel_lib.models.hub import ModelSource

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

_ROWS = 8  # on a CPU
_CACHE_TOKENS = 16_384
_GPU_ROWS = 256
_MAX_WAITING = 512
_STEP_TOKENS = 128
_GPU_STEP_TOKENS = 2048

log = logging.getLogger("accel.generate")


def open_generation(
    artifact: Artifact,
    *,
    device: str = "auto",
    threads: int | None = None,
    rows: int | None = None,
    cache_tokens: int | None = None,
    max_waiting: int = _MAX_WAITING,
    step_tokens: int | None = None,
    policy: Policy = "continuous",
) -> Scheduler:
    """An engine for an artifact, behind a `Scheduler`.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; what was converted to OpenVINO runs on the CPU.
    threads
        CPU threads; None leaves them to the engine.
    rows, cache_tokens
        Requests that run at once, and tokens of theirs in the key-value cache. None takes 8 and 16,384 on a CPU; on a
        GPU 256, and half of its free memory.
    max_waiting
        Requests that wait for a place; more are refused.
    step_tokens
        Most tokens of a step, where the engine cuts prompts as it is told: None takes 128 for OpenVINO on a CPU, which
        counts answers too, and 2,048 of prompts on a GPU.
    policy
        When a request joins those that run: see `Scheduler`.

    Raises
    ------
    EngineError
        There is no engine for its format, or no such GPU.
    """
    engine = _engine(artifact, device, threads, rows, cache_tokens, step_tokens)
    return Scheduler(engine, max_waiting=max_waiting, policy=policy)


def _engine(
    artifact: Artifact,
    device: str,
    threads: int | None,
    rows: int | None,
    cache_tokens: int | None,
    step_tokens: int | None,
) -> GenerationEngine:
    few, small = rows or _ROWS, cache_tokens or _CACHE_TOKENS
    if artifact.manifest.format == "transformers":
        from accel_lib.engines.torch import find_device
        from accel_lib.generate.transformers import TransformersEngine

        model, found = _model(artifact, threads), find_device(device)
        if found == "cpu":
            return TransformersEngine(model, rows=few, cache_tokens=small)
        return _on_gpu(model, found, rows or _GPU_ROWS, cache_tokens, step_tokens or _GPU_STEP_TOKENS)
    if artifact.manifest.format == "openvino":
        from accel_lib.generate.openvino import OpenVINOEngine

        return OpenVINOEngine(
            artifact, rows=few, cache_tokens=small, threads=threads, step_tokens=step_tokens or _STEP_TOKENS
        )
    if artifact.manifest.format == "onnx":
        from accel_lib.generate.onnxruntime import OnnxEngine

        return OnnxEngine(artifact, rows=few, cache_tokens=small, device=device, threads=threads)
    if artifact.manifest.format == "tensorrt":
        from accel_lib.generate.tensorrt import TensorRTEngine

        return TensorRTEngine(artifact, rows=few, device=device)
    raise EngineError(
        "No engine generates with this artifact.",
        seen=artifact.name,
        fix="convert the model again: accel convert --model SmolLM2-135M-Instruct --output <folder>",
    )


def _on_gpu(
    model: GenerationModel, device: str, rows: int, cache_tokens: int | None, step_tokens: int
) -> GenerationEngine:
    """CUDA graphs for the families that are computed here, transformers' own code for all others."""
    from accel_lib.generate.torch import TorchEngine
    from accel_lib.generate.transformers import TransformersEngine

    try:
        return TorchEngine(model, device=device, rows=rows, cache_tokens=cache_tokens, step_tokens=step_tokens)
    except ModelError as error:
        log.warning("%s generates by transformers' own code, without CUDA graphs: %s", model.name, error)
        model.network.to(device)
        return TransformersEngine(model, rows=rows, cache_tokens=cache_tokens or _CACHE_TOKENS * rows // _ROWS)


def _model(artifact: Artifact, threads: int | None) -> GenerationModel:
    import torch

    from accel_lib.models.generation import build_generation_model

    if threads:
        torch.set_num_threads(threads)
    manifest = artifact.manifest
    place = ModelSource(name=manifest.model, source=manifest.source, folder=artifact.folder)
    return build_generation_model(place, max_length=manifest.max_length)
