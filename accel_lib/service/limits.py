"""Admission: a bound on requests in flight, rejection by estimated wait, token quotas, and the drain at the end.

A request that could not be answered in time is rejected at once with 429 and the time to come back, rather than late
with 504: the wait is estimated from the tokens in flight and the rate at which they have lately been computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from accel_lib.service.errors import Problem
from accel_lib.service.metrics import Metrics

_WINDOW_S = 0.25  # of busy time, over which a rate is measured
_FADE = 0.93  # how fast the best rate is forgotten: by half in ten windows of busy time
_FULL_RETRY_S = 1.0
_MINUTE_S = 60.0
_MOST_BUCKETS = 10_000


@dataclasses.dataclass(frozen=True)
class Deadline:
    """The moment by which a response must be there, on the injected clock."""

    at_s: float
    clock: Callable[[], float] = dataclasses.field(repr=False)

    @property
    def left_s(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at_s - self.clock()

    def check(self) -> None:
        """Raise the `Problem` 504 once it has passed."""
        if self.left_s <= 0:
            raise Problem(504, "The deadline passed before the response was there.", code="deadline_exceeded")


class Backlog:
    """Tokens in flight to one model, and how fast they are computed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.tokens = 0
        self.rate = 0.0  # tokens per second, the best that was lately seen; 0 before the first measurement
        self._done = 0
        self._busy_s = 0.0
        self._since_s = 0.0

    def begin(self, tokens: int) -> None:
        """Some tokens are sent."""
        if not self.tokens:
            self._since_s = self._clock()
        self.tokens += tokens

    def end(self, tokens: int, *, computed: bool) -> None:
        """They are back, computed or not."""
        now = self._clock()
        self._busy_s += now - self._since_s
        self._since_s = now
        self.tokens -= tokens
        self._done += tokens if computed else 0
        if self._busy_s >= _WINDOW_S:
            self.rate = max(self._done / self._busy_s, self.rate * _FADE)
            self._done, self._busy_s = 0, 0.0

    def wait_s(self, tokens: int = 0) -> float:
        """Estimated seconds until `tokens` more would be computed; an idle model takes any number."""
        return (self.tokens + tokens) / self.rate if self.rate and self.tokens else 0.0


class Quota:
    """A token bucket for each principal, filled evenly, a minute's worth at most."""

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float]) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def try_acquire(self, principal: str, tokens: int) -> float:
        """Take the tokens and return 0, or take none and return the seconds until they would be there."""
        if not self.tokens_per_minute:
            return 0.0
        now, per_s = self._clock(), self.tokens_per_minute / _MINUTE_S
        level, at_s = self._levels.get(principal, (float(self.tokens_per_minute), now))
        level = min(self.tokens_per_minute, level + max(0.0, now - at_s) * per_s)
        if tokens > level:
            return (tokens - level) / per_s
        if len(self._levels) > _MOST_BUCKETS:  # full buckets need not be remembered
            self._levels = {who: kept for who, kept in self._levels.items() if now - kept[1] < _MINUTE_S}
        self._levels[principal] = (level - tokens, now)
        return 0.0

    def spend(self, principal: str, tokens: int) -> None:
        """Take tokens, also more than there are."""
        if self.try_acquire(principal, 0) == 0 and self.tokens_per_minute:
            level, at_s = self._levels[principal]
            self._levels[principal] = (level - tokens, at_s)


class Limits:
    """Admission to one gateway; used from its event loop only.

    It is an `accel_lib.tuning.actuators.Actuator` too: a controller may set the number of requests in flight.
    """

    name = "admission"

    def __init__(
        self, *, max_in_flight: int, quota_tokens_per_minute: int, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self._draining_since_s: float | None = None
        self._quota = Quota(quota_tokens_per_minute, clock)
        self._metrics = metrics
        self._clock = clock
        self._backlogs: dict[str, Backlog] = {}

    @property
    def draining(self) -> bool:
        """Whether no new request is taken, because the gateway ends."""
        return self._draining_since_s is not None

    @property
    def drained_for_s(self) -> float:
        """Seconds since then; 0 while it does not."""
        return 0.0 if self._draining_since_s is None else self._clock() - self._draining_since_s

    def drain(self) -> None:
        """Take no new request from now on."""
        self._draining_since_s = self._clock()

    def current(self) -> dict[str, int]:
        """``{"limit": …}``: the most requests in flight."""
        return {"limit": self.max_in_flight}

    def apply(self, **settings: int) -> None:
        """Set the limit; what was admitted stays admitted."""
        self.max_in_flight = settings["limit"]

    @contextlib.contextmanager
    def in_flight_slot(self, model: str) -> Iterator[None]:
        """Count a request as in flight; raises the `Problem` 429 when there are as many as may be."""
        if self.in_flight >= self.max_in_flight:
            self._metrics.sheds.labels(model, "queue_full").inc()
            message = f"{self.in_flight} requests are in flight already."
            raise Problem(429, message, code="queue_full", retry_after_s=_FULL_RETRY_S)
        self.in_flight += 1
        self._metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.set(self.in_flight)

    def charge(self, principal: str, tokens: int) -> None:
        """Count tokens against a principal's quota; raises the `Problem` 429 with the time until there are enough."""
        wait_s = self._quota.try_acquire(principal, tokens)
        if not wait_s:
            return
        self._metrics.quota_rejections.labels("tokens_per_minute").inc()
        quota = self._quota.tokens_per_minute
        message = f"The quota is {quota:,} tokens per minute; this request has {tokens:,}."
        headers = {}
        if tokens > quota:
            message, wait_s, headers = f"{message} Split it.", _MINUTE_S, {"x-should-retry": "false"}
        raise Problem(429, message, code="rate_limit_exceeded", retry_after_s=wait_s, headers=headers)

    def spend(self, principal: str, tokens: int) -> None:
        """Count tokens that were generated: the next request waits until they are paid back."""
        self._quota.spend(principal, tokens)

    @contextlib.contextmanager
    def admitted(self, model: str, tokens: int, deadline: Deadline) -> Iterator[None]:
        """Count tokens as in flight to Triton; raises the `Problem` 429 if they would miss the deadline."""
        backlog = self._backlogs.setdefault(model, Backlog(self._clock))
        wait_s, left_s = backlog.wait_s(tokens), deadline.left_s
        if wait_s > left_s:
            self._metrics.sheds.labels(model, "estimated_wait").inc()
            message = f"The response would take about {wait_s:.1f} s and has {max(left_s, 0):.1f} s."
            raise Problem(429, message, code="queue_full", retry_after_s=wait_s - left_s)
        estimate = self._metrics.queue_wait_estimate.labels(model)
        computed = False
        backlog.begin(tokens)
        estimate.set(backlog.wait_s())
        try:
            yield
            computed = True
        finally:
            backlog.end(tokens, computed=computed)
            estimate.set(backlog.wait_s())
