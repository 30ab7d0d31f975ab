"""Run a changing load on a served model, window by window, with or without a controller that acts meanwhile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accel_lib.errors import AccelError
from accel_lib.formatting import number, percent
from accel_lib.load.generator import SHED, Generator, Reply
from accel_lib.load.runner import statistics_now
from accel_lib.measurement import Result, to_frame
from accel_lib.progress import Progress
from accel_lib.stats import percentile
from accel_lib.triton.client import ServedModel
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.statistics import Statistics
from accel_lib.triton.wire import serialize
from accel_lib.tuning.actuators import Admission, Batching, Instances, apply
from accel_lib.tuning.control import MET, Controller, Decision, Window
from accel_lib.tuning.grid import unloaded_latency_ms

SETTLE = 3  # windows after a change of the load that a controller has for finding its setting


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ControlledRun(Result):
    """What became of a changing load; `log` has the controller's decisions, as ``(window, decision)``.

    `frame` has one row a window: ``start_s``, ``offered_per_s``, ``p95_ms`` of the answers, ``within`` and ``shed``
    (shares of what was offered), ``goodput_per_s``, ``lost``, ``settled`` (not among the three windows after a change
    of the load), ``met`` (95% of what was offered was answered within the target).
    """

    p95_ms: float
    log: tuple[tuple[int, Decision], ...] = ()

    @property
    def settled(self) -> tuple[int, int]:
        """Settled windows in which the target was met, and all of them; of any windows where none is settled."""
        settled = self.frame[self.frame["settled"]]
        windows = settled if len(settled) else self.frame
        return int(windows["met"].sum()), len(windows)

    @property
    def goodput_per_s(self) -> float:
        """Requests/s answered within the target, over the whole run: shed ones count as misses."""
        return float(self.frame["goodput_per_s"].mean())

    @property
    def lost(self) -> int:
        """Requests that were admitted and not answered."""
        return int(self.frame["lost"].sum())

    @property
    def decisions(self) -> str:
        """What the controller changed and why, a line a decision."""
        acted = [(window, decision) for window, decision in self.log if decision.actuator]
        return "\n".join(f"window {window + 1}, {decision.action}: {decision.words}" for window, decision in acted)

    @property
    def headline(self) -> str:
        """In how many windows the target was met, and what was shed or lost."""
        met, windows = self.settled
        which = "window" if windows == 1 else "windows"
        which = f"settled {which}" if self.frame["settled"].any() else which
        said = f"In {met} of {windows} {which} 95% of all that came was answered within {self.p95_ms:g} ms"
        said += f", with {number(self.goodput_per_s)} requests/s in time over the whole run"
        offered = self.frame["offered_per_s"]
        shed = float((self.frame["shed"] * offered).sum() / offered.sum())
        said += f"; {percent(shed)} were not admitted" if shed else ""
        return self._and_stopped(f"{said}; {self.lost:,} lost" if self.lost else said)


def run_load(
    served: ServedModel,
    texts: Sequence[str],
    *,
    arrivals: ArrayLike,
    p95_ms: float,
    window_s: float = 8,
    control: bool = True,
    changes_s: Sequence[float] = (),
    gate: Admission | None = None,
) -> ControlledRun:
    """Send requests as they are due, and let a controller hold the target; its last setting stays.

    Parameters
    ----------
    arrivals
        Seconds from the start at which requests are due: `accel_lib.load.steps` makes them.
    p95_ms
        The latency target.
    window_s
        How often the controller decides; at least twice as long as a reload takes, to be judged fairly.
    changes_s
        When the load changes, for the table alone; the controller is not told.
    gate
        Where requests are admitted; one of its own if left out.

    Raises
    ------
    AccelError
        A target that one request alone takes longer than.
    RequestError
        Not one request was answered.
    """
    due = np.asarray(arrivals, dtype=float)
    rows = served.tokenize(texts)
    inputs = [spec.name for spec in served.config.inputs]
    payloads = [serialize(served, rows.take(np.array([index])), inputs=inputs) for index in range(len(rows))]
    gate = gate or Admission()
    controller = None
    if control:
        _check_target(served, texts, p95_ms)
        instances, batching = Instances(served), Batching(served)
        controller = Controller(admission=gate, instances=instances, batching=batching, p95_ms=p95_ms)
    with Generator(served.server.grpc_url, payloads, schedule_s=due.tolist(), gate=gate) as generator:
        run = _Run(served, generator, due, p95_ms, window_s, controller)
        run.watch()
        generator.finish()
    if not any(reply.answer is not None for reply in generator.replies):
        raise request_error(served.name, next((r.refusal for r in generator.replies if r.refusal), "no reply"))
    stopped = request_error(served.name, generator.stopped).cause if generator.stopped else ""
    return ControlledRun(frame=to_frame(run.rows(changes_s)), p95_ms=p95_ms, log=tuple(run.log), stopped=stopped)


@dataclasses.dataclass
class _Run:
    """The windows of a run, as they pass."""

    served: ServedModel
    generator: Generator
    due: NDArray[np.float64]
    p95_ms: float
    window_s: float
    controller: Controller | None
    log: list[tuple[int, Decision]] = dataclasses.field(default_factory=list)
    seen: int = 0  # replies of former windows
    changing: Future[str] | None = None  # a change that is in progress

    def __post_init__(self) -> None:
        self.background = ThreadPoolExecutor(1)
        self.offered = np.bincount(self._window_of(self.due))
        self.counted = statistics_now(self.served)

    def watch(self) -> None:
        """Until the last window is over or the server responds no more."""
        progress = Progress("Load")
        for index in range(len(self.offered)):
            progress.tick(f"window {index + 1}")
            until = (self.generator.began_s or time.perf_counter()) + (index + 1) * self.window_s
            while (left := until - time.perf_counter()) > 0:
                if self.generator.wait(min(left, 0.5)):
                    break
            if self.controller and not self.generator.stopped:
                self._decide(index, self.controller)
        self.background.shutdown()
        progress.clear()

    def rows(self, changes_s: Sequence[float]) -> list[dict[str, object]]:
        """A row a window, of the requests that were due in it."""
        replies: list[list[Reply]] = [[] for _ in self.offered]
        at = np.array([reply.due_s for reply in self.generator.replies]) - self.generator.began_s
        for reply, index in zip(self.generator.replies, self._window_of(at), strict=True):
            replies[min(index, len(replies) - 1)].append(reply)
        rows: list[dict[str, object]] = []
        for index, part in enumerate(replies):
            window, start_s = self._outcome(index, part), index * self.window_s
            since_s = start_s - max(change for change in (0.0, *changes_s) if change <= start_s + 1e-9)
            rows.append(
                {
                    "start_s": start_s,
                    "offered_per_s": window.offered_per_s,
                    "p95_ms": window.p95_ms,
                    "within": window.within,
                    "shed": window.shed,
                    "goodput_per_s": window.goodput_per_s,
                    "lost": sum(reply.answer is None and reply.refusal != SHED for reply in part),
                    "settled": since_s >= (SETTLE - 0.5) * self.window_s,
                    "met": window.within >= MET,
                }
            )
        return rows

    def _decide(self, index: int, controller: Controller) -> None:
        if self.changing and self.changing.done():
            controller.changed(self.changing.result())
            self.changing = None
        replies = self.generator.replies[self.seen :]
        self.seen += len(replies)
        before, self.counted = self.counted, statistics_now(self.served)
        counted = self.counted  # since a reload, where one set the numbers back
        if counted and before and counted.follows(before):
            counted -= before
        window = self._outcome(index, replies, counted)
        for decision in controller.step(window):
            self.log.append((index, decision))
            if decision.action == "admission" and decision.actuator:
                decision.actuator.apply(**decision.settings)
            elif decision.actuator:
                self.changing = self.background.submit(apply, decision.actuator, decision.settings)

    def _outcome(self, index: int, replies: Sequence[Reply], counted: Statistics | None = None) -> Window:
        """What became of a window's requests, from these replies."""
        offered = max(int(self.offered[index]), 1)
        ms = np.array([(reply.ended_s - reply.due_s) * 1e3 for reply in replies if reply.answer is not None])
        return Window(
            offered_per_s=offered / self.window_s,
            within=min(1.0, float((ms <= self.p95_ms).sum()) / offered),
            shed=sum(reply.refusal == SHED for reply in replies) / offered,
            p95_ms=percentile(ms, 95) if len(ms) else float("nan"),
            counted=counted,
        )

    def _window_of(self, at_s: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.maximum(at_s / self.window_s, 0).astype(np.int64)


def _check_target(served: ServedModel, texts: Sequence[str], p95_ms: float) -> None:
    alone = unloaded_latency_ms(served, texts)
    if alone > p95_ms:
        raise AccelError(
            "No control can meet that target: a request that is alone takes longer.",
            seen=f"{alone:.1f} ms alone, a p95 of {p95_ms:g} ms wanted",
            fix=f"a target of {2.5 * alone:.0f} ms or more, shorter texts, or a faster engine",
        )
