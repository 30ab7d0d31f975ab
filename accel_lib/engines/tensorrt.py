"""TensorRT behind the engine protocol: own stream, pinned buffers, optional CUDA graphs, one device buffer for all."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact, Profile
from accel_lib.engines.batching import check_batch
from accel_lib.engines.tensorrt_runtime import Library, built_with, load_library
from accel_lib.errors import ArtifactError, EngineError, require
from accel_lib.machine import inspect_machine
from accel_lib.ragged import by_name

_REBUILD = "build it again from the ONNX file inside: accel.to_tensorrt(artifact)"
_GRAPHS = 16


class TensorRTEngine:
    """Run a TensorRT engine on the GPU it was built for.

    Parameters
    ----------
    artifact
        An artifact of format ``tensorrt``.
    device
        ``"auto"``, ``"cuda"`` or ``"cuda:N"``.
    cuda_graphs
        Capture the work of each (batch, sequence) shape once and replay it: fewer launches, for small batches. The
        16 shapes used last are kept, each with an execution context of its own, as a graph is bound to one.

    Notes
    -----
    Execution contexts run in turn, so all of them compute in one device buffer, as large as the largest profile needs;
    by itself each would hold that much.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html (CUDA graphs), and
    ``ExecutionContextAllocationStrategy.USER_MANAGED``, in TensorRT from 10.1 on and in TensorRT-RTX

    Raises
    ------
    EngineError
        There is no GPU, or its free memory does not hold the buffers; the message has the numbers.
    ArtifactError
        The engine was built by another version or for another GPU.
    """

    def __init__(self, artifact: Artifact, *, device: str = "auto", cuda_graphs: bool = False) -> None:
        manifest = artifact.manifest
        self.name = artifact.name
        self.precision = manifest.precision
        self.dimension = manifest.dimension
        self.pad_id = artifact.pad_id
        self.max_length = manifest.max_length
        self.max_batch_size = max(profile.max[0] for profile in manifest.profiles)
        self._inputs = manifest.inputs
        self._output_name = manifest.output_name
        self._profiles = manifest.profiles
        self._graph = functools.lru_cache(maxsize=_GRAPHS)(self._capture) if cuda_graphs else None
        tokens = max(profile.max[0] * profile.max[1] for profile in self._profiles)
        needed = {"inputs": 8 * tokens * len(self._inputs), "outputs": 4 * self.max_batch_size * self.dimension}
        self._loaded = LoadedEngine(artifact, device, needed)
        self.device = self._loaded.device
        torch = require("torch", extra="models")
        shapes = dict.fromkeys(self._inputs, (tokens, torch.int64))
        shapes[self._output_name] = (self.max_batch_size * self.dimension, torch.float32)
        self._pinned = {n: torch.empty(size, dtype=kind).pin_memory() for n, (size, kind) in shapes.items()}
        self._buffers = {n: torch.empty(size, dtype=kind, device=self.device) for n, (size, kind) in shapes.items()}

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """int64 ``[batch, sequence]`` each to float32 ``[batch, dimension]``; returns when the GPU is done.

        Without segment ids they are zeros.
        """
        import torch

        check_batch(input_ids, attention_mask, self.max_length, token_type_ids)
        batch = by_name(self._inputs, (input_ids, attention_mask, token_type_ids))
        shape = (input_ids.shape[0], input_ids.shape[1])
        number = profile_for(self._profiles, shape)
        tokens, answers = input_ids.size, shape[0] * self.dimension
        with torch.cuda.device(self.device), torch.cuda.stream(self._loaded.stream):
            for name, array in batch.items():
                self._pinned[name][:tokens].copy_(torch.from_numpy(np.ascontiguousarray(array)).view(-1))
                self._buffers[name][:tokens].copy_(self._pinned[name][:tokens], non_blocking=True)
            if self._graph is None:
                self._enqueue(self._loaded.contexts[number], shape)
            else:
                self._graph(number, shape)[0].replay()
            pinned = self._pinned[self._output_name][:answers]
            pinned.copy_(self._buffers[self._output_name][:answers], non_blocking=True)
            self._loaded.stream.synchronize()
        output: NDArray[np.float32] = pinned.numpy().reshape(shape[0], self.dimension).copy()
        return output

    def close(self) -> None:
        """Free graphs, engine and buffers, in the order TensorRT wants."""
        self._graph = None
        self._buffers, self._pinned = {}, {}
        self._loaded.close()

    def _enqueue(self, context: Any, shape: tuple[int, int]) -> None:
        for name in self._inputs:
            context.set_input_shape(name, shape)
        self._loaded.enqueue(context, {name: buffer.data_ptr() for name, buffer in self._buffers.items()}, shape)

    def _capture(self, profile: int, shape: tuple[int, int]) -> tuple[Any, Any]:
        """A graph for one shape, and the execution context it needs for as long as it lives."""
        import torch

        context = self._loaded.context(profile)
        self._enqueue(context, shape)  # once outside the graph: TensorRT allocates on a shape's first run
        self._loaded.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._loaded.stream):
            self._enqueue(context, shape)
        return graph, context


class LoadedEngine:
    """An engine in a GPU's memory: its `stream`, and an execution context for each profile, all in one buffer.

    Parameters
    ----------
    artifact, device
        As of `TensorRTEngine`, whose errors these are.
    needed
        Bytes of what the caller allocates beside it, by kind.
    """

    def __init__(self, artifact: Artifact, device: str, needed: Mapping[str, int]) -> None:
        self._library = _check(artifact, device)
        torch = require("torch", extra="models")
        self.device = f"cuda:{int(device.partition(':')[2] or 0)}"
        with torch.cuda.device(self.device):
            self.stream = torch.cuda.Stream()
            self._runtime = self._library.module.Runtime(self._library.logger)
            self._engine = _deserialize(self._library, self._runtime, artifact)
            activations = int(self._engine.device_memory_size_v2)
            torch.cuda.empty_cache()  # what PyTorch keeps for later counts as taken
            check_memory({"activations": activations, **needed}, free=torch.cuda.mem_get_info()[0])
            self._memory = torch.empty(activations, dtype=torch.uint8, device=self.device)
            self.contexts = [self.context(number) for number in range(len(artifact.manifest.profiles))]

    def context(self, profile: int) -> Any:
        """A further execution context for a profile; raises `EngineError` if TensorRT makes none."""
        ours = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(ours)
        if context is None or not context.set_optimization_profile_async(profile, self.stream.cuda_stream):
            raise EngineError(
                "TensorRT made no execution context.",
                seen=self._library.complaint(),
                fix="free GPU memory, or build with a smaller max_batch_size",
            )
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        return context

    def enqueue(self, context: Any, addresses: Mapping[str, int], shape: Sequence[int]) -> None:
        """Start a batch on the stream, from and to these places on the GPU; `shape` is for the `EngineError`."""
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self.stream.cuda_stream):
            seen = f"shape {tuple(shape)}: {self._library.complaint()}"
            raise EngineError("TensorRT refused the batch.", seen=seen, fix=_REBUILD)

    def tensors(self, mode: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape (-1 where it is open) and element type, such as ``"HALF"``, of each ``"INPUT"`` or ``"OUTPUT"``."""
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        return {
            name: (tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name).name)
            for name in names
            if self._engine.get_tensor_mode(name).name == mode
        }

    def close(self) -> None:
        """Free contexts and engine, in the order TensorRT wants."""
        self.contexts.clear()
        self._memory = self._engine = self._runtime = None


