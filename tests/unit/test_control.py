"""The controller on a computed queue, where every batch takes exactly a + b·n: it finds the setting by itself."""

from __future__ import annotations

import asyncio
import collections
import itertools
import math

import numpy as np
import pytest

from accel_lib.errors import ServerError
from accel_lib.load.arrivals import steps
from accel_lib.triton.statistics import Statistics
from accel_lib.tuning.actuators import Admission, apply
from accel_lib.tuning.control import Controller, Window
from accel_lib.tuning.queueing import BatchTime, ServingConfig, admissible, admission, fit_batch_time, predict

WINDOW_S, TARGET_MS = 5.0, 50.0
NOTHING = dict.fromkeys(
    [
        "requests", "failures", "inferences", "executions", "cache_hits", "queue_ns", "compute_input_ns",
        "compute_infer_ns", "compute_output_ns", "total_ns",
    ],
    0,
)  # fmt: skip


class Part:
    """An actuator of the plant."""

    def __init__(self, plant, name, names):
        self.plant, self.name, self.names, self.refuses = plant, name, names, False

    def current(self):
        return {name: self.plant.setting[name] for name in self.names}

    def apply(self, **settings):
        if self.refuses:
            raise ServerError("The memory does not hold that.", fix="a smaller model")
        self.plant.setting.update(settings)


class Plant:
    """Instances that share a machine, each busy a + b·n seconds with a batch of n; one more of them adds `gain`."""

    def __init__(self, fixed_s, each_s, *, gain=0.3, **setting):
        self.fixed_s, self.each_s, self.gain = fixed_s, each_s, gain
        self.setting = {"instance_count": 1, "max_batch_size": 1, "max_queue_delay_us": 0} | setting
        self.gate = Admission()
        self.instances = Part(self, "instances", ("instance_count",))
        self.batching = Part(self, "batching", ("max_batch_size", "max_queue_delay_us"))
        self.free = [0.0]
        self.queue = collections.deque()  # when they came, and when they went in
        self.outside = collections.deque()
        self.under_way = []

    def window(self, start, due):
        """Serve what is due between start and the window's end."""
        end, ms, shed = start + WINDOW_S, [], 0
        sizes, spent = collections.Counter(), collections.Counter()
        count = self.setting["instance_count"]
        slower = count / (1 + self.gain * (count - 1))
        self.free = sorted([*self.free, *[start] * count])[-count:]
        arrivals = collections.deque(due)
        while True:
            begin = max(self.free[0], self.queue[0][1] + self.delay(), start) if self.queue else math.inf
            over = min((done for _, done in self.under_way), default=math.inf)
            at = min(begin, over, arrivals[0] if arrivals else math.inf)
            if at > end:
                break
            if at == over:
                came, _ = done = min(self.under_way, key=lambda pair: pair[1])
                self.under_way.remove(done)
                self.gate.release()
                ms.append((at - came) * 1e3)
                while self.outside and (at > self.outside[0][1] or self.gate.try_acquire()):
                    came, until = self.outside.popleft()
                    if at > until:
                        shed += 1
                    else:
                        self.queue.append((came, at))
            elif at == begin:
                batch = [self.queue.popleft()[0] for _ in range(min(len(self.queue), self.setting["max_batch_size"]))]
                seconds = (self.fixed_s + self.each_s * len(batch)) * slower
                self.free = sorted([*self.free[1:], begin + seconds])
                sizes[len(batch)] += 1
                spent[len(batch)] += seconds * 1e9
                self.under_way += [(one, begin + seconds) for one in batch]
            elif self.gate.try_acquire():
                self.queue.append((arrivals[0], arrivals.popleft()))
            elif self.gate.timeout_ms:
                self.outside.append((arrivals[0], arrivals.popleft() + self.gate.timeout_ms / 1e3))
            else:
                arrivals.popleft()
                shed += 1
        good = sum(value <= TARGET_MS for value in ms)
        return Window(
            offered_per_s=len(due) / WINDOW_S,
            within=min(1.0, good / max(len(due), 1)),
            shed=shed / max(len(due), 1),
            p95_ms=float(np.percentile(ms, 95)) if ms else math.nan,
            counted=Statistics(**NOTHING, batch_sizes=dict(sizes), batch_ns=dict(spent)),
        )

    def delay(self):
        return self.setting["max_queue_delay_us"] / 1e6 if len(self.queue) < self.setting["max_batch_size"] else 0.0


