"""Bodies of the operators' endpoints, as OpenAPI shows them; a key that is not listed here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from accel_lib.service.fields import Body, one_or_many
from accel_lib.service.keys import Role
from accel_lib.service.routing import Plan, Sticky

_Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$", examples=["2"])]

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
    """Answers to equal requests."""

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
            Discriminator(
                one_or_many, custom_error_type="wrong_type", custom_error_message="a word or a list of numbers"
            ),
        ]
        | None
    ) = None
    response_cache: ResponseCache | None = None

    def settings(self) -> dict[str, Any]:
        """The same as settings of `accel_lib.triton.config.ModelConfig`."""
        asked: dict[str, Any] = {}
        if self.dynamic_batching:
            asked |= {name: value for name, value in self.dynamic_batching.model_dump().items() if value is not None}
        if self.instance_group:
            asked["instance_count"] = self.instance_group.count
        if self.version_policy:
            asked["versions"] = self.version_policy
        if self.response_cache:
            asked["response_cache"] = self.response_cache.enable
        return asked


class Batching(Body):
    """How a model is batched now."""

    object: Literal["model.batching"] = "model.batching"
    model: str
    dynamic_batching: DynamicBatching
    instance_group: InstanceGroup
    version_policy: Literal["all", "latest"] | list[int]
    response_cache: ResponseCache


class ExperimentPlan(Body):
    """Begin an experiment, or change the plan of a running one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "weights": {"1": 90, "2": 10}, "sticky": "user"}]}
    )

    model: Annotated[str, Field(min_length=1, max_length=200)]
    weights: dict[_Version, Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]] = Field(
        min_length=1, max_length=16, description="Version to its share of the answers, in relation to the others."
    )
    sticky: Sticky = Field(default="user", description="user: one user, one version; request: drawn anew each time.")
    shadow: _Version | None = Field(default=None, description="Computes a copy of each request too; never answers.")
    shadow_share: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _weighs_something(self) -> ExperimentPlan:
        if not any(self.weights.values()):
            raise ValueError("one version at least needs a weight above 0")
        if self.shadow and self.weights.get(self.shadow, 0) > 0:
            raise ValueError("a version either answers or shadows")
        return self

    def plan(self) -> Plan:
        """The same for `accel_lib.service.experiments`."""
        return Plan(
            model=self.model,
            weights=dict(self.weights),
            sticky=self.sticky,
            shadow=self.shadow or "",
            shadow_share=self.shadow_share,
        )


class Promotion(Body):
    """End an experiment with one of its versions going live."""

    action: Literal["promote"]
    version: _Version
    vector_space_id: str | None = Field(
        default=None, description="Of an embedding version: says that indexes are built anew."
    )


class Rollback(Body):
    """End an experiment, or undo its promotion: what was live before answers everything."""

    action: Literal["rollback"]


def _change(value: Any) -> str | None:
    """Which change a body is meant to be: its action says so, and a plan has none."""
    action = value.get("action", "plan") if isinstance(value, dict) else None
    return action if action in ("plan", "promote", "rollback") else None


ExperimentChange = Annotated[
    Annotated[ExperimentPlan, Tag("plan")]
    | Annotated[Promotion, Tag("promote")]
    | Annotated[Rollback, Tag("rollback")],
    Discriminator(
        _change,
        custom_error_type="wrong_type",
        custom_error_message="a plan, or one with the action 'promote' or 'rollback',",
    ),
]


class Interval(BaseModel):
    """A value with its 95% interval; an end that so few samples cannot give is null."""

    value: float | None
    low: float | None
    high: float | None


class Latency(BaseModel):
    """Of whole requests, milliseconds."""

    p50: Interval
    p95: Interval


class Agreement(Interval):
    """Share of equal labels, or mean cosine, between a shadow and what was sent."""

    texts: int


class VersionSummary(BaseModel):
    """What one version did in an experiment."""

    version: str
    requests: int
    texts: int
    failed: int
    latency_ms: Latency | None
    compute_ms_per_text: Interval | None
    agreement: Agreement | None


class VerdictView(BaseModel):
    """How a version compares with the live one, chance counted in."""

    measure: Literal["latency", "compute", "failures"]
    version: str
    significant: bool
    sentence: str


class ExperimentView(BaseModel):
    """An experiment: its plan, what was seen, and the verdicts."""

    object: Literal["experiment"] = "experiment"
    name: str
    status: Literal["running", "promoted", "rolled_back"]
    model: str
    weights: dict[str, float]
    sticky: Sticky
    shadow: str
    shadow_share: float
    live_version: str
    versions: list[VersionSummary]
    verdicts: list[VerdictView]


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
    """What Triton counted of a model since it was last loaded."""

    object: Literal["model.statistics"] = "model.statistics"
    model: str
    requests: int
    failures: int
    cache_hits: int
    inferences: int
    executions: int
    mean_batch_size: float
    batch_sizes: dict[str, int] = Field(description="Executions by rows.")
    batch_ms: dict[str, float] = Field(description="How long an execution of so many rows keeps an instance, mean.")
    queue_ms: float = Field(description="Mean of a request.")
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    resets: int = Field(description="Reloads that set these numbers back to zero.")


class Component(BaseModel):
    """One part of the service."""

    name: str
    ok: bool
    detail: str


class Trouble(BaseModel):
    """Something that went wrong."""

    at: int = Field(description="Seconds since 1970.")
    what: str


class Check(BaseModel):
    """A finding of `accel doctor`."""

    what: str
    seen: str
    state: Literal["ok", "warn", "fail"]
    fix: str


class Gpu(BaseModel):
    """A GPU that Triton sees, as it is now; what its driver does not tell is null."""

    uuid: str
    utilization: float | None = Field(default=None, description="Share of the time in which it computed.")
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None


class StatusView(BaseModel):
    """The service as an operator looks at it."""

    object: Literal["status"] = "status"
    ready: bool
    roles: list[Role] = Field(description="What the key may do that asks.")
    gpus: list[Gpu] = Field(description="Of the machine that Triton runs on; none where it sees none.")
    components: list[Component]
    last_errors: list[Trouble]
    doctor: list[Check]


class ModelInfo(BaseModel):
    """A version that is served."""

    shortName: str  # noqa: N815
    source: str


class Metadata(BaseModel):
    """NIM's metadata."""

    version: str
    modelInfo: list[ModelInfo]  # noqa: N815


class Release(BaseModel):
    """NIM's version."""

    release: str
    api: str


class AuditEntry(BaseModel):
    """One action of an operator."""

    at: float = Field(description="Seconds since 1970.")
    request_id: str
    who: str
    action: str
    target: str
    detail: dict[str, Any]
    outcome: str


class AuditLog(BaseModel):
    """Latest first."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
