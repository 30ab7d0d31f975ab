"""Triton's Python backend: the ``TritonPythonModel`` that every ``model.py`` of the repository imports.

Triton hands over the requests of one batch, of any length each. Their rows go through the engine together, sorted by
length, and every request gets its own response or its own error.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from accel_lib.artifact import Artifact
from accel_lib.engines.shared_cores import SharedCores
from accel_lib.errors import AccelError, ArtifactError, RequestError
from accel_lib.machine import cores
from accel_lib.ragged import Ragged

if TYPE_CHECKING:
    from accel_lib.engines import Engine

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]


def read_tensor(request: Any, name: str) -> NDArray[Any]:
    """An input of a request, in Triton's own memory, which is freed after the response."""
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def write_tensor(name: str, array: NDArray[Any]) -> Any:
    """An output, handed over by DLPack: with NumPy 2, ``pb_utils.Tensor(name, array)`` silently arrives empty.

    Triton frees the memory and renames the capsule to a name that NumPy's destructor does not know, which would log an
    error per call, so the destructor is removed beforehand.
    """
    capsule = np.ascontiguousarray(array).__dlpack__()
    _set_destructor(capsule, None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def load_version(args: dict[str, str]) -> tuple[Artifact, dict[str, Any], dict[str, str]]:
    """The validated artifact, the configuration and its parameters from what Triton passes to ``initialize``."""
    config = json.loads(args["model_config"])
    parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
    artifact = Artifact.load(Path(args["model_repository"]) / args["model_version"] / "artifact")
    if not artifact.validated:
        raise ArtifactError(
            "An artifact that was not validated is not served.",
            seen=f"{artifact.name} in version {args['model_version']} of {args['model_name']}",
            fix="accel_lib.validate(Artifact.load(folder), reference=model, texts=texts)",
        )
    return artifact, config, parameters


class TritonPythonModel:
    """A validated artifact behind Triton's Python backend interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's artifact and run it once; raises `ArtifactError` or `EngineError` if that fails."""
        from accel_lib.engines import open_engine

        artifact, config, parameters = load_version(args)
        _check_tensors(artifact, config)
        self._max_length = artifact.manifest.max_length
        self._inputs = artifact.manifest.inputs
        self._output = artifact.manifest.output_name
        self._pad_id = artifact.pad_id
        self._limits = _limits(artifact, config, parameters)
        device, threads = device_of(args, parameters), thread_count(config, parameters)
        self._engine = self._on_all_cores = open_engine(artifact, device=device, threads=threads)
        self._cores = SharedCores()
        if threads < cores() and "threads" not in parameters and _threads_are_its_own(artifact, self._engine):
            self._on_all_cores = open_engine(artifact, device=device, threads=cores())
        for engine in (self._engine, self._on_all_cores):
            self._run(engine, Ragged.from_rows([np.full(8, self._pad_id, dtype=np.int64)]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Respond to every request of a batch; a bad one gets its own error."""
        answers: dict[int, Any] = {}
        rows: dict[int, Ragged] = {}
        for index, request in enumerate(requests):
            try:
                rows[index] = self._rows(request)
            except AccelError as error:
                answers[index] = refusal(error)
        answers |= self._answers(rows)
        return [answers[index] for index in range(len(requests))]

    def finalize(self) -> None:
        """Release what the engine holds."""
        for engine in {self._engine, self._on_all_cores}:
            engine.close()
        self._cores.close()

    def _rows(self, request: Any) -> Ragged:
        """The rows of one request, checked, without their padding."""
        ids, mask, *segments = tensors = [read_tensor(request, name) for name in self._inputs]
        same = all(tensor.shape == ids.shape for tensor in tensors)
        if not same or mask.view(np.uint64).max(initial=0) > 1:  # below 0 is far above it, unsigned
            raise RequestError(
                "attention_mask is 1 on tokens and 0 on padding, and all inputs have one shape.",
                seen=f"{_shapes(self._inputs, tensors)}, attention_mask up to {mask.max(initial=0)}",
                fix="send each with shape [rows, tokens], or leave the mask to the client: .infer(input_ids)",
            )
        rows = Ragged.from_padded(ids, mask, *segments)
        shortest, longest = rows.lengths.min(initial=self._max_length), rows.lengths.max(initial=0)
        least = rows.ids.min(initial=0)
        if rows.segments is not None:
            least = min(least, rows.segments.min(initial=0))
        if shortest < 1 or longest > self._max_length or least < 0:
            seen = f"{longest if longest > self._max_length else shortest:,} tokens"
            raise RequestError(
                f"A row holds 1 to {self._max_length} token ids, and no id is below 0.",
                seen=f"{seen}, the smallest {least}" if least < 0 else seen,
                fix="tokenize with the model's own tokenizer, which cuts: .encode(texts)",
            )
        return rows

    def _answers(self, rows: dict[int, Ragged]) -> dict[int, Any]:
        """Responses by request; if the engine refuses the batch, each request is tried alone."""
        if not rows:
            return {}
        try:
            vectors = self._vectors(Ragged.concat(list(rows.values())), requests=len(rows))
        except AccelError as error:
            if len(rows) == 1:
                return dict.fromkeys(rows, refusal(error))
            return {i: answer for index in rows for i, answer in self._answers({index: rows[index]}).items()}
        ends = np.cumsum([len(part) for part in rows.values()])
        parts = zip(rows, np.split(vectors, ends[:-1]), strict=True)
        return {index: pb_utils.InferenceResponse([write_tensor(self._output, part)]) for index, part in parts}

    def _vectors(self, rows: Ragged, *, requests: int) -> NDArray[np.float32]:
        with self._cores.computing() as alone:
            return self._run(self._on_all_cores if alone and requests == 1 else self._engine, rows)

    def _run(self, engine: Engine, rows: Ragged) -> NDArray[np.float32]:
        from accel_lib.engines.batching import run_batches

        return run_batches(engine, rows, self._pad_id, side_by_side=False, **self._limits)


def _check_tensors(artifact: Artifact, config: dict[str, Any]) -> None:
    """Refuse a configuration whose tensors are not the artifact's; Triton would notice at the first request only."""
    ids = {"data_type": "TYPE_INT64", "dims": [-1]}
    vectors = {"data_type": "TYPE_FP32", "dims": [artifact.manifest.dimension]}
    wanted = dict.fromkeys(artifact.manifest.inputs, ids) | {artifact.manifest.output_name: vectors}
    declared = {t["name"]: {"data_type": t["data_type"], "dims": t["dims"]} for t in config["input"] + config["output"]}
    if declared != wanted or config["max_batch_size"] < 1:
        raise ArtifactError(
            "config.pbtxt declares other tensors than the artifact has, or no batching.",
            seen=f"{_show(declared)}, max_batch_size {config['max_batch_size']}",
            fix=f"declare {_show(wanted)}, and a max_batch_size of 1 or more",
        )


def _show(tensors: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {t['data_type'].removeprefix('TYPE_')} {t['dims']}" for name, t in tensors.items())


def _shapes(names: Sequence[str], tensors: Sequence[NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))


def refusal(error: AccelError) -> Any:
    """An error as the response to a request."""
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))


def device_of(args: dict[str, str], parameters: dict[str, str]) -> str:
    """The configured device, else the one Triton put this instance on."""
    own = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
    return parameters.get("device", own)


def _threads_are_its_own(artifact: Artifact, engine: Engine) -> bool:
    """Whether an engine on a CPU keeps its number of threads beside another one; PyTorch has one for the process."""
    return engine.device == "cpu" and artifact.manifest.format != "torch"


def thread_count(config: dict[str, Any], parameters: dict[str, str]) -> int:
    """The configured threads, else this instance's share of the cores."""
    if "threads" in parameters:
        return int(parameters["threads"])
    instances = sum(group["count"] for group in config["instance_group"] if group["kind"] == "KIND_CPU")
    return max(1, cores() // max(1, int(instances)))


def _limits(artifact: Artifact, config: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
    """Bounds of one engine call: the rows that an engine's profiles allow, and the configured padded tokens."""
    widest = [profile.max[0] for profile in artifact.manifest.profiles]
    rows = {"max_batch_size": min([config["max_batch_size"], *widest])}
    tokens = {"max_batch_tokens": int(parameters["max_batch_tokens"])} if "max_batch_tokens" in parameters else {}
    return rows | tokens