def _check(artifact: Artifact, device: str) -> Library:
    """Compare the manifest with this machine before anything is loaded."""
    manifest = artifact.manifest
    library = load_library(built_with(manifest))
    version = manifest.versions.get(library.name)
    if version != library.version:
        raise ArtifactError(
            "The engine was built by another version of TensorRT.",
            seen=f"{library.name} {version} then, {library.version} here",
            fix=_REBUILD,
        )
    if device == "cpu" or not inspect_machine().gpus:
        raise EngineError(
            "A TensorRT engine needs an NVIDIA GPU and its driver.",
            seen='device="cpu"' if device == "cpu" else "no GPU here",
            fix="use the ONNX file here: accel.to_onnx(model); the engine runs on " + manifest.target,
        )
    cuda = require("torch", extra="models").cuda
    index = int(device.partition(":")[2] or 0)
    if index >= cuda.device_count():
        raise EngineError(
            "PyTorch, which holds the engine's buffers, sees no such GPU.",
            seen=f"{device}; {cuda.device_count()} GPUs",
            fix='device="cuda"; or a PyTorch built for CUDA: https://pytorch.org/get-started/locally',
        )
    here = "sm{}{}".format(*cuda.get_device_capability(index))
    if here != manifest.target:
        raise ArtifactError(
            "The engine was built for another GPU.",
            seen=f"built for {manifest.target}; {cuda.get_device_name(index)} is {here}",
            fix=_REBUILD,
        )
    return library


def _deserialize(library: Library, runtime: Any, artifact: Artifact) -> Any:
    plan = artifact.path.read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        validity = getattr(runtime, "get_engine_validity", None)
        reason = validity(plan)[0] if validity else library.complaint()
        raise ArtifactError("TensorRT does not accept the engine.", seen=reason, fix=_REBUILD)
    return engine


def check_memory(needed: Mapping[str, int], *, free: int) -> None:
    """Refuse buffers that a GPU does not hold, before anything is allocated.

    Parameters
    ----------
    needed
        Bytes of each kind of buffer.
    free
        Bytes that are free on the GPU.

    Raises
    ------
    EngineError
        With each number.
    """
    if sum(needed.values()) > free:
        each = " + ".join(f"{size / 1e6:,.1f} MB of {name}" for name, size in needed.items())
        raise EngineError(
            "The GPU is out of memory for this engine.",
            seen=f"{each}; {free / 1e6:,.1f} MB are free",
            fix="free GPU memory, or build a smaller one: accel.to_tensorrt(artifact, max_batch_size=8)",
        )


def profile_for(profiles: Sequence[Profile], shape: tuple[int, int]) -> int:
    """Number of the first profile that holds a batch of ``(batch, sequence)``.

    Raises
    ------
    EngineError
        None does: an engine runs only the shapes it was built for.
    """
    for number, profile in enumerate(profiles):
        if all(low <= size <= high for low, size, high in zip(profile.min, shape, profile.max, strict=True)):
            return number
    largest = max(profiles, key=lambda profile: profile.max)
    raise EngineError(
        "No optimization profile of the engine holds this batch.",
        seen=f"batch {shape[0]} × {shape[1]} tokens; the largest profile ends at {largest.max[0]} × {largest.max[1]}",
        fix=f"run_batches(..., max_batch_size={largest.max[0]}), or build with a larger max_batch_size",
    )
