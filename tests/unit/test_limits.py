"""Admission with an injected clock: what is let in, what is refused, and when to come back."""

from __future__ import annotations

import grpc
import pandas as pd
import pytest

from accel_lib.load.gateway_requests import LatencyBreakdown, PayloadSizes
from accel_lib.service.errors import Problem
from accel_lib.service.limits import Backlog, Deadline, Limits, Quota
from accel_lib.service.metrics import Metrics
from accel_lib.service.triton_client import refusal
from accel_lib.tuning.actuators import apply


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def limits_on(clock, **settings):
    chosen = {"max_in_flight": 2, "quota_tokens_per_minute": 0} | settings
    return Limits(**chosen, metrics=Metrics(), clock=clock)


def computed(backlog, clock, tokens, seconds):
    backlog.begin(tokens)
    clock.now += seconds
    backlog.end(tokens, computed=True)


class TestBacklog:
    def test_without_a_measurement_nobody_has_to_wait(self, clock):
        backlog = Backlog(clock)
        backlog.begin(1_000_000)
        assert backlog.wait_s(1_000_000) == 0

    def test_the_wait_is_the_tokens_under_way_at_the_measured_rate(self, clock):
        backlog = Backlog(clock)
        computed(backlog, clock, 1000, 0.5)
        assert backlog.rate == pytest.approx(2000)
        backlog.begin(3000)
        assert backlog.wait_s(1000) == pytest.approx(2)

    def test_an_idle_model_takes_anything(self, clock):
        backlog = Backlog(clock)
        computed(backlog, clock, 10, 1)
        assert backlog.wait_s(1_000_000) == 0

    def test_idle_time_does_not_count_against_the_rate(self, clock):
        backlog = Backlog(clock)
        computed(backlog, clock, 1000, 0.5)
        clock.now += 3600
        computed(backlog, clock, 1000, 0.5)
        assert backlog.rate == pytest.approx(2000)

    def test_a_server_that_became_slower_is_noticed(self, clock):
        backlog = Backlog(clock)
        computed(backlog, clock, 1000, 0.5)
        for _ in range(30):
            computed(backlog, clock, 100, 0.5)
        assert backlog.rate == pytest.approx(226, rel=0.05)


class TestQuota:
    def test_what_is_used_up_comes_back_evenly(self, clock):
        quota = Quota(600, clock)
        assert quota.try_acquire("a", 600) == 0
        assert quota.try_acquire("a", 100) == pytest.approx(10)
        clock.now += 10
        assert quota.try_acquire("a", 100) == 0

    def test_everybody_has_their_own(self, clock):
        quota = Quota(600, clock)
        assert quota.try_acquire("a", 600) == quota.try_acquire("b", 600) == 0

    def test_a_clock_that_steps_back_gives_nothing_away_and_takes_nothing(self, clock):
        quota = Quota(600, clock)
        assert quota.try_acquire("a", 500) == 0
        clock.now -= 1000
        assert quota.try_acquire("a", 100) == 0
        assert quota.try_acquire("a", 1) > 0

    def test_a_request_over_the_whole_quota_must_not_be_retried(self, clock):
        with pytest.raises(Problem) as caught:
            limits_on(clock, quota_tokens_per_minute=60).charge("a", 61)
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        assert caught.value.headers["x-should-retry"] == "false"


class TestLimits:
    def test_places_come_back_also_after_an_error(self, clock):
        limits = limits_on(clock)
        with pytest.raises(ZeroDivisionError), limits.in_flight_slot("m"):
            _ = 1 / 0
        assert limits.in_flight == 0

    def test_what_would_be_late_is_told_when_to_come_back(self, clock):
        limits = limits_on(clock)
        with limits.admitted("m", 1000, Deadline(clock.now + 9, clock)):
            clock.now += 1
        with limits.admitted("m", 3000, Deadline(clock.now + 9, clock)):
            with pytest.raises(Problem) as caught, limits.admitted("m", 1000, Deadline(clock.now + 1.5, clock)):
                pass
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
            assert caught.value.headers["retry-after-ms"] == "2500"
            assert caught.value.headers["Retry-After"] == "3"

    def test_a_controller_may_turn_it(self, clock):
        limits = limits_on(clock)
        assert apply(limits, {"limit": 1}) == ""
        assert limits.current() == {"limit": 1}
        with limits.in_flight_slot("m"), pytest.raises(Problem, match="in flight"), limits.in_flight_slot("m"):
            pass

    def test_a_deadline_that_has_passed_is_a_504(self, clock):
        deadline = Deadline(clock.now + 1, clock)
        deadline.check()
        clock.now += 1
        with pytest.raises(Problem) as caught:
            deadline.check()
        assert caught.value.status == 504


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", 504),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", 429),
        ("UNAVAILABLE", "Request timeout expired", 504),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", 404),
        ("UNAVAILABLE", "failed to connect to all addresses", 503),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", 503),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", 503),
        ("INTERNAL", "Internal error from Core", 503),  # gRPC's words for a server killed with -9
        ("UNKNOWN", "Stream removed", 503),
        ("INTERNAL", "anything else", 500),
    ],
)
def test_what_triton_says_becomes_a_status_and_never_its_own_words(code, details, status):
    problem = refusal(grpc.StatusCode[code], details)
    assert problem.status == status
    assert details not in problem.message
    assert ("Retry-After" in problem.headers) == (status in (429, 503))


def intervals(frame, column, spread=0.04):
    ends = {"_low": 1 - spread, "_high": 1 + spread}
    return frame.assign(**{column + end: frame[column] * factor for end, factor in ends.items()})


def breakdown(model_ms, plain_ms, packed_ms):
    names = ["1 text", "64 texts, JSON numbers", "64 texts, base64"]
    rows = zip(names, [model_ms, 90, 90], [10, plain_ms, packed_ms], strict=True)
    frame = pd.DataFrame(rows, columns=["request", "compute_infer_ms", "total_ms"])
    return LatencyBreakdown(frame=intervals(frame, "total_ms")).headline


def test_the_headline_of_a_latency_breakdown_goes_with_the_numbers():
    assert breakdown(2, 100, 60) == (
        "Of 10 ms for 1 text the model takes 20%; 64 texts, base64: 40% less time than JSON numbers"
    )
    assert breakdown(8, 100, 94).endswith("base64: no significant difference from JSON numbers")
    assert "base64: 50% more time than" in breakdown(8, 100, 150)


def test_the_headline_of_payload_sizes_says_what_they_cost():
    names = ["JSON numbers", "base64", "base64, 48 dimensions"]
    frame = pd.DataFrame({"request": names, "bytes_each": [1000, 400, 50], "top10_overlap": [1, 1, 0.4]})
    assert PayloadSizes(frame=frame).headline == (
        "base64 takes 40% of the bytes and keeps 100% of the ten nearest neighbours; base64, 48 dimensions 5% and 40%"
    )
