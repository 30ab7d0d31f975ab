"""Typed configuration of one served model (``config.pbtxt``), read from and written to Triton's protobuf message.

``ModelConfig`` names the settings this project works with and keeps every other field of a file as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from accel_lib.errors import ServerError, require

CONFIG_FILE = "config.pbtxt"
Kind = Literal["auto", "cpu", "gpu", "model"]
TimeoutAction = Literal["reject", "delay"]
Versions = Literal["all", "latest"] | tuple[int, ...]

# Field of ModelConfig -> field of Triton's message (model_config.proto of triton-inference-server/common).
_BATCHING = {
    "max_queue_delay_us": "dynamic_batching.max_queue_delay_microseconds",
    "preferred_batch_sizes": "dynamic_batching.preferred_batch_size",
    "priority_levels": "dynamic_batching.priority_levels",
    "default_priority_level": "dynamic_batching.default_priority_level",
    "max_queue_size": "dynamic_batching.default_queue_policy.max_queue_size",
    "queue_timeout_us": "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "allow_timeout_override": "dynamic_batching.default_queue_policy.allow_timeout_override",
}
_NO_NUMBERS = ("preferred_batch_sizes", "allow_timeout_override")
_TIMEOUT_ACTION = "dynamic_batching.default_queue_policy.timeout_action"
_PATHS = {
    "name": "name",
    "backend": "backend",
    "max_batch_size": "max_batch_size",
    "response_cache": "response_cache.enable",
    "decoupled": "model_transaction_policy.decoupled",
    **_BATCHING,
}
_PARAMETERS: Mapping[str, Callable[[str], Any]] = {
    "max_batch_tokens": int,
    "threads": int,
    "device": str,
    "rows": int,
    "cache_tokens": int,
    "max_waiting": int,
    "step_tokens": int,
    "policy": str,
}
_LEAST = {
    **dict.fromkeys(["max_batch_size", *(name for name in _BATCHING if name not in _NO_NUMBERS)], 0),
    **dict.fromkeys(["instance_count", *(name for name, kind in _PARAMETERS.items() if kind is int)], 1),
}
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: Triton's data type without ``TYPE_``, and its shape without the batch (-1: any length)."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    ragged: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The settings of one served model.

    Parameters
    ----------
    name, backend
        Folder name in the repository, and the Triton backend that runs it.
    max_batch_size
        Most rows of one execution; 0 turns batching off.
    inputs, outputs
        Tensors without their batch dimension.
    dynamic_batching
        Whether requests in the queue are batched.
    max_queue_delay_us
        How long the batcher may wait for a larger batch, microseconds.
    preferred_batch_sizes
        Sizes that are executed at once; empty means `max_batch_size`.
    priority_levels, default_priority_level
        Number of levels (1 is served first; 0 turns priorities off), and the level of a request that names none.
    max_queue_size
        Requests the queue holds; more are rejected. 0 means no limit.
    queue_timeout_us
        Longest time in the queue, microseconds. 0 means no limit: deadlines belong to the gateway.
    timeout_action, allow_timeout_override
        Whether a request that waited longer is rejected or delayed behind all others, and whether a request may set a
        shorter timeout of its own.
    instance_count, instance_kind
        Copies of the model per device, and ``"auto"`` (GPU if there is one), ``"cpu"`` or ``"gpu"``.
    versions
        ``"all"``, ``"latest"``, or the version numbers to serve.
    response_cache
        Whether equal requests are served from the response cache.
    decoupled
        Whether a request may have several responses, as a model that generates gives.
    max_batch_tokens
        Padded tokens per engine call, of which an execution may make several; None leaves it to the backend.
    threads
        CPU threads of one instance; None shares the cores among the instances, and gives all of them to a request that
        no other one computes beside. Memory for the weights is needed twice then (not with PyTorch).
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` for the engine; None follows the instance.
    rows, cache_tokens, max_waiting, step_tokens
        Of a model that generates: requests in a batch, tokens in its key-value cache, requests that wait for a place
        at most, and tokens of a step at most, prompts included; None leaves them to the engine.
    policy
        Of a model that generates: ``"continuous"`` lets a request join the batch that runs, ``"static"`` the next one.
    kept
        The protobuf message it was read from: fields without a name here are written back unchanged.

    Raises
    ------
    ServerError
        A value that no configuration may hold.
    """

    name: str
    backend: str = "python"
    max_batch_size: int = 64
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dynamic_batching: bool = True
    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    priority_levels: int = 0
    default_priority_level: int = 0
    max_queue_size: int = 0
    queue_timeout_us: int = 0
    timeout_action: TimeoutAction = "reject"
    allow_timeout_override: bool = False
    instance_count: int = 1
    instance_kind: Kind = "auto"
    versions: Versions = "all"
    response_cache: bool = False
    decoupled: bool = False
    max_batch_tokens: int | None = None
    threads: int | None = None
    device: str | None = None
    rows: int | None = None
    cache_tokens: int | None = None
    max_waiting: int | None = None
    step_tokens: int | None = None
    policy: str | None = None
    kept: bytes = dataclasses.field(default=b"", repr=False)

    def __post_init__(self) -> None:
        for name in ("preferred_batch_sizes", "versions"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value <= _MOST):
                raise ServerError(
                    f"{name} is a whole number.", seen=f"{name}={value!r}", fix=f"pass {least} or more: {name}={least}"
                )
        batching = [name for name in _BATCHING if getattr(self, name)]
        if batching and not self.dynamic_batching:
            raise ServerError(
                "Dynamic batching is off, so its settings would do nothing.",
                seen=", ".join(f"{name}={getattr(self, name)}" for name in batching),
                fix="pass dynamic_batching=True too",
            )

    def replace(self, **settings: Any) -> ModelConfig:
        """A copy with some settings changed; a name that is none of the fields is refused.

        Examples
        --------
        >>> ModelConfig(name="embedding").replace(max_queue_delay_us=2_000).max_queue_delay_us
        2000
        """
        known = [field.name for field in dataclasses.fields(self) if field.name != "kept"]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ServerError(
                "There is no such setting.", seen=", ".join(unknown), fix=f"choose from {', '.join(known)}"
            )
        return dataclasses.replace(self, **settings)

    def to_protobuf(self) -> Any:
        """Triton's own ``inference.ModelConfig`` message; raises `ServerError` for a value it has no place for."""
        try:
            return self._write_to(_message(self.kept))
        except (AttributeError, TypeError, ValueError) as error:
            raise ServerError(
                "A setting has a value that no configuration may hold.",
                seen=error,
                fix="help(accel_lib.triton.config.ModelConfig) says what each setting may be",
            ) from error

    def _write_to(self, message: Any) -> Any:
        for field, path in _PATHS.items():
            _write(message, path, getattr(self, field))
        if self.timeout_action != _read_action(message):
            _write(message, _TIMEOUT_ACTION, ("reject", "delay").index(self.timeout_action))
        if self.dynamic_batching:
            message.dynamic_batching.SetInParent()
        else:
            message.ClearField("dynamic_batching")
        _write_tensors(message.input, self.inputs)
        _write_tensors(message.output, self.outputs)
        _write_instances(message, self.instance_count, self.instance_kind)
        if self.versions != _read_versions(message.version_policy):
            message.version_policy.Clear()
            _write_versions(message.version_policy, self.versions)
        for name in _PARAMETERS:
            value = getattr(self, name)
            message.parameters.pop(name, None)
            if value is not None:
                message.parameters[name].string_value = str(value)
        return message

    @classmethod
    def from_protobuf(cls, message: Any) -> ModelConfig:
        """The typed view of a message; raises `ServerError` for a parameter that is not a number."""
        group = message.instance_group[0] if message.instance_group else None
        return cls(
            **{field: _read(message, path) for field, path in _PATHS.items()},
            inputs=_read_tensors(message.input),
            outputs=_read_tensors(message.output),
            dynamic_batching=message.HasField("dynamic_batching"),
            timeout_action=_read_action(message),
            instance_count=max(1, group.count) if group else 1,
            instance_kind=type(group).Kind.Name(group.kind).removeprefix("KIND_").lower() if group else "auto",
            versions=_read_versions(message.version_policy),
            **{name: _read_parameter(message, name) for name in _PARAMETERS},
            kept=message.SerializeToString(deterministic=True),
        )

    def to_text(self) -> str:
        """The content of ``config.pbtxt``."""
        return str(require("google.protobuf.text_format", extra="triton").MessageToString(self.to_protobuf()))

    @classmethod
    def from_text(cls, text: str, *, file: str = CONFIG_FILE) -> ModelConfig:
        """Read the content of a ``config.pbtxt``; a `ServerError` names the line that protobuf cannot read."""
        text_format = require("google.protobuf.text_format", extra="triton")
        message = _message(b"")
        try:
            text_format.Parse(text, message)
        except text_format.ParseError as error:
            number = error.GetLine() or 1
            line = (text.splitlines() + [""] * number)[number - 1].strip()
            raise ServerError(
                f"{file} is not a model configuration.",
                seen=f"line {line!r}, {error}",
                fix=f"fix line {number} of {file}",
            ) from error
        return cls.from_protobuf(message)

    def to_json(self) -> str:
        """The configuration as JSON, as Triton takes it for an override at load."""
        json_format = require("google.protobuf.json_format", extra="triton")
        return str(json_format.MessageToJson(self.to_protobuf(), preserving_proto_field_name=True, indent=None))


