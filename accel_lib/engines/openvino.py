"""OpenVINO behind the engine protocol: ONNX and OpenVINO artifacts on a CPU, in a precision that is always stated."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.batching import check_batch
from accel_lib.engines.shape_buckets import ShapeBuckets
from accel_lib.errors import ArtifactError, EngineError, require
from accel_lib.machine import BF16, cores, inspect_machine
from accel_lib.ragged import by_name

Precision = Literal["fp32", "bf16", "int8"]

# Without a hint OpenVINO computes in BF16 wherever the CPU has it, whatever the file says.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_MOVES = ("Transpose", "Reorder", "Reshape", "Convert")  # what may lie between weights and their product
_NAMES = {"f32": "fp32", "u8": "int8", "i8": "int8"}


def has_bf16() -> bool:
    """Whether this CPU multiplies BF16 numbers; on others OpenVINO would convert each of them, which is slow."""
    return bool(BF16 & set(inspect_machine().isa))


class OpenVINOEngine:
    """Run an ONNX or an OpenVINO artifact on a CPU by OpenVINO.

    Parameters
    ----------
    artifact
        Of format ``openvino``, or ``onnx`` in FP32, padded or packed.
    device
        ``"auto"`` and ``"cpu"`` are the CPU; any other is refused.
    threads
        Threads for one batch; None takes the cores that this process may use, which OpenVINO does not know.
    precision
        ``"fp32"`` or ``"bf16"``, for products and what lies between them; None takes the artifact's.

    Raises
    ------
    EngineError
        A GPU was asked for, or BF16 on a CPU without it, or the file holds operators of ONNX Runtime's own.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: Precision | None = None,
    ) -> None:
        manifest = artifact.manifest
        if device.startswith("cuda"):
            fix = 'device="cpu"; for a GPU: accel.open_engine(model, device="cuda"), or accel.to_tensorrt(onnx)'
            raise EngineError("OpenVINO runs on CPUs here.", seen=f"device={device!r}", fix=fix)
        self.precision = precision or manifest.precision
        _check_precision(artifact, self.precision)
        self.name = f"{artifact.name} openvino" if manifest.format == "onnx" else artifact.name
        if self.precision != manifest.precision:
            self.name = self.name.replace(manifest.precision, self.precision)
        self.device = "cpu"
        self.dimension = manifest.dimension
        self.pad_id = artifact.pad_id
        self.max_length = manifest.max_length
        self.packed = manifest.packed
        self._shaped = ShapeBuckets(pad_id=self.pad_id, max_length=self.max_length, packed=self.packed)
        self.lanes = threads or cores()
        self._compile = functools.partial(_compile, artifact, precision=self.precision, threads=self.lanes)
        self._all_cores: _Compiled | None = self._compile(streams=1)
        self._one_core: _Compiled | None = None
        self._opening = threading.Lock()
        self._inputs = tuple(port.any_name for port in self._all_cores.model.inputs)

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """int64 ``[batch, sequence]`` each to float32 ``[batch, dimension]``; without segment ids they are zeros."""
        return self._run(self._all_cores, input_ids, attention_mask, token_type_ids)

    def run_on_one_core(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """As `run`, in a thread of the caller's: `lanes` batches side by side wait less than one on all cores."""
        with self._opening:
            self._one_core = self._one_core or self._compile(streams=self.lanes)
        return self._run(self._one_core, input_ids, attention_mask, token_type_ids)

    def _run(
        self,
        compiled: _Compiled | None,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None,
    ) -> NDArray[np.float32]:
        check_batch(input_ids, attention_mask, self.max_length, token_type_ids)
        if compiled is None:
            raise EngineError("The engine was closed.", fix="open it again: accel.open_engine(artifact)")
        given = (input_ids, attention_mask) if token_type_ids is None else (input_ids, attention_mask, token_type_ids)
        feeds = by_name(self._inputs, (*self._shaped(*given), None)[:3])
        try:
            return compiled.infer(feeds)[: len(input_ids)]
        except RuntimeError as error:  # what OpenVINO's own errors are
            raise EngineError(
                "OpenVINO refused the batch.",
                seen=_last_line(error),
                fix="take the ids from the tokenizer.json of this artifact; smaller batches where memory ran out",
            ) from error

    def computed_precision(self) -> str:
        """The precision in which the compiled products with weights compute, or how many of them do in which."""
        nodes = self._all_cores.model.get_runtime_model().get_ops() if self._all_cores else []
        found: Counter[str] = Counter()
        for node in filter(_has_weights, nodes):
            computed = str(node.get_rt_info()["runtimePrecision"].astype(str))
            found[_NAMES.get(computed, computed)] += 1
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{count} products in {name}" for name, count in found.items()) or "no matrix product"

    def close(self) -> None:
        """Drop the compiled models and their requests."""
        self._all_cores = self._one_core = None


def _has_weights(node: Any) -> bool:
    """Whether a compiled node is a product with weights, and not one of attention's, whose sides are both computed."""
    kind = _kind(node)
    return kind == "FullyConnected" or (kind == "MatMul" and any(map(_is_weight, node.input_values())))


def _is_weight(value: Any) -> bool:
    node = value.get_node()
    while _kind(node) in _MOVES:
        node = node.input_value(0).get_node()
    return _kind(node) == "Const"


def _kind(node: Any) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))


