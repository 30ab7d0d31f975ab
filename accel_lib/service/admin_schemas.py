"""Bodies of the operators' endpoints, as OpenAPI shows them; a key that is not listed here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from accel_lib.service.abtest.routing import Plan, VersionNumber
from accel_lib.service.audit import AuditEntry
from accel_lib.service.fields import Body, one_or_many, told_apart
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.statistics import STAGES, Statistics

_Versions = Annotated[list[Annotated[int, Field(ge=1, le=999_999_999)]], Field(min_length=1, max_length=16)]


class DynamicBatching(Body):
    """Triton's dynamic batcher. There is no queue timeout here: deadlines are the gateway's."""

    max_queue_delay_us: int | None = Field(default=None, ge=0, le=10_000_000)
    preferred_batch_sizes: list[Annotated[int, Field(ge=1, le=65_536)]] | None = Field(default=None, max_length=16)
    priority_levels: int | None = Field(default=None, ge=0, le=64)
    default_priority_level: int | None = Field(default=None, ge=0, le=64)
    max_queue_size: int | None = Field(default=None, ge=0, le=1_000_000)


class InstanceGroup(Body):
    """Copies of the model; each holds its weights once more, for every version, and takes its time to start."""

    count: int = Field(ge=1, le=16)


class ResponseCache(Body):
    """Triton's cache of responses to equal requests."""

    enable: bool


class BatchingChange(Body):
    """What may be changed of a served model; what is left out stays.

    A raw configuration could name code to run, so there is no way to send one.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"dynamic_batching": {"max_queue_delay_us": 2000}, "instance_group": {"count": 2}}]
        }
    )

    dynamic_batching: DynamicBatching | None = None
    instance_group: InstanceGroup | None = None
    version_policy: (
        Annotated[
            Annotated[Literal["all", "latest"], Tag("one")] | Annotated[_Versions, Tag("many")],
            told_apart(one_or_many, "a word or a list of numbers"),
        ]
        | None
    ) = None
    response_cache: ResponseCache | None = None

    def settings(self) -> dict[str, Any]:
        """The same as settings of `accel_lib.triton.config.ModelConfig`."""
        asked = self.dynamic_batching.model_dump(exclude_none=True) if self.dynamic_batching else {}
        if self.instance_group:
            asked["instance_count"] = self.instance_group.count
        if self.version_policy:
            asked["versions"] = self.version_policy
        if self.response_cache:
            asked["response_cache"] = self.response_cache.enable
        return asked


class Batching(BaseModel):
    """How a model is batched now."""

    object: Literal["model.batching"] = "model.batching"
    model: str
    dynamic_batching: DynamicBatching
    instance_group: InstanceGroup
    version_policy: Literal["all", "latest"] | list[int]
    response_cache: ResponseCache

    @classmethod
    def of(cls, model: str, config: ModelConfig) -> Batching:
        """As a model's configuration says."""
        names = DynamicBatching.model_fields.keys() - {"preferred_batch_sizes"}
        batcher = {name: getattr(config, name) for name in names}
        return cls(
            model=model,
            dynamic_batching=DynamicBatching(preferred_batch_sizes=list(config.preferred_batch_sizes), **batcher),
            instance_group=InstanceGroup(count=config.instance_count),
            version_policy=list(config.versions) if isinstance(config.versions, tuple) else config.versions,
            response_cache=ResponseCache(enable=config.response_cache),
        )


class Promotion(Body):
    """End an experiment with one of its versions going live."""

    action: Literal["promote"]
    version: VersionNumber
    vector_space_id: str | None = Field(
        default=None, description="Of an embedding version: says that indexes are built again."
    )


class Rollback(Body):
    """End an experiment, or undo its promotion: what was live before answers everything."""

    action: Literal["rollback"]


def _change(value: Any) -> str | None:
    """Which change a body is meant to be: its action says so, and a plan has none."""
    action = value.get("action", "plan") if isinstance(value, dict) else None
    return action if action in ("plan", "promote", "rollback") else None


ExperimentChange = Annotated[
    Annotated[Plan, Tag("plan")] | Annotated[Promotion, Tag("promote")] | Annotated[Rollback, Tag("rollback")],
    told_apart(_change, "a plan, or one with the action 'promote' or 'rollback',"),
]


class VersionView(BaseModel):
    """One version of a model."""

    version: str
    state: str
    reason: str = ""
    precision: str = ""
    vector_space_id: str | None = None


class ModelView(BaseModel):
    """A model, as OpenAI shows one, with its versions."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "accel_lib"
    root: str
    live_version: str
    versions: list[VersionView]


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class StatisticsView(BaseModel):
    """What Triton counted of a model since it was last loaded; milliseconds are means of a request."""

    object: Literal["model.statistics"] = "model.statistics"
    model: str
    requests: int
    failures: int
    cache_hits: int
    inferences: int
    executions: int
    mean_batch_size: float
    batch_sizes: dict[str, int] = Field(description="Executions by rows.")
    batch_ms: dict[str, float] = Field(description="How long an execution of that many rows keeps an instance, mean.")
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    resets: int = Field(description="Reloads that set these numbers back to zero.")

    @classmethod
    def of(cls, model: str, counted: Statistics) -> StatisticsView:
        """From Triton's counters."""
        names = ("requests", "failures", "cache_hits", "inferences", "executions", "mean_batch_size", "resets")
        facts: dict[str, Any] = {name: getattr(counted, name) for name in names}
        facts |= {f"{stage}_ms": counted.per_request_ms(stage) for stage in STAGES}
        facts |= {"batch_sizes": {str(size): count for size, count in counted.batch_sizes.items()}}
        facts |= {"batch_ms": {str(size): ms for size, ms in counted.batch_ms.items()}}
        return cls(model=model, **facts)


class AuditLog(BaseModel):
    """Latest first."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
