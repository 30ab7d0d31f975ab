"""ONNX to TensorRT on one path: TensorRT 10, TensorRT 11 and TensorRT-RTX, strongly typed.

Precision is in the ONNX file; no builder flag asks for it (TensorRT 11 removed them all). With a GPU and full TensorRT
the engine is built for that GPU. Without either, TensorRT-RTX builds for a target by its compute capability.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import (
    MODEL_FILES,
    ONNX_FILES,
    TOKENIZER_FILE,
    Artifact,
    Manifest,
    Profile,
    foreign_files,
    write_manifest,
)
from accel_lib.atomic import atomic_directory
from accel_lib.convert.builder import build, parsed
from accel_lib.convert.cache import built_on, cached, weights_digest
from accel_lib.convert.room import check_engine_room
from accel_lib.convert.targets import check_precision, choose_library, resolve_target
from accel_lib.engines.tensorrt_runtime import LIBRARIES, Library, built_with, load_library
from accel_lib.errors import ArtifactError, ConversionError, OutputError
from accel_lib.machine import cache_dir, inspect_machine

if TYPE_CHECKING:
    import pandas as pd


_CONTEXT_TOKENS = 2048  # of a language model, unless profiles say otherwise: a longer one takes more memory


def to_tensorrt(
    artifact: Artifact,
    *,
    target: str = "auto",
    lengths: NDArray[np.int64] | None = None,
    profiles: Sequence[Profile] | None = None,
    max_batch_size: int = 32,
    output: str | Path | None = None,
    progress: bool = True,
) -> Artifact:
    """Build a TensorRT engine from an ONNX artifact.

    Parameters
    ----------
    artifact
        ONNX in FP16 or Q/DQ INT8 (FP32 where the target can: not on a T4).
    target
        ``"auto"`` (the GPU of this machine), a product such as ``"t4"``, or a compute capability such as ``"sm75"``.
    lengths
        Token lengths of typical texts, int64 ``[n]``, which `choose_profiles` turns into optimization profiles. A
        language model gets those of `accel_lib.convert.generation_onnx.generation_profiles`.
    profiles
        Optimization profiles of your own, instead of `lengths`.
    max_batch_size
        Most rows in one batch.
    output
        Folder to write; None takes one in the cache, and reuses the engine there if it was built from the same weights
        for the same shapes by the same TensorRT, GPU and driver; else its manifest says why it was not used.
    progress
        Show what the builder is doing.

    Returns
    -------
    Artifact
        With ``model.plan``, the ``model.onnx`` it came from, tokenizer and manifest.

    Raises
    ------
    ConversionError
        The graph cannot be built for that target; the parser's or builder's own words are in it.
    MissingDependencyError
        Neither TensorRT is installed.
    OutputError
        `output` holds anything but an artifact, or is the one to build from.
    """
    onnx_file = artifact.folder / MODEL_FILES["onnx"]
    if not onnx_file.is_file():
        raise ArtifactError(
            "The artifact holds no ONNX file to build from.", seen=artifact.name, fix="accel.to_onnx(model)"
        )
    if output and Path(output).resolve() == artifact.folder.resolve():
        raise OutputError(
            "The engine would replace the artifact it is built from.", seen=artifact.name, fix="name another folder"
        )
    target = resolve_target(target)
    library = choose_library(target)
    check_precision(artifact.manifest, target, library)
    limit = artifact.manifest.max_length
    chosen = tuple(profiles) if profiles else _profiles(artifact.manifest, lengths, max_batch_size)
    _check_profiles(chosen, limit)
    slug = artifact.manifest.model.replace("/", "--")
    folder = (
        Path(output) if output else cache_dir("artifacts", slug, f"tensorrt-{artifact.manifest.precision}-{target}")
    )
    others = {name: v for name, v in artifact.manifest.versions.items() if name not in LIBRARIES}
    wanted = dataclasses.replace(
        artifact.manifest,
        format="tensorrt",
        target=target,
        profiles=chosen,
        versions=others | {library.name: library.version},
        machine=built_on(),
    )
    found, reason = cached(folder, wanted, weights_digest(artifact.manifest)) if output is None else (None, "")
    if found:
        if progress:
            print(f"{found.name}: reused, {found.size_bytes / 1e6:.1f} MB", flush=True)
        return found
    if reason:
        reason = f"the cached engine was not used: {reason}"
        if progress:
            print(reason, flush=True)
    graph = [file for name in ONNX_FILES if (file := artifact.folder / name).is_file()]
    check_engine_room(sum(file.stat().st_size for file in graph), folder)
    started = time.monotonic()
    if progress:
        shapes = ", ".join(map(_described, chosen))
        print(f"{library.name} {library.version} builds for {target}: {shapes}", flush=True)
    with atomic_directory(folder, foreign=foreign_files if output else None) as draft:
        plan = build(library, onnx_file, target, chosen, progress=progress)
        (draft / MODEL_FILES["tensorrt"]).write_bytes(plan)
        for file in (*graph, artifact.folder / TOKENIZER_FILE):
            shutil.copy2(file, draft / file.name)
        seconds = time.monotonic() - started
        notes = (*wanted.notes, *([reason] if reason else []))
        manifest = write_manifest(draft, dataclasses.replace(wanted, seconds=seconds, notes=notes))
    if progress:
        print(f"built for {target} in {seconds:.1f} s: {plan.nbytes / 1e6:.1f} MB", flush=True)
    return Artifact(folder, manifest)


def _profiles(manifest: Manifest, lengths: NDArray[np.int64] | None, max_batch_size: int) -> tuple[Profile, ...]:
    if manifest.task != "generation":
        return choose_profiles(lengths, max_batch_size=max_batch_size, max_length=manifest.max_length)
    from accel_lib.convert.generation_onnx import generation_profiles

    context = min(manifest.max_length, _CONTEXT_TOKENS)
    return generation_profiles(rows=max_batch_size, context_tokens=context)


def choose_profiles(
    lengths: NDArray[np.int64] | None, *, max_batch_size: int = 32, max_length: int = 256
) -> tuple[Profile, ...]:
    """Optimization profiles from the lengths of typical texts.

    TensorRT tunes its kernels for a profile's optimum shape and accepts every shape between minimum and maximum. The
    first profile ends at the 99th percentile, rounded up to a multiple of 8 (the width tensor cores work in), and is
    tuned for the median. A second one takes what is longer, up to `max_length`, so no text is ever refused.

    Parameters
    ----------
    lengths
        Tokens a text, int64 ``[n]``; None gives one profile tuned for a quarter of `max_length`.
    max_batch_size
        Most rows in one batch.
    max_length
        Longest sequence in tokens the model takes.

    Returns
    -------
    tuple of Profile
        Shortest first; together they cover every length from 1 to `max_length`.
    """
    if lengths is None or not len(lengths):
        middle, most = max_length // 4, max_length
    else:
        middle, most = (_multiple_of_8(float(np.percentile(lengths, q)), max_length) for q in (50, 99))
    first = Profile(min=(1, 1), opt=(max_batch_size, max(1, middle)), max=(max_batch_size, most))
    if most == max_length:
        return (first,)
    rest = Profile(min=(1, most + 1), opt=(max(1, max_batch_size // 4), max_length), max=(max_batch_size, max_length))
    return (first, rest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What an engine holds, as far as this machine can look.

    Parameters
    ----------
    layers
        Table of the parsed network: layer kind, element type, count.
    profiles
        Table of optimization profiles.
    size_bytes
        Size of the engine file.
    validity
        What TensorRT says about loading it here; without a driver, that it cannot say.
    kernels
        What the builder made of those layers, by name, from TensorRT's engine inspector; empty where it cannot load.
    """

    layers: pd.DataFrame
    profiles: pd.DataFrame
    size_bytes: int
    validity: str
    kernels: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        fused = f", {len(self.kernels)} kernels" if self.kernels else ""
        says = f"<p>{self.size_bytes / 1e6:.1f} MB{fused}; {self.validity}</p>"
        return self.layers.to_html(index=False) + self.profiles.to_html(index=False) + says


