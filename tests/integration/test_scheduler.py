"""The simulator's batcher puts the same requests together as a real Triton whose model sleeps."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import accel_lib
from accel_lib.load.generator import Generator
from accel_lib.simulation.scheduler import Scheduler
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.wire import serialize

pytestmark = pytest.mark.triton
MODELS = Path(__file__).parent / "models"
QUIET_S = 0.25


def arrivals(step_ms, group, pause_ms, count=20):
    """Groups of requests; no case turns on less than the 4 ms that a busy machine may be late."""
    return [(step_ms * n + pause_ms * (n // group)) / 1e3 for n in range(count)]


BURSTS, SPARSE, CROWD = arrivals(1, 6, 94, 24), arrivals(17, 5, 130), arrivals(4, 28, 0, 28)
# While the first one runs, six come, of which every other one is late when it ends. The last one makes Triton look:
# with a timeout set, it does so only when one more is let in, or half a second later.
LATE = [0.0, *(0.006 + 0.004 * n for n in range(6)), 0.066]
OWN = {"queue_timeout_us": 10_000_000, "allow_timeout_override": True, "max_batch_size": 3}
CASES = {
    "no delay": (arrivals(14, 7, 110), {}),
    "no delay, bursts": (BURSTS, {}),
    "small batches": (arrivals(14, 7, 130), {"max_batch_size": 4}),
    "one at a time": (SPARSE, {"max_batch_size": 1}),
    "no dynamic batching": (SPARSE, {"dynamic_batching": False}),
    "a delay nobody fills": (arrivals(8, 3, 130), {"max_queue_delay_us": 25_000}),
    "a delay that a burst fills": (BURSTS, {"max_queue_delay_us": 60_000, "max_batch_size": 6}),
    "preferred sizes": (arrivals(20, 7, 170), {"preferred_batch_sizes": (2, 4)}),
    "preferred sizes and a delay": (
        arrivals(5, 8, 210, 24),
        {"preferred_batch_sizes": (3, 6), "max_queue_delay_us": 60_000},
    ),
    "two instances": (arrivals(14, 7, 130), {"instance_count": 2}),
    "two instances and a delay": (arrivals(12, 7, 160), {"instance_count": 2, "max_queue_delay_us": 30_000}),
    "a timeout before the delay is over": (SPARSE, {"queue_timeout_us": 12_500, "max_queue_delay_us": 40_000}),
    "own timeouts refuse": (LATE, OWN),
    "own timeouts delay": (LATE, OWN | {"timeout_action": "delay"}),
    "priorities": (CROWD, {"priority_levels": 2, "default_priority_level": 2, "max_batch_size": 3}),
}


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory):
    repository = tmp_path_factory.mktemp("scheduler") / "model_repository"
    shutil.copytree(MODELS, repository)
    with accel_lib.serve(repository, models=["sleeper"]) as server:
        yield server.model("sleeper")


def priorities(config, count):
    return [1 if config.priority_levels and n % 3 == 2 else 0 for n in range(count)]


def timeouts_us(config, count):
    return [10_000 if config.allow_timeout_override and n in (1, 3, 5) else 0 for n in range(count)]


def measured(served, due):
    """Which requests ran together, and why others did not, by a real Triton."""
    wishes = zip(priorities(served.config, len(due)), timeouts_us(served.config, len(due)), strict=True)
    payloads = [
        serialize(served, [np.full(3, number)], priority=level, queue_timeout_us=timeout_us)
        for number, (level, timeout_us) in enumerate([(0, 0), *wishes], -1)
    ]
    schedule = [0.0, *(QUIET_S + at_s for at_s in due)]  # the first one only connects
    with Generator(served.server.grpc_url, payloads, schedule_s=schedule) as generator:
        generator.finish()
    together, refused = defaultdict(set), {}
    for reply in generator.replies:
        if not reply.index:
            continue
        if reply.answer is None:
            refused[reply.index - 1] = request_error("sleeper", reply.refusal).cause
        else:
            together[reply.answer[-8:]].add(reply.index - 1)
    return sorted(map(sorted, together.values())), refused


def simulated(config, due, overhead_s=0.001):
    together, refused = [], {}

    def execute(requests):
        together.append(sorted(requests))
        return 0.04 + overhead_s + 0.005 * len(requests)

    def answer(request, _, refusal, __):
        if refusal:
            refused[request] = refusal

    scheduler = Scheduler(config, execute, answer)
    wishes = zip(due, priorities(config, len(due)), timeouts_us(config, len(due)), strict=True)
    for request, (at_s, level, timeout_us) in enumerate(wishes):
        scheduler.send(request, at_s, level, timeout_us)
    scheduler.run()
    return sorted(together), refused


@pytest.mark.parametrize("name", CASES)
def test_the_same_requests_run_together_as_in_triton(sleeper, name):
    due, settings = CASES[name]
    before = sleeper.config
    sleeper.configure(**settings)
    try:
        predicted = simulated(sleeper.config, due)
        attempts = []
        while predicted not in attempts and len(attempts) < 40:  # a busy machine may send one late
            attempts.append(measured(sleeper, due))
    finally:
        sleeper.server.load("sleeper", before)
    assert attempts[-1] == predicted
