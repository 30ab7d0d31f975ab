"""Controller that holds a p95 target while the load changes: it decides once a window, from what the window showed.

It knows no load in advance and no setting's speed: it fits t(n) = a + b·n to Triton's statistics as it goes. Admission
takes effect at once, so that comes first; then another instance, in place; then other batching, for which a second copy
is loaded in the background. A change that made it worse is taken back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from accel_lib.formatting import number, percent
from accel_lib.triton.statistics import Statistics
from accel_lib.tuning.actuators import Actuator
from accel_lib.tuning.queueing import GUESS, BatchTime, Prediction, ServingConfig, admission, fit_batch_time, predict

Action = Literal["hold", "admission", "instances", "batching", "roll back", "wait"]

MET = 0.95  # share of all requests, rejected ones too, that must be answered within the target
_BETTER = 1.15  # times the capacity that makes a change worth its cost
_SPARE = 1.1  # times the load that a plan must carry
_WORSE = 0.9  # times the former goodput, under which a change is taken back
_ALIKE = 0.8  # share of the former load from which goodputs may be compared
_DEAD = 0.2  # share by which the admission limit, or its timeout in terms of the target, must move to be set again
_FORGET = 0.6  # what a window's counts weigh one window later
_SIZES = (1, 4, 8, 16, 32, 64)
_MOST_INSTANCES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """What a controller sees of a stretch of time."""

    offered_per_s: float  # requests/s that came, whatever became of them
    within: float  # share of them that was answered within the target
    shed: float  # share of them that was not admitted
    p95_ms: float  # of those that were answered; NaN if none was
    counted: Statistics | None = None  # by Triton meanwhile; None if it could not be asked

    @property
    def goodput_per_s(self) -> float:
        """Requests/s that were answered within the target."""
        return self.within * self.offered_per_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do after a window, and why; `actuator` is None where nothing is set."""

    action: Action
    words: str
    actuator: Actuator | None = None
    settings: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trial:
    """A change that is still to be judged."""

    actuator: Actuator
    former: dict[str, int]
    wanted: dict[str, int]
    before: Window


