"""Triton's Python backend for a model that generates: token ids in, and one response for every step of the engine.

The model is decoupled: ``execute`` hands each request to the engine's loop and returns, and a second thread sends what
the engine generated. The last tokens go together with the final flag. Text is its clients' affair.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from accel_lib.errors import ArtifactError, RequestError
from accel_lib.generate import Event, Sampling, Stats, TokenLogprob, wire
from accel_lib.generate.loop import EngineLoop, Request
from accel_lib.triton.backend import device_of, load_version, read_tensor, thread_count, write_tensor

_WATCHDOG_S = 60.0
_ASK_S = 0.25
_SWITCH_S = 0.0002  # an engine that steps with Python's lock gives it up after a step if somebody waited for so long
_ENGINE_SETTINGS = {"rows": int, "cache_tokens": int, "max_waiting": int, "step_tokens": int, "policy": str}
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_GAUGES = {
    "running": ("vllm:num_requests_running", "Requests in the engine's batch."),
    "waiting": ("vllm:num_requests_waiting", "Requests that wait for a place in it."),
    "cache_use": ("vllm:kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1."),
}  # vLLM's names, which its own Triton backend reports in the same place


class TritonPythonModel:
    """A validated generation artifact behind Triton's Python backend interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's artifact; raises `ArtifactError` or `EngineError` if that fails."""
        from accel_lib.generate.open import open_generation

        artifact, config, parameters = load_version(args)
        if not config.get("model_transaction_policy", {}).get("decoupled") or config["max_batch_size"]:
            raise ArtifactError(
                "A model that generates is decoupled and is not batched by Triton.",
                seen=f"max_batch_size {config['max_batch_size']}",
                fix="write model_transaction_policy { decoupled: true } and max_batch_size: 0",
            )
        options: dict[str, Any] = {"threads": thread_count(config, parameters), "device": device_of(args, parameters)}
        options |= {name: kind(parameters[name]) for name, kind in _ENGINE_SETTINGS.items() if name in parameters}
        sys.setswitchinterval(_SWITCH_S)
        self._keys = itertools.count()
        self._receivers: weakref.WeakValueDictionary[str, _Receiver] = weakref.WeakValueDictionary()
        self._families = _families()  # a gauge is gone with its family
        self._gauges = _gauges(args, self._families)
        self._loop = EngineLoop(
            lambda: open_generation(artifact, **options),
            watchdog_s=float(parameters.get("watchdog_s", _WATCHDOG_S)),
            give_up=lambda: os._exit(1),  # Triton then refuses at once, and the gateway loads the model again
            on_stats=self._show,
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand requests to the engine; what is wrong with one is its own response."""
        for request in requests:
            parameters = json.loads(request.parameters() or "{}")
            if wire.CANCEL in parameters:
                receiver = self._receivers.get(parameters[wire.CANCEL])
                if receiver is not None:
                    receiver.left = True
                request.get_response_sender().send(flags=_FINAL)
                continue
            receiver = _Receiver(request.get_response_sender())
            self._receivers[request.request_id()] = receiver
            key = str(next(self._keys))
            try:
                ids, sampling = read_request(request)
                self._loop.add(Request(key=key, prompt_ids=ids, sampling=sampling, receiver=receiver))
            except Exception as error:  # raised from here, it would leak Triton's memory
                receiver.send(Event(key=key, error=str(error)))

    def finalize(self) -> None:
        """End the engine."""
        self._loop.close()

    def _show(self, stats: Stats) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(stats, name)))


class _Receiver:
    """Triton's response sender of one request; `left` once the client has asked to end it."""

    def __init__(self, sender: Any) -> None:
        self._sender, self.left, self._asked_s = sender, False, 0.0

    def send(self, event: Event) -> None:
        flags = _FINAL if event.ended else 0
        if event.error:
            response = pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(event.error))
        else:
            response = pb_utils.InferenceResponse(event_tensors(event))
        self._sender.send(response, flags=flags)

    def cancelled(self) -> bool:
        """Whether the client has left, or gRPC has lost it; Triton is asked for that only now and again."""
        if not self.left and time.monotonic() - self._asked_s > _ASK_S:
            self._asked_s = time.monotonic()
            self.left = bool(self._sender.is_cancelled())
        return self.left


def read_request(request: Any) -> tuple[list[int], Sampling]:
    """The prompt and the sampling of a request; raises `RequestError` for what is none."""
    sampling = wire.sampling_from_json(_parameter(request))
    return read_tensor(request, wire.PROMPT_IDS).reshape(-1).tolist(), sampling


def event_tensors(event: Event, *, batched: bool = False) -> list[Any]:
    """An event as the outputs of a response; `batched` for a model that Triton batches: each is a batch of one."""
    arrays: dict[str, Any] = {
        wire.TOKEN_IDS: np.array(event.token_ids, dtype=np.int64),
        wire.FINISH: np.array([wire.FINISHES.index(event.finish)], dtype=np.int32),
    }
    if event.logprobs:
        arrays |= _logprobs(event.logprobs)
    return [write_tensor(name, array[None] if batched else array) for name, array in arrays.items()]


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    width = max(len(token.top) for token in tokens)
    ids = np.full((len(tokens), width), -1, dtype=np.int64)
    values = np.zeros((len(tokens), width), dtype=np.float32)
    for row, token in enumerate(tokens):
        for column, (token_id, logprob) in enumerate(token.top):
            ids[row, column], values[row, column] = token_id, logprob
    chosen = np.array([token.logprob for token in tokens], dtype=np.float32)
    return {wire.LOGPROBS: chosen} | ({wire.TOP_IDS: ids, wire.TOP_LOGPROBS: values} if width else {})


def _parameter(request: Any) -> str:
    """The sampling among a request's parameters."""
    found = json.loads(request.parameters() or "{}").get(wire.SAMPLING)
    if not isinstance(found, str):
        raise RequestError(
            "The request does not say how to sample.",
            seen=f"no parameter {wire.SAMPLING!r}",
            fix=f'send the request parameter {wire.SAMPLING!r}: {{"max_tokens": 16}}',
        )
    return found


def _families() -> dict[str, Any]:
    """A family a number; none in a Triton without metrics."""
    kind = pb_utils.MetricFamily.GAUGE
    try:
        return {
            field: pb_utils.MetricFamily(name=name, description=description, kind=kind)
            for field, (name, description) in _GAUGES.items()
        }
    except pb_utils.TritonModelException:
        return {}


def _gauges(args: dict[str, str], families: dict[str, Any]) -> dict[str, Any]:
    labels = {"model_name": args["model_name"], "version": args["model_version"]}
    return {field: family.Metric(labels=labels) for field, family in families.items()}
