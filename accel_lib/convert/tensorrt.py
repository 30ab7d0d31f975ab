"""ONNX to TensorRT on one path: TensorRT 10, TensorRT 11 and TensorRT-RTX, strongly typed.

Precision is in the ONNX file; no builder flag asks for it (TensorRT 11 removed them all). With a GPU and full TensorRT
the engine is built for that GPU. Without either, TensorRT-RTX builds for a target by its compute capability.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import MODEL_FILES, TOKENIZER_FILE, Artifact, Manifest, Profile, seal, writing
from accel_lib.engines.trt import LIBRARIES, Library, built_with, compute_target, installed, load_library
from accel_lib.errors import ArtifactError, ConversionError, MissingDependencyError
from accel_lib.machine import cache_dir, inspect_machine

# Compute capability by product: https://developer.nvidia.com/cuda-gpus
TARGETS = {
    **dict.fromkeys(("t4", "rtx20"), "sm75"),
    **dict.fromkeys(("a100",), "sm80"),
    **dict.fromkeys(("a10", "a10g", "rtx30"), "sm86"),
    **dict.fromkeys(("l4", "l40s", "rtx40"), "sm89"),
    **dict.fromkeys(("h100", "h200"), "sm90"),
    **dict.fromkeys(("rtx50",), "sm120"),
}


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
        Token lengths of typical texts, int64 ``[n]``, which `choose_profiles` turns into optimization profiles.
    profiles
        Optimization profiles of your own, in place of `lengths`.
    max_batch_size
        Most rows in one batch.
    output
        Folder to write; None takes one in the cache.
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
    """
    onnx_file = artifact.folder / MODEL_FILES["onnx"]
    if not onnx_file.is_file():
        raise ArtifactError(
            "The artifact holds no ONNX file to build from.", seen=artifact.name, fix="accel.to_onnx(model)"
        )
    target = _resolve_target(target)
    library = _choose_library(target)
    _check_precision(artifact.manifest, target, library)
    limit = artifact.manifest.max_length
    chosen = tuple(profiles) if profiles else choose_profiles(lengths, max_batch_size=max_batch_size, max_length=limit)
    _check_profiles(chosen, limit)
    slug = artifact.manifest.model.replace("/", "--")
    folder = (
        Path(output) if output else cache_dir("artifacts", slug, f"tensorrt-{artifact.manifest.precision}-{target}")
    )
    started = time.monotonic()
    plan = _build(library, onnx_file, target, chosen, progress=progress)
    with writing(folder) as draft:
        (draft / MODEL_FILES["tensorrt"]).write_bytes(plan)
        for name in (MODEL_FILES["onnx"], TOKENIZER_FILE):
            shutil.copy2(artifact.folder / name, draft / name)
        others = {name: v for name, v in artifact.manifest.versions.items() if name not in LIBRARIES}
        versions = others | {library.name: library.version}
        seconds = time.monotonic() - started
        manifest = dataclasses.replace(
            *(artifact.manifest,), format="tensorrt", target=target, profiles=chosen, versions=versions, seconds=seconds
        )
        manifest = seal(draft, manifest)
    if progress:
        print(f"built for {target} in {seconds:.1f} s: {len(plan) / 1e6:.1f} MB", flush=True)
    return Artifact(folder, manifest)


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
    """

    layers: Any
    profiles: Any
    size_bytes: int
    validity: str


def inspect_engine(artifact: Artifact) -> EngineReport:
    """Look into a TensorRT artifact: layers and types, profiles, size and, with a driver, whether it is valid here."""
    import pandas as pd

    library = load_library(built_with(artifact.manifest))
    with _parsed(library, artifact.folder / MODEL_FILES["onnx"]) as (_, network):
        found = [_describe(library, network.get_layer(number)) for number in range(network.num_layers)]
    layers = pd.DataFrame(found, columns=["layer", "type"]).value_counts().rename("count").reset_index()
    profiles = pd.DataFrame([dataclasses.asdict(profile) for profile in artifact.manifest.profiles])
    validity = "cannot be told without an NVIDIA driver"
    if inspect_machine().gpus:
        runtime = library.module.Runtime(library.logger)
        accepted = runtime.deserialize_cuda_engine(artifact.path.read_bytes()) is not None
        validity = "accepted by this GPU" if accepted else library.complaint()
    return EngineReport(layers=layers, profiles=profiles, size_bytes=artifact.size_bytes, validity=validity)


def _resolve_target(target: str) -> str:
    gpus = inspect_machine().gpus
    if target == "auto":
        if not gpus:
            raise ConversionError(
                "There is no GPU here to build for.",
                seen='target="auto"',
                fix='name the GPU it will run on: to_tensorrt(onnx, target="t4")',
            )
        return compute_target(gpus[0])
    resolved = TARGETS.get(target.lower(), target.lower())
    if resolved not in TARGETS.values():
        raise ConversionError("There is no such target.", seen=repr(target), fix=f"one of: auto, {', '.join(TARGETS)}")
    return resolved


def _choose_library(target: str) -> Library:
    here = [compute_target(gpu) for gpu in inspect_machine().gpus]
    names = installed()
    if "tensorrt" in names and target in here:
        return load_library("tensorrt")
    if target == "sm90":
        raise ConversionError(
            "TensorRT-RTX does not build for Hopper, and full TensorRT builds only for the GPU it runs on.",
            seen=f"target {target}; GPUs here: {', '.join(here) or 'none'}",
            fix="on that machine: python -m pip install 'accel_lib[tensorrt]', then target=\"auto\"",
        )
    if "tensorrt_rtx" not in names:
        raise MissingDependencyError(
            "No TensorRT that can build for this target is installed.",
            seen=f"installed: {', '.join(names) or 'none'}; target {target}",
            fix="python -m pip install 'accel_lib[rtx]'",
        )
    return load_library("tensorrt_rtx")


def _check_precision(manifest: Manifest, target: str, library: Library) -> None:
    if manifest.precision == "int8":
        raise ConversionError(
            "Dynamic INT8 is a form for ONNX Runtime on a CPU; TensorRT has no such operators.",
            seen=f"precision {manifest.precision}",
            fix='accel.to_onnx(model, precision="fp16"), or precision="int8-qdq"',
        )
    if manifest.precision == "fp32" and target == "sm75" and library.name == "tensorrt_rtx":
        raise ConversionError(
            "TensorRT-RTX has no FP32 matrix product for Turing.",
            seen="precision fp32 for sm75",
            fix='accel.to_onnx(model, precision="fp16")',
        )


def _check_profiles(profiles: Sequence[Profile], max_length: int) -> None:
    for profile in profiles:
        sizes = zip((1, 1), profile.min, profile.opt, profile.max, strict=True)
        rising = all(list(size) == sorted(size) for size in sizes)
        if not rising or profile.max[1] > max_length:
            raise ConversionError(
                "No engine can have such an optimization profile.",
                seen=str(profile),
                fix=f"(batch, tokens) with 1 ≤ min ≤ opt ≤ max, and at most {max_length} tokens",
            )


@contextlib.contextmanager
def _parsed(library: Library, onnx_file: Path) -> Any:
    """A builder and a strongly typed network parsed from a file, alive together."""
    trt = library.module
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind TensorRT 11 knows
    builder = trt.Builder(library.logger)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        raise ConversionError(
            f"{library.name} cannot read the ONNX file.",
            seen="; ".join(_parser_words(error) for error in errors),
            fix="convert the model again: accel.to_onnx(model, precision='fp16')",
        )
    yield builder, network


def _parser_words(error: Any) -> str:
    operator, name = error.node_operator(), error.node_name()
    return f"{str(error.code()).rpartition('.')[2]} at node {error.node()}, {operator} {name!r}: {error.desc()}"


def _build(library: Library, onnx_file: Path, target: str, profiles: Sequence[Profile], *, progress: bool) -> bytes:
    if progress:
        shapes = ", ".join(f"up to {p.max[0]} × {p.max[1]} tokens" for p in profiles)
        print(f"{library.name} {library.version} builds for {target}: {shapes}", flush=True)
    with _parsed(library, onnx_file) as (builder, network):
        config = builder.create_builder_config()
        if library.name == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(library.module.ComputeCapability, target.upper()), 0)
        for profile in profiles:
            shape = builder.create_optimization_profile()
            for number in range(network.num_inputs):
                shape.set_shape(network.get_input(number).name, profile.min, profile.opt, profile.max)
            config.add_optimization_profile(shape)
        monitor = _monitor(library, show=progress and sys.stdout.isatty() and not os.environ.get("ACCEL_HEADLESS"))
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ConversionError(
            f"{library.name} cannot build this graph for {target}.",
            seen=library.complaint(),
            fix='accel.to_onnx(model, precision="fp16"), or another target',
        )
    return bytes(plan)


def _monitor(library: Library, *, show: bool) -> Any:
    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Shows the phase the builder is in, and ends the build on Ctrl-C."""

        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if show:
                    print(f"\r  {phase}: {step + 1} of {self._steps[phase]}".ljust(78), end="", flush=True)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            if show and len(self._steps) == 1:
                print("\r".ljust(79), end="\r", flush=True)
            self._steps.pop(phase, None)

    return Monitor()


def _describe(library: Library, layer: Any) -> tuple[str, str]:
    """Kind of a layer and the element type it computes in: a matrix product's operands, else its result."""
    kind = str(layer.type).rpartition(".")[2]
    matrix = layer.type == library.module.LayerType.MATRIX_MULTIPLY
    tensor = layer.get_input(0) if matrix else layer.get_output(0)
    return kind, str(tensor.dtype).rpartition(".")[2]


def _multiple_of_8(length: float, limit: int) -> int:
    return min(limit, int(np.ceil(length / 8)) * 8)