def _message(content: bytes) -> Any:
    return require("tritonclient.grpc.model_config_pb2", extra="triton").ModelConfig.FromString(content)


def _read(message: Any, path: str) -> Any:
    for step in path.split("."):
        message = getattr(message, step)
    return message if isinstance(message, str | int) else tuple(message)


def _write(message: Any, path: str, value: Any) -> None:
    if value == _read(message, path):
        return
    *parents, last = path.split(".")
    for step in parents:
        message = getattr(message, step)
    if isinstance(value, tuple):
        getattr(message, last)[:] = value
    else:
        setattr(message, last, value)


def _read_action(message: Any) -> TimeoutAction:
    return "delay" if _read(message, _TIMEOUT_ACTION) else "reject"


def _read_tensors(tensors: Any) -> tuple[TensorSpec, ...]:
    types = require("tritonclient.grpc.model_config_pb2", extra="triton").DataType
    return tuple(
        TensorSpec(
            name=tensor.name,
            data_type=types.Name(tensor.data_type).removeprefix("TYPE_"),
            dims=tuple(tensor.dims),
            ragged=getattr(tensor, "allow_ragged_batch", False),
        )
        for tensor in tensors
    )


def _write_tensors(tensors: Any, specs: tuple[TensorSpec, ...]) -> None:
    if specs == _read_tensors(tensors):
        return
    types = require("tritonclient.grpc.model_config_pb2", extra="triton").DataType
    del tensors[:]
    for spec in specs:
        ragged = {"allow_ragged_batch": True} if spec.ragged else {}
        tensors.add(name=spec.name, data_type=types.Value(f"TYPE_{spec.data_type}"), dims=spec.dims, **ragged)


def _write_instances(message: Any, count: int, kind: Kind) -> None:
    if (count, kind) == (1, "auto") and not message.instance_group:
        return
    group = message.instance_group[0] if message.instance_group else message.instance_group.add()
    group.count = count
    group.kind = type(group).Kind.Value(f"KIND_{kind.upper()}")


def _read_versions(policy: Any) -> Versions:
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return tuple(policy.specific.versions)
        case "all":
            return "all"
        case _:
            return "latest"


def _write_versions(policy: Any, versions: Versions) -> None:
    if versions == "all":
        policy.all.SetInParent()
    elif versions != "latest":
        policy.specific.versions[:] = versions


def _read_parameter(message: Any, name: str) -> Any:
    if name not in message.parameters:
        return None
    text = message.parameters[name].string_value
    try:
        return _PARAMETERS[name](text)
    except ValueError as error:
        raise ServerError(
            f"The parameter {name} is a whole number.",
            seen=f"{text!r} in the configuration of {message.name}",
            fix=f'write parameters {{ key: "{name}" value {{ string_value: "512" }} }}',
        ) from error
