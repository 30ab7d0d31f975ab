"""TensorRT's parser and builder, with their own words in the errors, progress in one line, and Ctrl-C that works."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accel_lib.artifact import Profile
from accel_lib.engines.tensorrt_runtime import Library
from accel_lib.errors import ConversionError
from accel_lib.progress import watched

_UPDATE_S = 0.25
_OUT_OF_MEMORY = "OutOfMemory"  # the builder's word
_WORKSPACE_BYTES = 4 * 2**30  # of a T4's 15 GB; the rest is for two versions, PyTorch and the notebook


@contextlib.contextmanager
def parsed(library: Library, onnx_file: Path) -> Iterator[tuple[Any, Any]]:
    """A builder and a strongly typed network parsed from a file, alive together.

    Raises
    ------
    ConversionError
        The parser refused the file: its code, node and words for each fault.
    """
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


def build(library: Library, onnx_file: Path, target: str, profiles: Sequence[Profile], *, progress: bool) -> memoryview:
    """Build an engine for a compute capability and return it serialized, in the builder's own memory.

    Raises
    ------
    ConversionError
        The graph or a profile cannot be built for that target; where memory is short, with the batch size that is.
    KeyboardInterrupt
        Ctrl-C ended the build.
    """
    plan = _plan(library, onnx_file, target, profiles, show=progress and watched())
    if plan is None:
        seen = library.complaint()
        fix = 'accel.to_onnx(model, precision="fp16"), or another target'
        if _OUT_OF_MEMORY in seen:
            rows = _rows_that_fit(library, onnx_file, target, profiles)
            fix = (
                f"max_batch_size={rows}, which builds"
                if rows
                else "shorter texts: accel.load_model(..., max_length=512)"
            )
        raise ConversionError(f"{library.name} cannot build this graph for {target}.", seen=seen, fix=fix)
    return plan


def _plan(
    library: Library, onnx_file: Path, target: str, profiles: Sequence[Profile], *, show: bool = False
) -> memoryview | None:
    """A serialized engine, or None where the builder gave up; the library keeps its complaint."""
    trt = library.module
    with parsed(library, onnx_file) as (builder, network):
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells names alone
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        if library.name == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
        for profile in profiles:
            shape = builder.create_optimization_profile()
            for number in range(network.num_inputs):
                port = network.get_input(number)
                shape.set_shape(port.name, *(_shape(port, sizes) for sizes in (profile.min, profile.opt, profile.max)))
            config.add_optimization_profile(shape)
        monitor = _monitor(library, show=show)
        config.progress_monitor = monitor
        with _interrupting(monitor):
            plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    return None if plan is None else memoryview(plan)


def _shape(port: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    """What a profile makes of an input: of an encoder all are alike, of a language model the names of its axes say."""
    if len(sizes) == 2:
        return tuple(sizes)
    batch, new, past = sizes
    named = {"batch": batch, "sequence": new, "past": past, "total": past + new}
    return tuple(named.get(port.get_dimension_name(axis), size) for axis, size in enumerate(port.shape))


def _rows_that_fit(library: Library, onnx_file: Path, target: str, profiles: Sequence[Profile]) -> int:
    """The most rows, of halves of what was asked for, with which the builder has memory enough; 0 where it has not."""
    rows = max(profile.max[0] for profile in profiles) // 2
    while rows:
        fewer = [
            Profile(**{name: (min(rows, shape[0]), *shape[1:]) for name, shape in dataclasses.asdict(profile).items()})
            for profile in profiles
        ]
        if _plan(library, onnx_file, target, fewer) is not None:
            return rows
        rows //= 2
    return 0


def _parser_words(error: Any) -> str:
    operator, name = error.node_operator(), error.node_name()
    return f"{str(error.code()).rpartition('.')[2]} at node {error.node()}, {operator} {name!r}: {error.desc()}"


@contextlib.contextmanager
def _interrupting(monitor: Any) -> Iterator[None]:
    """Let Ctrl-C end the build through the monitor: as an exception it would be lost in TensorRT's callbacks."""
    if threading.current_thread() is not threading.main_thread():  # only there does Python take signals
        yield
        return
    before = signal.signal(signal.SIGINT, monitor.interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(library: Library, *, show: bool) -> Any:
    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Shows the phase the builder is in, in one line that is rewritten, and ends the build when interrupted."""

        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._steps: dict[str, int] = {}
            self._shown_at_s = 0.0

        def interrupt(self, *_: object) -> None:
            self.interrupted = True

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if show and time.monotonic() - self._shown_at_s > _UPDATE_S:
                self._shown_at_s = time.monotonic()
                print(f"\r  {phase}: {step + 1} of {self._steps[phase]}".ljust(78), end="", flush=True)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            del self._steps[phase]
            if show and not self._steps:
                print("\r".ljust(79), end="\r", flush=True)

    return Monitor()
