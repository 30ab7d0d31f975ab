"""The gateway's settings, from ``ACCEL_*`` environment variables or in code; nothing else configures the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from accel_lib.errors import AccelError

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text that is not empty"}
_BOUNDS = {"gt": "above", "ge": "of at least", "le": "and at most"}  # annotated_types' names

_UPSTREAMS = (
    'a file of JSON or JSON such as {"llama": {"url": "http://host:8000/v1", "key": "…", "model": "its name there"}}'
)
_REFUSED: Literal["forbid"] = "forbid"
_HIDDEN = "upstreams"  # it holds keys, so what was seen is not shown
Port = Annotated[int, Field(ge=0, le=65_535)]


class Upstream(BaseModel):
    """An OpenAI-compatible server: the address before ``/chat/completions``, its key, and its own name of the model."""

    model_config = ConfigDict(extra=_REFUSED, frozen=True)

    url: str = Field(pattern=r"^https?://[^\s/]+")
    key: SecretStr = SecretStr("")
    model: str = ""


class Settings(BaseSettings):
    """Settings of one gateway; ``ACCEL_PORT=9000`` sets `port`, and a port of 0 takes a free one.

    An empty variable sets nothing.

    Parameters
    ----------
    host, port, metrics_port
        Where the gateway listens, and where it shows its Prometheus metrics a second time.
    triton_host
        Where a Triton is that runs on this repository already; none starts one on the loopback interface.
    triton_http_port, triton_grpc_port, triton_metrics_port
        Triton's.
    repository, models
        The model repository, and the models to serve from it (comma-separated); none serves all that are built.
    upstreams
        OpenAI-compatible servers for models that are elsewhere, such as vLLM, as JSON, or the absolute path of its
        file: the name of the model here, and for it an object with ``url`` (up to ``/v1``), and ``key`` and ``model``
        (its name there) where they are needed; or a list of such objects, which are its versions 1, 2, ….
    state_file
        SQLite file for keys, experiments and the audit log.
    jwt_issuer, jwt_audience, jwt_public_key_file
        Tokens of this issuer for this audience are accepted if this PEM file verifies them.
    deadline_s, max_deadline_s
        Time a request has if its client says nothing, and the most that a client may ask for.
    max_body_bytes, max_inputs, max_request_tokens
        The largest request.
    max_in_flight
        Requests that may be in flight; more are rejected with 429.
    max_batch_tokens
        Padded tokens in one request to Triton.
    quota_tokens_per_minute
        Tokens that one key may send per minute; 0 sets no quota.
    drain_s
        How long a SIGTERM leaves the requests in flight.
    otlp_endpoint
        OpenTelemetry collector (OTLP over HTTP) that gets traces; none sends nothing.

    Raises
    ------
    AccelError
        A value is none that a setting may have, or there is no such setting.
    """

    model_config = SettingsConfigDict(env_prefix="ACCEL_", env_ignore_empty=True, frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error) from None

    host: str = Field(default="127.0.0.1", min_length=1)
    port: Port = 8000
    metrics_port: Port = 8001
    triton_host: str = ""
    triton_metrics_port: Port = 8002
    triton_http_port: Port = 8003
    triton_grpc_port: Port = 8004
    repository: Path = Path("model_repository")
    models: Annotated[tuple[str, ...], NoDecode] = ()
    upstreams: Annotated[dict[str, Annotated[tuple[Upstream, ...], Field(min_length=1)]], NoDecode] = {}
    state_file: Path = Path(platformdirs.user_data_dir("accel_lib")) / "gateway.sqlite3"
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_public_key_file: Path | None = None
    deadline_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    max_deadline_s: float = Field(default=600, gt=0, allow_inf_nan=False)
    max_body_bytes: int = Field(default=8 * 2**20, gt=0)
    max_inputs: int = Field(default=2048, gt=0)
    max_request_tokens: int = Field(default=2**20, gt=0)
    max_in_flight: int = Field(default=512, gt=0)
    max_batch_tokens: int = Field(default=512, gt=0)
    quota_tokens_per_minute: int = Field(default=0, ge=0)
    drain_s: float = Field(default=30, ge=0, allow_inf_nan=False)
    otlp_endpoint: str = ""

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("upstreams", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        read = json.loads(_text_of(value)) if isinstance(value, str) else value
        if not isinstance(read, dict):
            return read
        return {name: many if isinstance(many, list | tuple) else [many] for name, many in read.items()}


def _text_of(value: str) -> str:
    """JSON as it is, or that of a file whose absolute path is given; raises ValueError for one that cannot be read."""
    if not value.startswith("/"):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}") from error


def _refusal(error: ValidationError) -> AccelError:
    """The first wrong setting, by the name of its variable, with what it may be."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if name not in Settings.model_fields:
        return AccelError("There is no such setting.", seen=name, fix=f"one of {', '.join(Settings.model_fields)}")
    variable, field = f"ACCEL_{name.upper()}", Settings.model_fields[name]
    kind, seen = _KINDS.get(field.annotation, first["msg"].removeprefix("Input should be ")), repr(first["input"])
    if name == _HIDDEN:
        kind, seen = _UPSTREAMS, f"{first['msg']}, at {'.'.join(map(str, first['loc']))}"
    allowed = " ".join(
        [
            kind,
            *(
                f"{word} {getattr(limit, attribute):,}"
                for limit in field.metadata
                for attribute, word in _BOUNDS.items()
                if hasattr(limit, attribute)
            ),
        ]
    )
    return AccelError(
        f"{variable} has a value that it cannot have.",
        seen=seen,
        fix=f"set it to {allowed}, or leave it out: {str(field.get_default()) or 'nothing'} is the default",
    )
