"""A changing load on a served model, window by window, with a controller that acts meanwhile or with none."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError, ServerError
from accel_lib.load.generator import SHED, Generator, Reply
from accel_lib.load.runner import statistics_now
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.stats import percentile
from accel_lib.triton.client import ServedModel
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.statistics import Statistics
from accel_lib.triton.wire import serialize
from accel_lib.tuning import findings_control
from accel_lib.tuning.actuators import Admission, Batching, Instances, apply
from accel_lib.tuning.control import Controller, Decision, Window
from accel_lib.tuning.sweep import alone_ms

SETTLE = 3  # windows after a change of the load that a controller has for finding its setting
_MET = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LiveRun(Result):
    """What became of a changing load; `frame` has one row a window.

    Parameters
    ----------
    frame
        ``window``, ``start_s``, ``offered_per_s``, ``p95_ms`` of the answers, ``within`` and ``shed`` (shares of what
        was offered), ``goodput_per_s``, ``lost``, ``settled`` (not among the three windows after a change of the load),
        ``met`` (95% of what was offered was answered within the target), ``actions``.
    p95_ms
        The target.
    log
        The controller's decisions, as ``(window, decision)``.
    stopped
        Why the run ended early; empty if it did not.
    """

    p95_ms: float
    log: tuple[tuple[int, Decision], ...] = ()
    stopped: str = ""

    @property
    def share_met(self) -> float:
        """Share of the settled windows in which the target was met; NaN if there are none."""
        settled = self.frame[self.frame["settled"]]
        return float(settled["met"].mean())

    @property
    def goodput_per_s(self) -> float:
        """Requests a second answered within the target, over the whole run: shed ones count as misses."""
        return float(self.frame["goodput_per_s"].mean())

    @property
    def lost(self) -> int:
        """Requests that were let in and not answered."""
        return int(self.frame["lost"].sum())

    @property
    def decisions(self) -> str:
        """The log in words, a line a decision; what only holds is left out."""
        return "\n".join(
            f"window {window + 1}, {decision.action}: {decision.words}"
            for window, decision in self.log
            if decision.action not in ("hold", "wait")
        )

    @property
    def headline(self) -> str:
        """In how many windows the target was met, and what was shed or lost."""
        said = findings_control.live(self.frame, self.p95_ms)
        return f"{said}. It ended early: {self.stopped}" if self.stopped else said


def live(
    served: ServedModel,
    texts: Sequence[str],
    *,
    arrivals: ArrayLike,
    p95_ms: float,
    window_s: float = 8,
    control: bool = True,
    changes_s: Sequence[float] = (),
    max_instances: int = 2,
    gate: Admission | None = None,
    on_window: Callable[[int, Sequence[Decision]], None] | None = None,
) -> LiveRun:
    """Send requests as they are due, and let a controller hold the target, or nobody.

    The model keeps the setting that the controller left it with.

    Parameters
    ----------
    served
        A model of a running server.
    texts
        Sent in turn, one a request.
    arrivals
        Seconds from the start at which requests are due: `accel_lib.load.arrivals` makes them.
    p95_ms
        The latency target.
    window_s
        How often the controller decides; at least twice as long as a reload takes, to be judged fairly.
    control
        Whether there is a controller.
    changes_s
        When the load changes, for the verdict alone; the controller is not told.
    max_instances
        Most instances that the controller may try.
    gate
        Where requests are let in; one of its own if left out.
    on_window
        Called after each window with its number and the decisions.

    Returns
    -------
    LiveRun
        With what came back in time when the server died meanwhile: `stopped` says so.

    Raises
    ------
    AccelError
        A target that one request alone takes longer than.
    RequestError
        Not one request was answered.

    Examples
    --------
    >>> arrivals = steps([(50, 24), (200, 40), (50, 24)])  # doctest: +SKIP
    >>> print(live(mine, texts, arrivals=arrivals, p95_ms=50).decisions)  # doctest: +SKIP
    """
    due = np.asarray(arrivals, dtype=float)
    rows = served._tokenize(texts, None)[1]
    inputs = [spec.name for spec in served.config.inputs]
    payloads = [serialize(served, rows.take(np.array([index])), inputs=inputs) for index in range(len(rows))]
    if control:
        _within_reach(served, texts, p95_ms)
    gate = gate or Admission()
    controller = Controller(
        admission=gate,
        instances=Instances(served),
        batching=Batching(served),
        p95_ms=p95_ms,
        max_instances=max_instances,
    )
    with Generator(served._server.grpc_url, payloads, schedule_s=due.tolist(), gate=gate) as generator:
        run = _Live(served, generator, due, p95_ms, window_s, controller if control else None, on_window)
        run.watch()
        generator.finish()
    if not any(reply.answer is not None for reply in generator.replies):
        raise request_error(served.name, next((r.refusal for r in generator.replies if r.refusal), "no reply"))
    frame = to_frame(_rows(generator.replies, generator.began_s, due, p95_ms, window_s, changes_s, run.log))
    stopped = request_error(served.name, generator.stopped).cause if generator.stopped else ""
    return LiveRun(frame=frame, p95_ms=p95_ms, log=tuple(run.log), stopped=stopped)


class _Live:
    """The windows of a run, as they pass."""

    def __init__(
        self,
        served: ServedModel,
        generator: Generator,
        due: NDArray[np.float64],
        p95_ms: float,
        window_s: float,
        controller: Controller | None,
        on_window: Callable[[int, Sequence[Decision]], None] | None,
    ) -> None:
        self.served, self.generator, self.due = served, generator, due
        self.p95_ms, self.window_s, self.controller, self.on_window = p95_ms, window_s, controller, on_window
        self.log: list[tuple[int, Decision]] = []
        self.seen = 0
        self.counted: Statistics | None = None
        self.changing: threading.Thread | None = None
        self.failures: list[str] = []

    def watch(self) -> None:
        """Until the last window is over or nothing can be answered any more."""
        progress, self.counted = Progress("Load"), statistics_now(self.served)
        for number in range(_windows(self.due, self.window_s)):
            progress.tick(f"window {number + 1}")
            until = (self.generator.began_s or time.perf_counter()) + (number + 1) * self.window_s
            while (left := until - time.perf_counter()) > 0:
                if self.generator.wait(min(left, 0.5)):
                    break
            if self.controller and not self.generator.stopped:
                self._decide(number, self.controller)
        if self.changing:
            self.changing.join()
        progress.clear()

    def _decide(self, number: int, controller: Controller) -> None:
        if self.changing and not self.changing.is_alive():
            self.changing = None
            controller.changed(self.failures.pop() if self.failures else "")
        decisions = controller.step(self._window(number))
        for decision in decisions:
            self.log.append((number, decision))
            if decision.action == "admission" and decision.actuator:
                decision.actuator.apply(**decision.settings)
            elif decision.actuator:
                self.changing = threading.Thread(target=self._change, args=(decision,), daemon=True)
                self.changing.start()
        if self.on_window:
            self.on_window(number, decisions)

    def _change(self, decision: Decision) -> None:
        if decision.actuator and (failure := apply(decision.actuator, decision.settings)):
            self.failures.append(failure)

    def _window(self, number: int) -> Window:
        replies, self.seen = self.generator.replies[self.seen :], len(self.generator.replies)
        start = number * self.window_s
        offered = int(((self.due >= start) & (self.due < start + self.window_s)).sum())
        ms = np.array([(r.ended_s - r.due_s) * 1e3 for r in replies if r.answer is not None])
        before, self.counted = self.counted, statistics_now(self.served)
        return Window(
            offered_per_s=offered / self.window_s,
            within=min(1.0, float((ms <= self.p95_ms).sum()) / max(offered, 1)),
            shed=sum(r.refusal == SHED for r in replies) / max(offered, 1),
            p95_ms=percentile(ms, 95) if len(ms) else float("nan"),
            counted=_since(before, self.counted),
        )


def _within_reach(served: ServedModel, texts: Sequence[str], p95_ms: float) -> None:
    alone = alone_ms(served, texts)
    if alone > p95_ms:
        raise AccelError(
            "No control can meet that target: a request that is alone takes longer.",
            seen=f"{alone:.1f} ms alone, a p95 of {p95_ms:g} ms wanted",
            fix=f"a target of {2.5 * alone:.0f} ms or more, shorter texts, or a faster engine",
        )


def _rows(
    replies: Sequence[Reply],
    began_s: float,
    due: NDArray[np.float64],
    p95_ms: float,
    window_s: float,
    changes_s: Sequence[float],
    log: Sequence[tuple[int, Decision]],
) -> list[dict[str, Any]]:
    """A row a window, by when requests were due."""
    at = np.array([reply.due_s - began_s for reply in replies])
    ms = np.array([(reply.ended_s - reply.due_s) * 1e3 for reply in replies])
    answered = np.array([reply.answer is not None for reply in replies])
    shed = np.array([reply.refusal == SHED for reply in replies])
    rows = []
    for number in range(_windows(due, window_s)):
        start = number * window_s
        here = (at >= start) & (at < start + window_s)
        offered = max(int(((due >= start) & (due < start + window_s)).sum()), 1)
        good, done = int((here & answered & (ms <= p95_ms)).sum()), here & answered
        since = start - max([change for change in (0.0, *changes_s) if change <= start + 1e-9])
        rows.append(
            {
                "window": number,
                "start_s": start,
                "offered_per_s": offered / window_s,
                "p95_ms": percentile(ms[done], 95) if done.any() else float("nan"),
                "within": good / offered,
                "shed": int((here & shed).sum()) / offered,
                "goodput_per_s": good / window_s,
                "lost": int((here & ~answered & ~shed).sum()),
                "settled": since >= (SETTLE - 0.5) * window_s,
                "met": good / offered >= _MET,
                "actions": ", ".join(d.action for n, d in log if n == number and d.actuator),
            }
        )
    return rows


def _windows(due: NDArray[np.float64], window_s: float) -> int:
    return int(due[-1] / window_s) + 1


def _since(before: Statistics | None, after: Statistics | None) -> Statistics | None:
    """What was counted in between; since a reload, where one set the numbers back."""
    if before is None or after is None:
        return after
    try:
        return after - before
    except ServerError:
        return after
