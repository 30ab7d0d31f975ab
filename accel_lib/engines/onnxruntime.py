"""ONNX Runtime behind the engine protocol, on the provider that was asked for and no other; and parts of a model."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.batching import check_batch
from accel_lib.errors import ArtifactError, EngineError, require
from accel_lib.machine import VNNI, cores, inspect_machine
from accel_lib.ragged import by_name

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# On 512 tokens of 384 numbers the fused operator took 0.82 ms, an addition and a LayerNormalization 0.10 ms together
# (ONNX Runtime 1.32, one core with AVX-512): the fused kernel adds up number by number.
SLOW_FUSIONS = ("SkipLayerNormFusion",)


def weight_bits() -> int:
    """Bits of an INT8 weight here: 7 where sums of two products of 8-bit numbers overflow their 16, as without VNNI."""
    return 8 if set(inspect_machine().isa) & VNNI else 7


class OnnxRuntimeEngine:
    """Run an ONNX artifact on CPU or CUDA.

    Parameters
    ----------
    artifact
        An artifact of format ``onnx``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; `device` of the engine says what it became.
    threads
        Threads for one operator (``intra_op_num_threads``); None leaves them to ONNX Runtime, which counts the
        machine's cores, or takes as many as this process may use where those are fewer.
    allow_spinning
        Let threads wait in a loop for the next operator of a run, which answers sooner; False where several engines run
        on the same cores at a time.
        Source: https://onnxruntime.ai/docs/performance/tune-performance/threading.html
    fusions
        Let ONNX Runtime rearrange the graph for this machine; False runs it operator by operator, to see what it gives.
    graph
        A serialized graph to run instead of the artifact's own, on the artifact's weights where it refers to them.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "auto",
        threads: int | None = None,
        allow_spinning: bool = True,
        fusions: bool = True,
        graph: bytes | None = None,
    ) -> None:
        index = int(device.partition(":")[2] or 0)
        self._open = functools.partial(
            open_session, artifact, device=device, allow_spinning=allow_spinning, fusions=fusions, graph=graph
        )
        self._session, provider = self._open(threads=threads)
        self._alone, self._opening = None, threading.Lock()
        got = self._session.get_providers()[0]
        if got != provider and device != "auto":
            raise EngineError(
                "ONNX Runtime could not start CUDA.",
                seen=f"{got}, not {provider}",
                fix='device="cpu"; accel doctor shows the driver and the versions',
            )
        manifest = artifact.manifest
        self.name = artifact.name
        self.device = f"cuda:{index}" if got == _CUDA else "cpu"
        self.precision = manifest.precision
        self.dimension = manifest.dimension
        self.pad_id = artifact.pad_id
        self.max_length = manifest.max_length
        self.packed = manifest.packed
        self._inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.lanes = (threads or cores()) if self.device == "cpu" else 1

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """int64 ``[batch, sequence]`` each to float32 ``[batch, dimension]``; without segment ids they are zeros."""
        return self._run(self._session, input_ids, attention_mask, token_type_ids)

    def run_on_one_core(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """As `run`, in a thread of the caller's: `lanes` batches side by side wait less than one on all cores."""
        with self._opening:
            self._alone = self._alone or self._open(threads=1)[0]
        return self._run(self._alone, input_ids, attention_mask, token_type_ids)

    def _run(
        self,
        session: Any,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None,
    ) -> NDArray[np.float32]:
        check_batch(input_ids, attention_mask, self.max_length, token_type_ids)
        try:
            (output,) = session.run(None, by_name(self._inputs, (input_ids, attention_mask, token_type_ids)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
            raise EngineError(
                "ONNX Runtime refused the batch.",
                seen=str(error).splitlines()[0],
                fix="take the ids from the tokenizer.json of this artifact; smaller batches where memory ran out",
            ) from error
        result: NDArray[np.float32] = output
        return result

    def close(self) -> None:
        """Drop the sessions and their arenas."""
        self._session = self._alone = None


class Part:
    """Run an ONNX artifact whose inputs are not only token ids: tensors in by name, one tensor out, on a CPU.

    Parameters
    ----------
    artifact
        A whole model, or a part that `accel_lib.convert.partition.cut` made.
    threads
        For one operator; they do not spin while they wait, since parts share the cores.
    """

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        self._session, _ = open_session(artifact, device="cpu", threads=threads, allow_spinning=False)
        self.inputs: tuple[str, ...] = tuple(tensor.name for tensor in self._session.get_inputs())
        self.output: str = artifact.manifest.output_name

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Tensors ``[batch, tokens, …]`` to ``[batch, …]``; those that this part does not take are left aside.

        Raises
        ------
        EngineError
            A tensor is missing, or ONNX Runtime refused them.
        """
        try:
            (output,) = self._session.run(None, {name: tensors[name] for name in self.inputs})
        except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
            seen = f"{', '.join(f'{name} {list(array.shape)}' for name, array in tensors.items())}: {error}"
            raise EngineError(
                "ONNX Runtime refused the batch.",
                seen=seen.splitlines()[0],
                fix=f"pass {', '.join(self.inputs)} of one batch and one length",
            ) from error
        result: NDArray[np.float32] = output
        return result

    def close(self) -> None:
        """Drop the session and its arenas."""
        self._session = None


def open_session(
    artifact: Artifact,
    *,
    device: str,
    threads: int | None,
    allow_spinning: bool,
    fusions: bool = True,
    graph: bytes | None = None,
) -> tuple[Any, str]:
    """ONNX Runtime's session on an artifact, as `OnnxRuntimeEngine` describes it, and the provider it was asked for."""
    ort = require("onnxruntime", extra="convert")
    provider = _provider(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fusions else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or _allowed()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # after a run, when others need the cores
    if graph is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(artifact.folder))
        options.execution_order = (
            ort.ExecutionOrder.PRIORITY_BASED
        )  # as it is written: what is looked at is let go soon
    if provider == _CPU:
        _check_weight_bits(artifact.manifest.weight_bits)
    index = int(device.partition(":")[2] or 0)
    return _session(ort, artifact, graph or artifact.path, options, provider, index), provider


def _check_weight_bits(bits: int) -> None:
    if bits and bits > weight_bits():
        raise EngineError(
            "These INT8 weights give wrong numbers on this CPU: sums of two products overflow without VNNI.",
            seen=f"{bits}-bit weights; this CPU has {', '.join(inspect_machine().isa) or 'no fast instructions'}",
            fix='convert the model again on this machine: accel.to_onnx(model, precision="int8")',
        )


def _allowed() -> int:
    """Cores this process may use where it may not use all, or 0: more threads than cores wait for each other."""
    allowed = cores()
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _provider(device: str, available: list[str]) -> str:
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return _CPU
    if _CUDA not in available:
        raise EngineError(
            "This ONNX Runtime has no CUDA.",
            seen=", ".join(available),
            fix='python -m pip install onnxruntime-gpu (and remove onnxruntime), or device="cpu"',
        )
    return _CUDA


def _session(ort: Any, artifact: Artifact, held: Path | bytes, options: Any, provider: str, index: int) -> Any:
    skipped = list(SLOW_FUSIONS) if provider == _CPU else []
    choice = (_CUDA, {"device_id": index}) if provider == _CUDA else _CPU
    try:
        return ort.InferenceSession(held, options, providers=[choice], disabled_optimizers=skipped)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below this one
        seen = str(error).splitlines()[0]
        what = f"ONNX Runtime cannot load {artifact.path.name} of {artifact.folder.name}"
        if provider == _CUDA:
            fix = 'device="cpu": if that loads, the GPU is at fault and not the file'
            raise EngineError(f"{what} on cuda:{index}.", seen=seen, fix=fix) from error
        raise ArtifactError(f"{what}.", seen=seen, fix="convert the model again: accel.to_onnx(model)") from error
