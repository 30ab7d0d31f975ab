"""PyTorch behind the engine protocol: the reference everything else is compared with, on CPU or CUDA."""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.batching import check_batch
from accel_lib.engines.cuda_graphs import WARM_UPS, GraphCache, Graphs, supported
from accel_lib.errors import ArtifactError, EngineError, require
from accel_lib.machine import cores
from accel_lib.ragged import SEGMENTS, Ragged, by_name

if TYPE_CHECKING:
    import torch

    from accel_lib.models import Model

_GRAPHS = 16
_GRAPH_TOKENS = 32_768  # of one captured batch: 256 texts of 128, whose kernels took 8% longer in four parts (H200)


class TorchEngine:
    """Run a model, or a ``torch`` artifact, in PyTorch.

    Parameters
    ----------
    candidate
        A `Model`, or an `Artifact` of format ``torch``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    threads
        CPU threads, at most as many as there are cores unless asked; a setting of the whole process, as PyTorch has it.
    precision
        For a `Model`: ``"fp32"``, or ``"fp16"`` on a GPU: the transformer in half precision, pooling in FP32. PyTorch's
        own CUDA kernels for softmax and LayerNorm accumulate in FP32. An artifact has its own.
    cuda_graphs
        On a GPU, capture the kernels of each (batch, sequence) shape once and replay them: fewer launches, for small
        batches. The 16 shapes used last are kept, in the memory that the largest one needs.
        Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    packed
        For a `Model`: compute real tokens only, texts concatenated. On a GPU (compute capability 8.0 and up, in
        fp16) always with CUDA graphs, of few sizes: see `accel_lib.engines.cuda_graphs`. An artifact has its own.
    compiled
        Let ``torch.compile`` generate the kernels, once for all sizes: half a minute on first use, for long runs.

    Notes
    -----
    Packed on a GPU, layers of BERT's kind compute GELU by its tanh form, inside the product before it: see
    `accel_lib.models.fusion`.
    """

    def __init__(
        self,
        candidate: Model | Artifact,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        cuda_graphs: bool = False,
        packed: bool = False,
        compiled: bool = False,
    ) -> None:
        torch = require("torch", extra="models")
        self.device = find_device(device)
        held = candidate.manifest.precision if isinstance(candidate, Artifact) else None
        precision = precision or held or "fp32"
        wrong = precision not in ("fp32", "fp16") or held not in (None, precision)
        if wrong or (self.device == "cpu" and (precision == "fp16" or cuda_graphs)):
            raise EngineError(
                "PyTorch runs a model in fp32, or in fp16 and with CUDA graphs on a GPU.",
                seen=f"precision {precision!r} on {self.device}, cuda_graphs={cuda_graphs}",
                fix='open_engine(model), or open_engine(model, device="cuda", precision="fp16")',
            )
        if threads or self.device == "cpu":
            torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
        described = candidate.manifest if isinstance(candidate, Artifact) else candidate
        self.packed = candidate.manifest.packed if isinstance(candidate, Artifact) else packed
        options = {"packed": self.packed, "CUDA graphs": cuda_graphs, "compiled": compiled}
        self.name = ", ".join([f"torch {precision}", *(name for name, wanted in options.items() if wanted)])
        self.precision = precision
        self.dimension = described.dimension
        self.pad_id = candidate.pad_id if isinstance(candidate, Artifact) else candidate.tokenizer.pad_id
        self.max_length = described.max_length
        self._inputs = described.inputs
        if self.packed and self.device != "cpu":
            _check_kernels(self.device, precision)
        self._module = _module(candidate, self.device, packed=self.packed)
        if precision == "fp16" and not held:
            halve(self._module)
        if self.packed and self.device != "cpu":
            self._module = _from_offsets(self._module)
        if compiled:
            self._module = torch.compile(self._module, dynamic=True)
        # What takes a batch that never was padded; see `accel_lib.engines.batching.run_batches`.
        self.run_ragged: Callable[[Ragged], NDArray[np.float32]] | None = self._run_packed if self.packed else None
        self._graphs = None
        if self.packed and self.device != "cpu":
            self._graphs = Graphs(self._module, self.device, segments=SEGMENTS in self._inputs)
        self._graph = None
        if cuda_graphs:
            self._graph = GraphCache(self._capture, new_pool=torch.cuda.graph_pool_handle, most=_GRAPHS)
            self._stream = torch.cuda.Stream(self.device)  # one for all: cuBLAS keeps 32 MB for each stream it saw

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
        if self.packed:
            return self._run_packed(Ragged.from_padded(*batch.values()))
        with _refusals(), torch.inference_mode():
            result = self._forward(*map(torch.from_numpy, batch.values()))
            output: NDArray[np.float32] = result.float().cpu().numpy()
        return output

    def close(self) -> None:
        """Let go of the network and of what was captured."""
        self._module = self._graph = self._graphs = None

    def _run_packed(self, rows: Ragged) -> NDArray[np.float32]:
        """Rows without padding, at most `max_length` each, to float32 ``[rows, dimension]``."""
        import torch

        from accel_lib.models.varlen import flatten

        if self._graphs is None:
            batch = map(torch.from_numpy, flatten(rows, texts=2, segments=SEGMENTS in self._inputs))
            with _refusals(), torch.inference_mode():
                answer: NDArray[np.float32] = self._module(*batch).numpy()
            return answer[: len(rows)]
        with _refusals():
            answers = self._graphs.run(rows.cut(_GRAPH_TOKENS))
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        if self._graph is None:
            output: torch.Tensor = self._module(*(tensor.to(self.device) for tensor in tensors))
            return output
        shape = tensors[0].shape
        graph, inputs, result = self._graph(tuple(shape), tokens=shape.numel())
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        captured: torch.Tensor = result
        return captured

    def _capture(
        self, shape: tuple[int, ...], pool: Any
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        """A graph for one shape, the buffers it reads and the one it writes."""
        import torch

        with torch.cuda.device(self.device):
            inputs = [torch.ones(shape, dtype=torch.int64, device=self.device) for _ in self._inputs]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._module(*inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                result = self._module(*inputs)
        return graph, inputs, result


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What PyTorch raises for a batch, as an `EngineError`."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        raise EngineError(
            "PyTorch refused the batch.",
            seen=str(error).splitlines()[0],
            fix="take the ids from this model's own tokenizer; smaller batches where memory ran out",
        ) from error


def find_device(device: str) -> str:
    """``"cpu"`` or ``"cuda:N"``; raises `EngineError` for a GPU that is not there."""
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise EngineError(
            "PyTorch sees no such GPU.",
            seen=f"{device}; {torch.cuda.device_count()} GPUs, torch {torch.__version__}",
            fix='device="cpu"; on Colab: Runtime, Change runtime type, T4 GPU',
        )
    return f"cuda:{index}"


def _check_kernels(device: str, precision: str) -> None:
    if precision != "fp16" or not supported(device):
        raise EngineError(
            "On a GPU, packed batches need half precision and FlashAttention.",
            seen=f"precision {precision} on {device}, which needs compute capability 8.0 or more",
            fix='precision="fp16"; on a T4: open_engine(model, device="cuda", precision="fp16", cuda_graphs=True)',
        )


def _from_offsets(module: Any) -> Any:
    from accel_lib.models.varlen import FromOffsets

    return FromOffsets(module)


def _module(candidate: Model | Artifact, device: str, *, packed: bool) -> Any:
    """The network on its device: the model's own on a CPU, a copy on a GPU."""
    if isinstance(candidate, Artifact):
        return _read(candidate, device)
    if packed:
        from accel_lib.models.varlen import to_varlen

        return to_varlen(candidate.module, longest=candidate.max_length).to(device)
    return candidate.module if device == "cpu" else copy.deepcopy(candidate.module).to(device)


def halve(module: torch.nn.Module) -> None:
    """Cast the transformer inside to half precision, in place; what stands around it casts by itself.

    Raises
    ------
    EngineError
        There is none inside.
    """
    transformers = [part.transformer for part in module.modules() if hasattr(part, "transformer")]
    if not transformers:
        raise EngineError(
            "This network has no transformer to run in half precision.",
            seen=type(module).__name__,
            fix='open_engine(model, device="cuda")',
        )
    for transformer in transformers:
        exact = [
            (part, name, buffer)
            for part in transformer.modules()  # type: ignore[union-attr]
            for name, buffer in part.named_buffers(recurse=False)
            if "freq" in name  # of rotary positions, whose angles in FP16 are off by a radian at a thousand tokens
        ]
        transformer.half()
        for part, name, buffer in exact:
            setattr(part, name, buffer)


def _read(artifact: Artifact, device: str) -> torch.nn.Module:
    import torch
    from torch.export.passes import move_to_device_pass

    if artifact.manifest.packed:
        importlib.import_module("accel_lib.models.varlen")  # registers the operator that the program calls
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch 2.11 reads weights in place
            program = torch.export.load(artifact.path)
    except Exception as error:  # a damaged archive raises whatever its reader meets
        raise ArtifactError(
            f"PyTorch cannot load {artifact.path.name} of {artifact.folder.name}.",
            seen=str(error).splitlines()[0],
            fix="convert the model again: accel.to_torch(model)",
        ) from error
    if device != "cpu":  # an exported graph holds the device it was traced on, which Module.to does not reach
        program = move_to_device_pass(program, device)
    return program.module()
