"""transformers' own continuous batching behind the protocol: the reference, and the fallback where OpenVINO is not.

Its manager steps in a thread of its own; `step` here waits for what that thread gave. It has one random generator for
all requests and reports probabilities after cutting, so seeds and log probabilities are refused.
https://huggingface.co/docs/transformers/main/continuous_batching
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel_lib.errors import EngineError, require
from accel_lib.generate import Event, Finish, Limits, Sampling, Stats
from accel_lib.generate.requests import check_request

if TYPE_CHECKING:
    from accel_lib.models.generation import GenerationModel

_PAGE_TOKENS = 32
_BATCH_TOKENS = 256  # of prompts in a step: more makes those that generate wait longer
_WAIT_S = 0.05
_SWITCH_ON = {"temperature": 0.5, "top_p": 0.5}  # what starts at 1 has no processor; each request brings its own
_UNSUPPORTED = frozenset(
    {"min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logprobs", "json_schema"}
)


@dataclasses.dataclass
class _Live:
    sampling: Sampling
    stop_ids: frozenset[int]
    prompt_tokens: int
    seen: int = 0


class TransformersEngine:
    """Continuous batching by transformers' manager.

    Parameters
    ----------
    model
        A causal language model; its network is used as it is, in float32 on the CPU.
    rows
        Requests at once.
    cache_tokens
        Tokens in the cache, rounded down to pages of 32.
    """

    name = "transformers"
    precision = "fp32"

    def __init__(self, model: GenerationModel, *, rows: int = 8, cache_tokens: int = 16_384) -> None:
        transformers = require("transformers", extra="models")
        pages = cache_tokens // _PAGE_TOKENS
        self.device = str(next(model.network.parameters()).device)
        self.stop_ids = model.stop_ids
        self.limits = Limits(
            rows=rows,
            cache_tokens=pages * _PAGE_TOKENS,
            block_tokens=_PAGE_TOKENS,
            context_tokens=model.context_tokens,
            vocabulary=model.vocabulary,
            unsupported=_UNSUPPORTED,
            step_tokens=_BATCH_TOKENS,
        )
        self._live: dict[str, _Live] = {}
        self._cancelled: list[Event] = []
        self._stats = Stats(
            running=0, waiting=0, cache_use=0.0, steps=0, prompt_tokens=0, cached_tokens=0, generated_tokens=0
        )
        network: Any = model.network
        self._manager = network.init_continuous_batching(
            generation_config=transformers.GenerationConfig(
                do_sample=True, eos_token_id=-1, **_SWITCH_ON, top_k=model.vocabulary
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=pages + rows,  # it keeps some back; what is promised is bounded above
                max_batch_tokens=_BATCH_TOKENS,
                max_requests_per_batch=rows,
                per_request_processors=True,
                use_cuda_graph=False,
                use_async_batching=False,
                allow_block_sharing=False,
            ),
        )
        self._manager.start()

    def add(self, key: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take a request; raises `RequestError` for one that it does not hold or honour."""
        check_request(self.limits, prompt_ids, sampling)
        stops = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.stop_ids))
        greedy = sampling.temperature == 0
        self._live[key] = _Live(sampling, stops, len(prompt_ids))
        self._manager.add_request(
            list(prompt_ids),
            request_id=key,
            max_new_tokens=sampling.max_tokens,
            streaming=True,
            eos_token_id=sorted(stops) or -1,
            temperature=1.0 if greedy else sampling.temperature,
            top_k=1 if greedy else sampling.top_k or self.limits.vocabulary,  # its 0 would mean greedy
            top_p=1.0 if greedy else sampling.top_p,
        )

    def cancel(self, key: str) -> None:
        """End a request: the manager gives no last result, so the event is made here."""
        if self._live.pop(key, None):
            self._manager.cancel_request(key)
            self._cancelled.append(Event(key=key, finish="cancelled"))

    def step(self) -> list[Event]:
        """What the manager's thread gave since the last call; waits shortly for a first token."""
        events, self._cancelled = self._cancelled, []
        result = self._manager.get_result(timeout=_WAIT_S) if self._live else None
        if result is None and self._live and not self._manager.is_running():
            raise EngineError(
                "transformers' continuous batching has stopped.",
                seen=self._manager.background_thread_status.fatal_error,
                fix="close this engine and open another one",
            )
        while result is not None:
            events += self._event(result)
            result = None if self._manager.output_router.output_queue.empty() else self._manager.get_result(timeout=0)
        self._stats = dataclasses.replace(
            self._stats,
            steps=self._stats.steps + 1,
            generated_tokens=self._stats.generated_tokens + sum(len(event.token_ids) for event in events),
        )
        return events

    def _event(self, result: Any) -> list[Event]:
        live = self._live.get(result.request_id)
        if live is None:  # cancelled, and one more token was in flight
            return []
        new = tuple(result.generated_tokens[live.seen :])  # it gives all so far each time
        if not live.seen and new:
            self._stats = dataclasses.replace(self._stats, prompt_tokens=self._stats.prompt_tokens + live.prompt_tokens)
        live.seen += len(new)
        finish: Finish | None = None
        if result.is_finished():
            del self._live[result.request_id]
            finish = "stop" if result.generated_tokens and result.generated_tokens[-1] in live.stop_ids else "length"
        if result.error:
            return [Event(key=result.request_id, token_ids=new, error=str(result.error))]
        return [Event(key=result.request_id, token_ids=new, finish=finish)] if new or finish else []

    def stats(self) -> Stats:
        """Counts since the start."""
        held = sum(live.prompt_tokens + live.seen for live in self._live.values())
        return dataclasses.replace(self._stats, running=len(self._live), cache_use=held / self.limits.cache_tokens)

    def close(self) -> None:
        """End the manager's thread."""
        self._live.clear()
        self._manager.stop(block=True, hard_stop=True)
