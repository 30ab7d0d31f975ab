"""Generation batched by Triton itself: by its dynamic batcher, or by its iterative sequences.

In `generation_backend` the engine's scheduler decides which requests run together; here Triton does, and the engine
computes what it is given. To compare the ways (`accel_lib.triton.batching_modes`), not to serve with.
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/batcher.md#iterative-sequences
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from accel_lib.errors import ArtifactError, EngineError
from accel_lib.generate import Event
from accel_lib.generate.loop import merged
from accel_lib.triton.backend import load_version, read_tensor, thread_count
from accel_lib.triton.generation_backend import event_tensors, read_request

READY = "READY"  # control input, int32 [1]: 0 where Triton sends a placeholder, as nobody sits in that row
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_RESCHEDULE = pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE


class _BatchedByTriton:
    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's artifact; raises `ArtifactError` or `EngineError` if that fails."""
        from accel_lib.generate.open import open_generation

        artifact, config, parameters = load_version(args)
        if config["max_batch_size"] < 1:
            raise ArtifactError(
                "Triton batches this model, so it needs the number of its rows.",
                seen=f"max_batch_size {config['max_batch_size']}",
                fix="write max_batch_size: 8",
            )
        threads = thread_count(config, parameters)
        self._engine = open_generation(artifact, threads=threads, rows=config["max_batch_size"])

    def finalize(self) -> None:
        """End the engine."""
        self._engine.close()


class DynamicBatchingModel(_BatchedByTriton):
    """A batch of the dynamic batcher runs to its end, and then all its requests get their whole answer."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Generate for all requests of a batch, until the last one has its tokens."""
        errors: dict[str, Event] = {}
        for index, request in enumerate(requests):
            try:
                self._engine.add(str(index), *read_request(request))
            except Exception as error:  # it is this request's answer, and no other one's
                errors[str(index)] = Event(key=str(index), error=str(error))
        events: list[Event] = []
        while not self._engine.idle:
            events += self._engine.step()
        found = {event.key: event for event in merged(events)} | errors
        return [_response(found[str(index)]) for index in range(len(requests))]


class IterativeModel(_BatchedByTriton):
    """One step of the engine an execution; requests that go on are handed back, and Triton schedules them again.

    A sequence keeps its row until it ends, and each execution has all of them: one that is missing was cancelled.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """As of every model here; no request is live yet."""
        super().initialize(args)
        self._live: set[str] = set()

    def execute(self, requests: Sequence[Any]) -> None:
        """A token for every row, as far as one is ready."""
        rows: dict[str, Any] = {}
        for request in requests:
            if read_tensor(request, READY).item():
                rows[str(request.correlation_id())] = request
            else:
                request.get_response_sender().send(flags=_FINAL)
        for key in self._live - rows.keys():
            self._engine.cancel(key)
        self._live &= rows.keys()
        events = self._begin(rows) + self._step(rows)
        found = {event.key: event for event in merged(events)}
        for key, request in rows.items():
            self._answer(key, request, found.get(key))

    def _begin(self, rows: dict[str, Any]) -> list[Event]:
        """Requests that are here for the first time join the engine's batch; what is wrong with one is its event."""
        events = []
        for key in rows.keys() - self._live:
            try:
                self._engine.add(key, *read_request(rows[key]))
                self._live.add(key)
            except Exception as error:  # raised from a decoupled model, it would leak Triton's memory
                events.append(Event(key=key, error=str(error)))
        return events

    def _step(self, rows: dict[str, Any]) -> list[Event]:
        try:
            return self._engine.step()
        except EngineError as error:
            return [Event(key=key, error=str(error)) for key in rows]

    def _answer(self, key: str, request: Any, event: Event | None) -> None:
        sender = request.get_response_sender()  # before the request is handed back, which must be before this returns
        ended = event is not None and event.ended
        if not ended:
            request.set_release_flags(_RESCHEDULE)
        if event is not None:
            sender.send(_response(event), flags=_FINAL if ended else 0)
        self._live -= {key} if ended else set()


def _response(event: Event) -> Any:
    if event.error:
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(event.error))
    return pb_utils.InferenceResponse(event_tensors(event, batched=True))
