"""Which version answers a request: sticky, weighted by hash, the same in every process and after every restart."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from accel_lib.service.fields import Body, ModelName

VersionNumber = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$", examples=["2"])]
_HASH_BITS = 53


class Plan(Body):
    """How the requests to one model are shared among its versions: begin an experiment, or change a running one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "weights": {"1": 90, "2": 10}, "sticky": "user"}]}
    )

    model: ModelName
    weights: dict[VersionNumber, Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]] = Field(
        min_length=1, max_length=16, description="Version to its share of the responses, in relation to the others."
    )
    sticky: Literal["user", "request"] = Field(
        default="user", description="user: one user, one version; request: drawn again each time."
    )
    shadow: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,8})?$")] = Field(
        default="", description="A version that computes a copy of each request too; never answers."
    )
    shadow_share: float = Field(default=1.0, gt=0, le=1, description="Share of the requests that are copied.")

    @model_validator(mode="after")
    def _weighs_something(self) -> Plan:
        if not any(self.weights.values()):
            raise ValueError("one version at least needs a weight above 0")
        if self.shadow and self.weights.get(self.shadow, 0) > 0:
            raise ValueError("a version either answers or shadows")
        return self

    @property
    def participants(self) -> set[str]:
        """Every version that takes part."""
        return {version for version, weight in self.weights.items() if weight > 0} | ({self.shadow} - {""})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Where a request goes: the version that answers, and the one that computes a copy, if there is one."""

    model: str
    version: str
    experiment: str = ""
    shadow: str = ""


def choose(name: str, plan: Plan, unit: str) -> str:
    """The version for a user or request.

    Weighted rendezvous hashing: when weights change, only as many users change versions as must, none between two
    versions whose relation stayed.

    Source: C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables", SPAA 2005.
    """
    weights = {version: weight for version, weight in plan.weights.items() if weight > 0}
    return max(weights, key=lambda version: weights[version] / -math.log(_uniform(name, version, unit)))


def shadowed(name: str, plan: Plan, unit: str) -> bool:
    """Whether a request is copied to the shadow."""
    return bool(plan.shadow) and _uniform(name, "shadow of", unit) <= plan.shadow_share


def _uniform(*parts: str) -> float:
    """A number between 0 and 1, both excluded, that depends on the parts only."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return float(((int.from_bytes(digest, "big") >> (64 - _HASH_BITS)) + 0.5) * 2.0**-_HASH_BITS)
