"""One request to generate on its way: version, prompts, quota, Triton's streams, and their tokens turned into text.

The deadline is to the first token, then between tokens. A client that stops reading ends the streams, and Triton's
model frees their rows within a step.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from fastapi import Request

from accel_lib.errors import AccelError, RequestError
from accel_lib.generate import Event, Sampling, TokenLogprob
from accel_lib.models.generation_text import AnswerText, GenerationText
from accel_lib.service.abtest.routing import Route
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.errors import Problem
from accel_lib.service.keys import Principal
from accel_lib.service.middleware import RequestContext
from accel_lib.service.services import IN_LOOP_CHARS, Services
from accel_lib.service.triton_client import refusal
from accel_lib.service.watch import RETRY_S, Watch, engine_failed, merged
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.generation_wire import read_event, request_bytes

Tokenize = Callable[[GenerationText], "Sequence[Prompt]"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids to continue, and how, for one choice of the response."""

    ids: list[int]
    sampling: Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What came for one choice: a piece of its text, how many tokens they were, and the end with the last one."""

    choice: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A request that was read, tokenized and charged for; `parts` runs it."""

    services: Services
    context: RequestContext
    caller: Principal
    served: ServedVersion
    route: Route
    text: GenerationText
    prompts: Sequence[Prompt]
    stops: Sequence[str]
    prompt_tokens: int
    tokenize_s: float

    async def parts(self) -> AsyncIterator[Part]:
        """The pieces of all choices as they come; a failure is a `Problem`."""
        own, name = self.services, self.served.name
        watch: Watch[Event] = Watch(
            own, self.context, self.caller, name, tokenize_s=self.tokenize_s, prompt_tokens=self.prompt_tokens
        )
        with (
            own.experiments.observed(self.route, len(self.prompts)) as compute,
            own.limits.in_flight_slot(name),
            own.telemetry.span("triton") as trace,
            watch,
        ):
            answers = [self.text.answer(self.stops) for _ in self.prompts]
            calls = [_Call(self, prompt, trace) for prompt in self.prompts]
            async with merged(calls, watch):
                open_choices = set(range(len(calls)))
                while open_choices:
                    choice, event = await watch.next()
                    if choice not in open_choices:
                        continue
                    watch.tokens(choice, len(event.token_ids))
                    part = _part(choice, event, answers[choice])
                    if part.finish:
                        watch.finished(part.finish)
                        open_choices.remove(choice)
                        calls[choice].cancel()
                    if part.text or part.tokens or part.finish:
                        yield part
            compute.ms = watch.seconds * 1e3
        if self.route.experiment:
            own.metrics.exposures.labels(self.route.experiment, self.route.version).inc()


def _part(choice: int, event: Event, answer: AnswerText) -> Part:
    ids, logprobs = event.token_ids, event.logprobs
    if event.finish == "stop":  # its last token is the one that ends the text
        ids, logprobs = ids[:-1], logprobs[: max(0, len(ids) - 1)]
    text = answer.push(ids, last=event.ended)
    finish = "stop" if answer.stopped else event.finish
    return Part(choice=choice, text=text, tokens=len(event.token_ids), logprobs=logprobs, finish=finish)


class _Call:
    """One stream from Triton."""

    def __init__(self, asked: Generation, prompt: Prompt, trace: Sequence[tuple[str, str]]) -> None:
        served = asked.served
        messages = request_bytes(served.name, served.version, prompt.ids, prompt.sampling)
        self._name = served.name
        self._stream = asked.services.triton.stream(*messages, metadata=trace)
        self.cancel, self.leave = self._stream.cancel, self._stream.leave

    async def events(self) -> AsyncIterator[Event | Problem]:
        """What Triton sends, to the end; a failure is the last item."""
        ended = False
        try:
            async for content in self._stream.contents():
                event = read_event(content)
                if event.ended:
                    ended = True
                    self._stream.ended()
                yield problem_of(self._name, event.error) if event.error else event
            if not ended:
                message = "Triton ended the stream; send the request again."
                yield Problem(503, message, code="not_ready", retry_after_s=RETRY_S)
        except grpc.aio.AioRpcError as error:
            if not ended:
                yield refusal(error.code(), error.details() or "")


def problem_of(name: str, message: str) -> Problem:
    """The problem for what Triton's model said of one request."""
    if "queue is full" in message:
        return Problem(429, "The model's queue is full.", code="queue_full", retry_after_s=RETRY_S)
    if re.search(r"engine failed|more than [\d.]+ s for a step|being unloaded", message):
        return engine_failed()
    error = request_error(name, message)
    if "\n  fix:" in message:
        text = " ".join(filter(None, (error.cause, error.seen and f"Seen: {error.seen}.", f"Fix: {error.fix}.")))
        param = "response_format" if re.search("JSON schema|json_schema", message) else None
        return Problem(400, text, param=param, code="invalid_value")
    return refusal(grpc.StatusCode.UNKNOWN, message)


async def begin(
    request: Request,
    caller: Principal,
    served: ServedVersion,
    route: Route,
    tokenize: Tokenize,
    *,
    stops: Sequence[str],
    choices_per_prompt: int,
) -> Generation:
    """Tokenize and charge; `tokenize` gives one prompt a choice, a long one in another thread."""
    own, context = request.app.state.services, request.state.context
    text = served.text
    if text is None:
        raise Problem(500, f"{served.name} has no tokenizer.", code="model_error")
    began = time.perf_counter()
    try:
        made = await own.run_in_pool(lambda: tokenize(text), unless=len(context.body) <= IN_LOOP_CHARS)
    except RequestError as error:
        raise Problem(400, error.cause, param="max_tokens", code="context_length_exceeded") from error
    except AccelError as error:
        raise Problem(400, f"{error.cause} Fix: {error.fix}.", code="invalid_text") from error
    context.deadline.check()
    tokens = sum(len(each.ids) for each in made) // choices_per_prompt  # a prompt is computed once for all its choices
    context.model, context.version, context.inputs, context.tokens = served.name, served.version, len(made), tokens
    own.limits.charge(caller.id, tokens)
    return Generation(
        services=own,
        context=context,
        caller=caller,
        served=served,
        route=route,
        text=text,
        prompts=made,
        stops=stops,
        prompt_tokens=tokens,
        tokenize_s=time.perf_counter() - began,
    )