class Controller:
    """Decides, window by window, what admission, instances and batching should be.

    `instance_gain` is what a further instance is expected to add, as a share of one that is undisturbed: they share
    cores, or a GPU.
    """

    def __init__(
        self,
        *,
        admission: Actuator,
        instances: Actuator,
        batching: Actuator,
        p95_ms: float,
        instance_gain: float = 0.3,
    ) -> None:
        self.p95_ms = p95_ms
        self._admission, self._instances, self._batching = admission, instances, batching
        self._gain = instance_gain
        self._sizes: dict[int, float] = {}
        self._spent_s: dict[int, float] = {}
        self._margin = 0.9  # of the target, for admitted requests
        self._barred: set[frozenset[tuple[str, int]]] = set()
        self._share = GUESS  # of a lone request's time that a batch costs once, as last seen
        self._trial: _Trial | None = None
        self._cooling = self._changing = False
        self._bad = 0  # windows that missed the target since the last one that did not

    @property
    def serving(self) -> ServingConfig:
        """How the model is served now."""
        return ServingConfig(**self._instances.current(), **self._batching.current())

    @property
    def time(self) -> BatchTime | None:
        """How long batches take, as fitted so far."""
        return fit_batch_time(self._sizes, self._spent_s, share=self._share)

    def step(self, window: Window) -> list[Decision]:
        """Decide after a window; call `changed` once a decision about instances or batching is in force."""
        self._learn(window.counted)
        decisions = self._admit(window)
        if self._changing:
            return [*decisions, Decision(action="wait", words="The change is in progress, the old setting responds")]
        if self._cooling:
            self._cooling = False
            return [*decisions, Decision(action="wait", words=f"Cooling down after the change: {self._seen(window)}")]
        rolled = self._judge(window)
        if rolled:
            return [*decisions, rolled]
        if window.within >= MET:
            self._bad = 0
            return [*decisions, self._hold(window, "the target is met")]
        self._bad += 1
        return [*decisions, self._plan(window)]

    def changed(self, failure: str = "") -> None:
        """A decision about instances or batching is in force, or failed and changed nothing."""
        self._changing = False
        if failure and self._trial:
            self._barred.add(frozenset(self._trial.wanted.items()))
            self._trial = None
            return
        self._cooling = True
        if self._trial is None or "instance_count" in self._trial.former:  # instances share cores: other times
            self._sizes, self._spent_s = {}, {}

    def _learn(self, counted: Statistics | None) -> None:
        for seen in (self._sizes, self._spent_s):
            for size in seen:
                seen[size] *= _FORGET
        if counted is None:
            return
        for size, count in counted.batch_sizes.items():
            self._sizes[size] = self._sizes.get(size, 0.0) + count
            self._spent_s[size] = self._spent_s.get(size, 0.0) + counted.batch_ns.get(size, 0) / 1e9
        time = self.time
        if time and not time.guessed:
            self._share = time.fixed_s / time.seconds(1)

    def _admit(self, window: Window) -> list[Decision]:
        """Admit as many as the present setting answers in time; corrected by whether it did."""
        time = self.time
        if time is None:
            return []
        if window.p95_ms > self.p95_ms:
            self._margin = max(0.3, self._margin * 0.85)
        elif window.shed and window.p95_ms < 0.8 * self.p95_ms:
            self._margin = min(1.2, self._margin * 1.1)
        limit, timeout_ms = admission(time, self.serving, self._margin * self.p95_ms)
        now = self._admission.current()
        near = abs(limit - now["limit"]) <= max(1, _DEAD * now["limit"])
        if now["limit"] and near and abs(timeout_ms - now["timeout_ms"]) <= _DEAD * self.p95_ms:
            return []
        words = f"Admit {limit} at a time, others wait up to {timeout_ms} ms: {time}, target {self.p95_ms:g} ms"
        settings = {"limit": limit, "timeout_ms": timeout_ms}
        return [Decision(action="admission", words=words, actuator=self._admission, settings=settings)]

    def _judge(self, window: Window) -> Decision | None:
        """Take a change back that made it worse, where the load is what it was."""
        trial = self._trial
        if trial is None or (window.within < MET and window.offered_per_s < _ALIKE * trial.before.offered_per_s):
            return None
        self._trial = None
        before, load = trial.before.goodput_per_s, trial.before.offered_per_s / max(window.offered_per_s, 1e-9)
        after = window.goodput_per_s * min(1.0, load)
        if window.within >= MET or after >= _WORSE * before:
            return None
        self._barred.add(frozenset(trial.wanted.items()))
        words = f"{self.serving} made it worse, {number(after)} in time per second after {number(before)}: back"
        return self._change("roll back", words, trial.actuator, trial.former)

    def _plan(self, window: Window) -> Decision:
        time, rate = self.time, window.offered_per_s
        if time is None:
            return self._hold(window, "nothing was computed to plan from")
        now = predict(time, self.serving, rate)
        if self._bad < 2 and math.isfinite(now.p95_ms):  # one bad window is no trend where the load can be served
            return self._hold(window, "one window is no trend")
        ways = [
            (actuator, found)
            for actuator, predictions in (
                (self._instances, self._more_instances(time, rate)),
                (self._batching, self._other_batching(time, rate)),
            )
            for found in predictions
            if frozenset(_part(found.serving, actuator).items()) not in self._barred
        ]
        enough = [w for w in ways if w[1].p95_ms <= self.p95_ms and w[1].capacity_per_s >= _SPARE * rate]
        better = [w for w in ways if w[1].capacity_per_s >= _BETTER * now.capacity_per_s]
        if not enough and not better:
            most = f"no setting is expected to serve more than {number(now.capacity_per_s)}/s"
            return self._hold(window, f"{most}, shed the rest")
        actuator, best = enough[0] if enough else max(better, key=lambda way: way[1].capacity_per_s)
        wanted = _part(best.serving, actuator)
        self._trial = _Trial(actuator=actuator, former=actuator.current(), wanted=wanted, before=window)
        words = (
            f"{self._seen(window)}; {self.serving} serves at most {number(now.capacity_per_s)}/s with {time}. "
            f"{best.serving} should serve {number(best.capacity_per_s)}/s"
        )
        return self._change("instances" if actuator is self._instances else "batching", words, actuator, wanted)

    def _hold(self, window: Window, why: str) -> Decision:
        return Decision(action="hold", words=f"{self._seen(window)}: hold, {why}")

    def _change(self, action: Action, words: str, actuator: Actuator, settings: dict[str, int]) -> Decision:
        self._changing, self._bad = True, 0
        return Decision(action=action, words=words, actuator=actuator, settings=settings)

    def _more_instances(self, time: BatchTime, rate: float) -> Iterable[Prediction]:
        serving = self.serving
        for count in range(serving.instance_count + 1, _MOST_INSTANCES + 1):
            width = serving.instance_count + self._gain * (count - serving.instance_count)
            yield predict(time, dataclasses.replace(serving, instance_count=count), rate, parallel=width)

    def _other_batching(self, time: BatchTime, rate: float) -> Iterable[Prediction]:
        serving = self.serving
        sizes = [dataclasses.replace(serving, max_batch_size=size, max_queue_delay_us=0) for size in _SIZES]
        found = [predict(time, way, rate) for way in sizes if way != serving]
        return sorted(found, key=lambda way: (way.p95_ms, -way.capacity_per_s))

    def _seen(self, window: Window) -> str:
        shed = f", {percent(window.shed)} shed" if window.shed else ""
        asked = f"{number(window.offered_per_s)} requests/s"
        return f"{percent(window.within)} of {asked} within {self.p95_ms:g} ms (p95 {number(window.p95_ms)} ms{shed})"


def _part(serving: ServingConfig, actuator: Actuator) -> dict[str, int]:
    """The settings of a configuration that an actuator changes."""
    return {name: getattr(serving, name) for name in actuator.current()}