def controlled(plant, rates, *, seed=0, controller=None, reload_windows=1):
    """Run a controller over windows of these rates; the windows, and all decisions."""
    controller = controller or Controller(
        admission=plant.gate, instances=plant.instances, batching=plant.batching, p95_ms=TARGET_MS
    )
    due, windows, log, pending = steps([(rate, WINDOW_S) for rate in rates], seed=seed), [], [], []
    for number in range(len(rates)):
        start = number * WINDOW_S
        windows.append(plant.window(start, due[(due >= start) & (due < start + WINDOW_S)]))
        if pending and pending[0][0] <= number:
            controller.changed(apply(*pending.pop(0)[1:]))
        for decision in controller.step(windows[-1]):
            log.append((number, decision))
            if decision.action == "admission":
                decision.actuator.apply(**decision.settings)
            elif decision.actuator:
                pending.append((number + reload_windows, decision.actuator, decision.settings))
    return windows, log


def actions(log):
    return [(number, decision.action) for number, decision in log if decision.action not in ("hold", "wait")]


def step(capacity):
    return [0.2 * capacity] * 4 + [0.8 * capacity] * 8 + [0.2 * capacity] * 4


SHORT = {"fixed_s": 0.004, "each_s": 0.001}  # batches pay: 200 a second alone, 900 with the best setting
LONG = {"fixed_s": 0.0005, "each_s": 0.0095}  # they do not


@pytest.mark.parametrize("seed", range(5))
def test_under_a_step_of_short_requests_the_target_is_met_after_three_windows(seed):
    plant = Plant(**SHORT)
    windows, log = controlled(plant, step(600), seed=seed)
    settled = [*windows[3:4], *windows[7:12], *windows[15:]]
    assert all(window.within >= 0.95 for window in settled), [w.within for w in windows]
    assert plant.setting["max_batch_size"] > 1
    assert 1 <= len([action for _, action in actions(log) if action in ("instances", "batching")]) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_under_a_step_of_long_requests_nothing_is_made_worse(seed):
    plant = Plant(**LONG)
    windows, _ = controlled(plant, step(85), seed=seed)
    settled = [*windows[3:4], *windows[8:12], *windows[15:]]
    assert np.mean([window.within for window in settled]) > 0.9


def test_a_load_that_is_served_well_is_left_alone():
    plant = Plant(**SHORT, max_batch_size=64)
    _, log = controlled(plant, [150] * 12)
    assert {action for _, action in actions(log)} <= {"admission"}
    assert plant.setting == {"instance_count": 1, "max_batch_size": 64, "max_queue_delay_us": 0}


def test_a_delay_that_alone_misses_the_target_is_taken_away():
    plant = Plant(**SHORT, max_batch_size=64, max_queue_delay_us=60_000)
    windows, log = controlled(plant, [100] * 8)
    assert plant.setting["max_queue_delay_us"] == 0
    assert windows[-1].within >= 0.95
    assert any("60 ms queue delay" in decision.words for _, decision in log)


def test_too_many_are_turned_away_and_the_others_answered_in_time():
    plant = Plant(**LONG, max_batch_size=1)
    windows, log = controlled(plant, [40] * 3 + [300] * 9)
    assert windows[-1].shed > 0.4
    assert windows[-1].p95_ms <= TARGET_MS
    assert windows[-1].goodput_per_s > 70
    assert log[-1][1].words.endswith("shed the rest")


def test_a_change_that_makes_it_worse_is_taken_back_and_not_tried_again():
    plant = Plant(0.0001, 0.0049, gain=-0.6)  # a second instance is in the way
    hopeful = Controller(
        admission=plant.gate, instances=plant.instances, batching=plant.batching, p95_ms=TARGET_MS, instance_gain=1.0
    )
    _, log = controlled(plant, [60] * 3 + [240] * 12, controller=hopeful)
    made = [action for _, action in actions(log) if action != "admission"]
    assert made[:2] == ["instances", "roll back"]
    assert made.count("instances") == 1
    assert plant.setting["instance_count"] == 1
    assert "made it worse" in next(decision.words for _, decision in log if decision.action == "roll back")


def test_a_change_that_fails_is_not_tried_again_and_the_setting_stays():
    plant = Plant(**SHORT)
    plant.batching.refuses = plant.instances.refuses = True
    windows, log = controlled(plant, [50] * 2 + [480] * 10)
    assert plant.setting["max_batch_size"] == 1
    tried = [decision.settings for _, decision in log if decision.action in ("batching", "instances")]
    assert len(tried) == len({tuple(settings.items()) for settings in tried})
    assert windows[-1].p95_ms <= TARGET_MS