class _Compiled:
    """A compiled model, and as many of its requests as threads have asked for at once."""

    _used = False  # in this process, by anyone
    _first_use = threading.Lock()

    def __init__(self, model: Any) -> None:
        self.model = model
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def infer(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        if _Compiled._used:
            return self._infer(feeds)
        with self._first_use:  # OpenVINO's Python bindings make tables on it: two threads would wait for each other
            output = self._infer(feeds)
            _Compiled._used = True
        return output

    def _infer(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        with self._request() as request:
            request.infer(feeds, share_inputs=True)
            output: NDArray[np.float32] = request.get_output_tensor(0).data.copy()  # the next batch takes its place
        return output

    @contextlib.contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self.model.create_infer_request()
        yield request
        self._idle.put(request)


def _check_precision(artifact: Artifact, precision: str) -> None:
    manifest = artifact.manifest
    if manifest.format == "onnx" and manifest.precision != "fp32":
        raise EngineError(
            "OpenVINO takes FP32 files of ONNX, and sets the precision itself.",
            seen=artifact.name,
            fix='accel.to_openvino(model, precision="int8"), or open it by ONNX Runtime: accel.open_engine(artifact)',
        )
    if precision not in _HINTS or (precision == "int8") != (manifest.precision == "int8"):
        raise EngineError(
            "The file is not in this precision.",
            seen=f"precision={precision!r} of {artifact.name}",
            fix=f"accel.to_openvino(model, precision={precision!r}); an FP32 file opens as fp32 and as bf16",
        )
    if precision == "bf16" and not has_bf16():
        raise EngineError(
            "This CPU has no BF16: OpenVINO would convert every number on its way, slower than FP32.",
            seen=f"this CPU has {', '.join(inspect_machine().isa) or 'no fast instructions'}",
            fix='precision="fp32", or "int8", which is faster on any CPU: accel.to_openvino(model, precision="int8")',
        )


def _compile(artifact: Artifact, *, precision: str, threads: int, streams: int) -> _Compiled:
    """Compile an artifact's file; each stream has its share of the threads.

    Threads are not pinned: processes pin theirs to the same first cores, and a container's quota names no cores.
    """
    openvino = require("openvino", extra="openvino")
    config = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": False,
    }
    try:
        core = openvino.Core()
        return _Compiled(core.compile_model(core.read_model(str(artifact.path)), "CPU", config))
    except RuntimeError as error:  # what OpenVINO's own errors are
        raise ArtifactError(
            f"OpenVINO cannot load {artifact.path.name} of {artifact.folder.name}.",
            seen=_last_line(error),
            fix="convert the model again: accel.to_openvino(model), or accel.to_onnx(model)",
        ) from error


def _last_line(error: BaseException) -> str:
    """What OpenVINO's message ends with; in front of it stand the places in its source."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
