"""Triton's dynamic batcher as a discrete-event simulation: the same decisions, on a simulated clock.

Requests of one row each wait in a queue, by priority. The batcher moves them into a payload; a payload that waits for
an instance grows until an instance takes it, and two payloads per instance may wait. With priorities, a timeout or a
queue size none waits: Triton then makes a payload only once an instance is idle. Instances that compute at the same
time slow each other down for as long as they do.

Not simulated: without such payloads, Triton 24.10 does not notice that an instance becomes idle. It looks when a
request is queued, or half a second later; so with a full queue, instances were seen idle for that long.

Source: dynamic_batch_scheduler.cc, scheduler_utils.cc, rate_limiter.cc and instance_queue.cc of
triton-inference-server/core, release 24.10; an integration test holds it to a real Triton whose model sleeps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

from accel_lib.simulation.request_queue import RequestQueue
from accel_lib.triton.config import ModelConfig

_ARRIVAL, _DONE, _FREE, _LOOK = range(4)
_WAITING = 2  # payloads that may wait for each instance
_NAP_S = 0.5  # after which the batcher looks even if nothing wakes it
_TICK_S = 1e-9
_PAST_S = 1e-6  # a timeout is looked at that much after it


class _Payload:
    """Requests of one execution."""

    __slots__ = ("closed", "oldest_s", "requests", "scheduled")

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.oldest_s = float("inf")
        self.scheduled = self.closed = False


class _Execution:
    """What an instance computes, since when, and the seconds that it would still take alone."""

    __slots__ = ("began_s", "left_s", "requests")

    def __init__(self, requests: Sequence[int], left_s: float, began_s: float) -> None:
        self.requests, self.left_s, self.began_s = requests, left_s, began_s


class Scheduler:
    """One model's batcher and instances.

    `service_s` gives the seconds of an execution alone, from the numbers of its requests; `slowdown` how many times as
    long it takes while a number of instances compute. `answer` is called with a request's number, the time in seconds,
    why it was refused (empty if it was not) and the seconds that its execution took. `gap_s` passes from a response to
    the instance's next execution.
    """

    def __init__(
        self,
        config: ModelConfig,
        service_s: Callable[[Sequence[int]], float],
        answer: Callable[[int, float, str, float], None],
        *,
        slowdown: Callable[[int], float] = lambda _: 1.0,
        gap_s: float = 0.0,
    ) -> None:
        batching = config.dynamic_batching
        self._most = max(1, config.max_batch_size) if batching else 1
        self._preferred = tuple(sorted(config.preferred_batch_sizes)) or (self._most,)
        self._largest = max(self._preferred)
        self._delay_s = config.max_queue_delay_us / 1e6 if batching else 0.0
        self._ahead = not (config.priority_levels or config.queue_timeout_us or config.max_queue_size)
        self._queue = RequestQueue(config, lambda request, now, reason: answer(request, now, reason, 0.0))
        self._service_s, self._answer, self._slowdown, self._gap_s = service_s, answer, slowdown, gap_s
        self._instances = self._idle = config.instance_count
        self._waiting: deque[_Payload] = deque()
        self._payload = _Payload()
        self._full = False  # the payload takes no more
        self._awaited = 0  # queued requests below which an arrival does not wake the batcher
        self._events: list[tuple[float, int, int, Sequence[int]]] = []
        self._order = 0
        self._look_at = float("inf")
        self._awake_s = 0.0  # when the batcher last looked
        self.batch_sizes: list[int] = []  # of each execution
        self.busy_s = 0.0  # summed over the instances
        self.any_busy_s = 0.0  # in which at least one computes
        self._computing: list[_Execution] = []
        self._changed_s = 0.0  # when an execution last began or ended
        self._changes = 0
        self.ended_s = 0.0

    def send(self, request: int, at_s: float, priority: int = 0, timeout_us: int = 0) -> None:
        """Schedule an arrival; `priority` 0 is the model's default level, `timeout_us` 0 its default timeout."""
        self._push(at_s, _ARRIVAL, (request, priority, timeout_us))

    def run(self) -> None:
        """Process events in their order until none is left."""
        events, waiting, queue = self._events, self._waiting, self._queue
        while events:
            now, _, kind, what = heapq.heappop(events)
            if kind == _ARRIVAL:
                queue.add(what[0], now, what[1], what[2])
                if queue.size >= self._awaited or self._full or self._payload.closed:
                    self._batch(now)
                elif self._look_at == float("inf"):
                    self._look(now + _NAP_S - (now - self._awake_s) % _NAP_S)
            elif kind == _DONE:
                if what[0] == self._changes:  # else another execution has begun or ended since
                    self._finish(now)
            elif kind == _FREE:
                self._idle += 1
                if not waiting:
                    self._batch(now)
            elif now >= self._look_at:
                self._batch(now)
            while waiting and self._idle:
                self._take(now)
                self._batch(now)

    def _push(self, at_s: float, kind: int, what: Sequence[int]) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, kind, what))

    def _batch(self, now: float) -> None:
        """Move waiting requests into payloads until the batcher waits for more."""
        self._look_at, self._awake_s = float("inf"), now
        while self._queue.size and len(self._waiting) < (self._instances * _WAITING if self._ahead else self._idle):
            if self._full or self._payload.closed:
                self._payload, self._full, self._awaited = _Payload(), False, 0
            self._queue.expire(now, self._most - len(self._payload.requests))
            moved = self._decide(now)
            if moved:
                self._move(moved)
            elif not self._full:
                return

    def _look(self, at_s: float) -> None:
        self._look_at = at_s
        self._push(at_s, _LOOK, ())

    def _decide(self, now: float) -> int:
        """How many waiting requests go into the payload now; 0 waits for more, and looks again after the delay."""
        held, queued = len(self._payload.requests), self._queue.size
        pending = min(queued, self._most - held)
        if held >= self._largest:
            self._full = True
        if not pending:
            return 0
        best = max((size - held for size in self._preferred if 0 < size - held <= pending), default=0)
        if not self._delay_s:
            self._full = self._full or bool(best) or pending < queued or held + pending >= self._largest
            return best or pending
        oldest = self._queue.oldest(pending)
        late = now - oldest >= self._delay_s - _TICK_S
        if best and not late:
            return best
        if pending < queued or held + pending >= self._largest:
            self._full = True
            return pending
        if late or (held and held not in self._preferred):
            return pending
        self._awaited = next((size for size in self._preferred if size > held + pending), self._preferred[0]) - held
        self._look(min(oldest + self._delay_s, self._queue.closest(pending) + _PAST_S))
        return 0

    def _move(self, count: int) -> None:
        """Move `count` waiting requests into the payload, which from the first on waits for an instance."""
        payload = self._payload
        payload.oldest_s = min(payload.oldest_s, self._queue.oldest(count))
        payload.requests += self._queue.take(count)
        if not payload.scheduled:
            payload.scheduled = True
            self._waiting.append(payload)

    def _take(self, now: float) -> None:
        """An idle instance takes the next payload, with those behind it that fit and have waited out the delay."""
        payload = self._waiting.popleft()
        payload.closed = True
        while self._delay_s and self._waiting and now - self._waiting[0].oldest_s > self._delay_s:
            behind = self._waiting[0]
            behind.closed = True  # even if it does not fit
            if len(payload.requests) + len(behind.requests) > self._most:
                break
            payload.requests += self._waiting.popleft().requests
        self._idle -= 1
        self.batch_sizes.append(len(payload.requests))
        self._compute_until(now)
        self._computing.append(_Execution(payload.requests, self._service_s(payload.requests), now))
        self._expect_end(now)

    def _finish(self, now: float) -> None:
        """The execution with the least left to do is done."""
        self._compute_until(now)
        done = min(self._computing, key=lambda execution: execution.left_s)
        self._computing.remove(done)
        self.ended_s = now
        self._expect_end(now)
        for request in done.requests:
            self._answer(request, now, "", now - done.began_s)
        self._push(now + self._gap_s, _FREE, ())

    def _compute_until(self, now: float) -> None:
        """Work off what the instances computed since one of them last began or ended."""
        passed_s, busy = now - self._changed_s, len(self._computing)
        self._changed_s = now
        if busy:
            done_s = passed_s / self._slowdown(busy)
            for execution in self._computing:
                execution.left_s -= done_s
            self.busy_s += busy * passed_s
            self.any_busy_s += passed_s

    def _expect_end(self, now: float) -> None:
        """Schedule the end of the next execution, which changes when others begin or end before."""
        self._changes += 1
        if self._computing:
            left_s = max(0.0, min(execution.left_s for execution in self._computing))
            self._push(now + left_s * self._slowdown(len(self._computing)), _DONE, (self._changes,))
