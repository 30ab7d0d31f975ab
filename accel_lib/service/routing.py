"""Which version answers a request: sticky, weighted by hash, the same in every process and after every restart."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Literal

Sticky = Literal["user", "request"]
_BITS = 53


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the requests to one model are shared among its versions.

    Parameters
    ----------
    model
        The model.
    weights
        Version to its share of the answers, in relation to the others.
    sticky
        ``"user"`` gives one user always the same version; ``"request"`` draws anew each time.
    shadow, shadow_share
        Version that computes a copy of the request too, its answer compared and never sent; and of how many.
    """

    model: str
    weights: Mapping[str, float]
    sticky: Sticky = "user"
    shadow: str = ""
    shadow_share: float = 1.0

    @property
    def versions(self) -> set[str]:
        """Every version that takes part."""
        return {version for version, weight in self.weights.items() if weight > 0} | ({self.shadow} - {""})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Where a request goes: the version that answers, and the one that is compared in secret, if there is one."""

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
    return float(((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) * 2.0**-_BITS)