def inspect_engine(artifact: Artifact) -> EngineReport:
    """Look into a TensorRT artifact: layers and types, profiles, size and, with a driver, whether it is valid here."""
    import pandas as pd

    library = load_library(built_with(artifact.manifest))
    with parsed(library, artifact.folder / MODEL_FILES["onnx"]) as (_, network):
        found = [_describe(library, network.get_layer(number)) for number in range(network.num_layers)]
    layers = pd.DataFrame(found, columns=["layer", "type"]).value_counts().rename("count").reset_index()
    profiles = pd.DataFrame([dataclasses.asdict(profile) for profile in artifact.manifest.profiles])
    validity, kernels = "cannot be told without an NVIDIA driver", tuple[str, ...]()
    if inspect_machine().gpus:
        validity, kernels = _load(library, artifact.path.read_bytes())
    return EngineReport(
        layers=layers, profiles=profiles, size_bytes=artifact.size_bytes, validity=validity, kernels=kernels
    )


def _load(library: Library, plan: bytes) -> tuple[str, tuple[str, ...]]:
    """Whether the GPU takes an engine, in TensorRT's words, and the names of what is inside."""
    runtime = library.module.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        asked = getattr(runtime, "get_engine_validity", None)  # TensorRT-RTX has it
        return (str(asked(plan)) if asked else library.complaint()), ()
    form = library.module.LayerInformationFormat.JSON
    told = json.loads(engine.create_engine_inspector().get_engine_information(form))
    names = tuple(layer if isinstance(layer, str) else layer["Name"] for layer in told["Layers"])
    return "accepted by this GPU", names


def _described(profile: Profile) -> str:
    rows, tokens, *cached = profile.max
    return f"up to {rows} × {tokens} tokens" + "".join(f" after {held}" for held in cached)


def _check_profiles(profiles: Sequence[Profile], max_length: int) -> None:
    for profile in profiles:
        least = (1, 1, 0)[: len(profile.min)]
        sizes = zip(least, profile.min, profile.opt, profile.max, strict=True)
        rising = all(list(size) == sorted(size) for size in sizes)
        if not rising or sum(profile.max[1:]) > max_length:
            raise ConversionError(
                "No engine can have such an optimization profile.",
                seen=str(profile),
                fix=f"(batch, tokens), or (batch, new, cached) of a language model: 1 ≤ min ≤ opt ≤ max ≤ {max_length}",
            )


def _describe(library: Library, layer: Any) -> tuple[str, str]:
    """Kind of a layer and the element type it computes in: a matrix product's operands, else its result."""
    kind = str(layer.type).rpartition(".")[2]
    matrix = layer.type == library.module.LayerType.MATRIX_MULTIPLY
    tensor = layer.get_input(0) if matrix else layer.get_output(0)
    return kind, str(tensor.dtype).rpartition(".")[2]


def _multiple_of_8(length: float, limit: int) -> int:
    return min(limit, int(np.ceil(length / 8)) * 8)