def test_nothing_is_changed_while_a_change_is_under_way_or_cools_down():
    plant = Plant(**SHORT)
    _, log = controlled(plant, [50] * 2 + [480] * 6, reload_windows=2)
    changes = [number for number, action in actions(log) if action in ("instances", "batching", "roll back")]
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(changes))


def test_every_decision_says_what_was_seen_and_what_it_expects():
    _, log = controlled(Plant(**SHORT), step(600))
    change = next(decision for _, decision in log if decision.action == "batching")
    for part in ("requests/s within 50 ms", "serves at most", "t(n) =", "should serve"):
        assert part in change.words


def test_the_time_of_a_batch_is_fitted_from_what_triton_counts():
    sizes = {1: 20, 2: 10, 8: 30}
    spent = {n: count * (0.003 + 0.002 * n) for n, count in sizes.items()}
    found = fit_batch_time(sizes, spent)
    assert (found.fixed_s, found.each_s) == (pytest.approx(0.003), pytest.approx(0.002))
    assert fit_batch_time({}, {}) is None
    assert fit_batch_time({1: 5}, {1: 0.05}).guessed
    assert fit_batch_time({1: 5, 2: 5}, {1: 0.05, 2: 0.12}).fixed_s == 0
    noise = fit_batch_time({1: 5, 4: 5}, {1: 0.05, 4: 0.04})
    assert noise.guessed
    assert noise.each_s > 0


def test_a_plan_knows_when_a_queue_has_no_end():
    time, serving = (
        BatchTime(fixed_s=0.004, each_s=0.001),
        ServingConfig(instance_count=1, max_batch_size=1, max_queue_delay_us=0),
    )
    assert predict(time, serving, 100).capacity_per_s == pytest.approx(200)
    assert predict(time, serving, 100).p95_ms < 50
    assert predict(time, serving, 250).p95_ms == math.inf


def test_as_many_are_let_in_as_are_answered_in_time():
    time = BatchTime(fixed_s=0.01, each_s=0.001)
    batched = ServingConfig(instance_count=1, max_batch_size=64, max_queue_delay_us=0)
    assert admissible(time, batched, 50) == 30  # 10 ms for what runs, 10 ms and a millisecond each for the rest
    alone = ServingConfig(instance_count=1, max_batch_size=1, max_queue_delay_us=0)
    assert admissible(time, alone, 50) == 3
    assert admissible(time, alone, 1) == 1


def test_as_many_wait_outside_as_keep_batches_efficient_and_as_long_as_they_may():
    short = ServingConfig(instance_count=1, max_batch_size=64, max_queue_delay_us=0)
    limit, timeout_ms = admission(BatchTime(fixed_s=0.001, each_s=0.001), short, 60)
    assert limit < admissible(BatchTime(fixed_s=0.001, each_s=0.001), short, 60)
    assert limit + 2 + timeout_ms == 60
    heavy = BatchTime(fixed_s=0.02, each_s=0.0001)  # one more in a batch costs nothing: nobody is kept out of it
    assert admission(heavy, short, 50) == (admissible(heavy, short, 50), 4)
    assert admission(heavy, short, 10) == (1, 0)


def test_a_gate_lets_in_as_many_as_its_limit_and_counts_who_leaves():
    async def story():
        gate = Admission(limit=2)
        assert [await gate.acquire() for _ in range(3)] == [True, True, False]
        gate.release()
        assert await gate.acquire()
        gate.apply(limit=0, timeout_ms=0)
        assert all([await gate.acquire() for _ in range(100)])

    asyncio.run(story())


def test_who_finds_no_place_waits_for_one_in_turn_until_the_timeout():
    async def story():
        gate = Admission(limit=1, timeout_ms=60_000)
        assert await gate.acquire()
        first, second = (asyncio.create_task(gate.acquire()) for _ in range(2))
        await asyncio.sleep(0.01)
        assert not first.done()
        gate.release()
        assert await first
        assert not second.done()
        gate.apply(limit=1, timeout_ms=1)
        assert not await gate.acquire()
        second.cancel()
        await asyncio.wait([second])
        gate.release()
        assert gate.in_flight == 0
        assert await gate.acquire()

    asyncio.run(story())
