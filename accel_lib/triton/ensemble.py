"""Serves parts of a model as Triton models of their own, with an ensemble that passes tensors from one to the next.

Each part has its own batcher and instance, so while the second works on one batch, the first works on the next.
Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/architecture.md#ensemble-models
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from accel_lib.artifact import MANIFEST_FILE, TOKENIZER_FILE, Artifact
from accel_lib.atomic import atomic_directory
from accel_lib.convert.partition import HIDDEN
from accel_lib.errors import require
from accel_lib.triton.config import ModelConfig, TensorSpec
from accel_lib.triton.repository import ARTIFACT_FOLDER, MODEL_FILE, foreign_version, write_config

_CODE = "from accel_lib.triton.parts import TritonPythonModel as TritonPythonModel\n"


def write_part(repository: Path, name: str, part: Artifact, *, instance_count: int = 1, threads: int = 1) -> Path:
    """Put a part of a model, or a whole ONNX artifact, into a repository as a model of its own, to run on the CPU.

    It runs in `instance_count` copies with `threads` CPU threads each.
    """
    tokens = (-1,) if part.manifest.output_name == HIDDEN else ()
    output = TensorSpec(name=part.manifest.output_name, data_type="FP32", dims=(*tokens, part.manifest.dimension))
    with atomic_directory(repository / name / "1", foreign=foreign_version) as draft:
        (draft / MODEL_FILE).write_text(_CODE, encoding="utf-8")
        part.copy_to(draft / ARTIFACT_FOLDER)
    config = ModelConfig(
        name=name,
        max_batch_size=16,
        inputs=_inputs(part),
        outputs=(output,),
        instance_count=instance_count,
        instance_kind="cpu",
        threads=threads,
    )
    write_config(repository / name, config)
    return repository / name


def write_ensemble(repository: Path, name: str, parts: Sequence[Artifact], *, threads: int = 1) -> list[str]:
    """Put the parts of a model into a repository, and an ensemble `name` that runs them one after the other.

    Parameters
    ----------
    repository, name
        Where they go.
    parts
        The two that `accel_lib.convert.partition.cut` returns.
    threads
        CPU threads of each part's instance.

    Returns
    -------
    list of str
        The parts' models, ``name-1`` and ``name-2``, which are loaded with the ensemble.
    """
    names = [f"{name}-{number}" for number in range(1, len(parts) + 1)]
    for part_name, part in zip(names, parts, strict=True):
        write_part(repository, part_name, part, threads=threads)
    last = parts[-1].manifest
    message = require("tritonclient.grpc.model_config_pb2", extra="triton").ModelConfig(
        name=name, platform="ensemble", max_batch_size=16
    )
    inputs = tuple(TensorSpec(name=tensor, data_type="INT64", dims=(-1,)) for tensor in last.inputs)
    output = TensorSpec(name=last.output_name, data_type="FP32", dims=(last.dimension,))
    for part_name, part in zip(names, parts, strict=True):
        step = message.ensemble_scheduling.step.add(model_name=part_name, model_version=-1)
        for tensor in _inputs(part):
            step.input_map[tensor.name] = tensor.name
        step.output_map[part.manifest.output_name] = part.manifest.output_name
    config = ModelConfig.from_protobuf(message).replace(inputs=inputs, outputs=(output,))
    with atomic_directory(repository / name / "1", foreign=foreign_version) as draft:  # the client's tokenizer
        (draft / ARTIFACT_FOLDER).mkdir()
        for file in (MANIFEST_FILE, TOKENIZER_FILE):
            shutil.copy2(parts[-1].folder / file, draft / ARTIFACT_FOLDER / file)
    write_config(repository / name, config)
    return names


def _inputs(part: Artifact) -> tuple[TensorSpec, ...]:
    """Inputs of a part, of any length: token ids and mask, and for the second half a vector per token."""
    onnx = require("onnx", extra="convert")
    tensors = {t.name: t.type.tensor_type for t in onnx.load(part.path, load_external_data=False).graph.input}
    return tuple(
        TensorSpec(
            name=name,
            data_type="INT64" if kind.elem_type == onnx.TensorProto.INT64 else "FP32",
            dims=(-1, *(size.dim_value for size in kind.shape.dim[2:])),
            ragged=True,
        )
        for name, kind in tensors.items()
    )
