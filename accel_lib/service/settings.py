"""What an operator may set, from ``ACCEL_*`` environment variables or in code; nothing else configures the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65_535)]


class Settings(BaseSettings):
    """Settings of one gateway; ``ACCEL_PORT=9000`` sets `port`, and a port of 0 takes a free one.

    Parameters
    ----------
    host, port, metrics_port
        Where the gateway listens, and where it shows its Prometheus metrics a second time.
    triton_host
        Where a Triton that somebody else runs on this repository is; none starts one on the loopback interface.
    triton_http_port, triton_grpc_port, triton_metrics_port
        Triton's.
    repository, models
        The model repository, and the models to serve from it (comma-separated); none serves all that are built.
    state_file
        SQLite file for keys, experiments and the audit log.
    jwt_issuer, jwt_audience, jwt_public_key_file
        Tokens of this issuer for this audience are accepted if this PEM file verifies them.
    deadline_s, max_deadline_s
        Time a request has if its client says nothing, and the most that a client may ask for.
    max_body_bytes, max_inputs, max_request_tokens
        The largest request.
    max_in_flight
        Requests that may be under way; more are refused with 429.
    max_batch_tokens
        Padded tokens in one request to Triton.
    quota_tokens_per_minute
        Tokens that one key may send a minute; 0 sets no quota.
    drain_s
        How long a SIGTERM leaves the requests that are under way.
    otlp_endpoint
        OpenTelemetry collector (OTLP over HTTP) that gets traces; none sends nothing.
    """

    model_config = SettingsConfigDict(env_prefix="ACCEL_", frozen=True)

    host: str = "127.0.0.1"
    port: Port = 8000
    metrics_port: Port = 8001
    triton_host: str = ""
    triton_metrics_port: Port = 8002
    triton_http_port: Port = 8003
    triton_grpc_port: Port = 8004
    repository: Path = Path("model_repository")
    models: Annotated[tuple[str, ...], NoDecode] = ()
    state_file: Path = Path(platformdirs.user_data_dir("accel_lib")) / "gateway.sqlite3"
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_public_key_file: Path | None = None
    deadline_s: float = Field(default=30, gt=0)
    max_deadline_s: float = Field(default=600, gt=0)
    max_body_bytes: int = Field(default=8 * 2**20, gt=0)
    max_inputs: int = Field(default=2048, gt=0)
    max_request_tokens: int = Field(default=2**20, gt=0)
    max_in_flight: int = Field(default=512, gt=0)
    max_batch_tokens: int = Field(default=512, gt=0)
    quota_tokens_per_minute: int = Field(default=0, ge=0)
    drain_s: float = Field(default=30, ge=0)
    otlp_endpoint: str = ""

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
