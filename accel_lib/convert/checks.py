"""One line of a validation."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at: what was seen, what is allowed, and whether it passed."""

    name: str
    seen: str
    limit: str
    passed: bool
