"""OpenAI's endpoints for models that generate: chats and texts to continue, whole or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from accel_lib.errors import RequestError
from accel_lib.generate import PRIORITIES
from accel_lib.models.generation_text import GenerationText
from accel_lib.service import generation, relay
from accel_lib.service.auth import InferenceRoute
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.chat_schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest, StreamOptions
from accel_lib.service.completions import ChatShape, CompletionShape, Shape, Tally
from accel_lib.service.fields import read
from accel_lib.service.generation import Generation, Prompt
from accel_lib.service.openapi import described
from accel_lib.service.routes.inference import VERSION_HEADER, Caller, asked_priority, choose_version, to_json
from accel_lib.service.services import services
from accel_lib.service.streaming import EventStream, event

router = APIRouter(tags=["generation"], route_class=InferenceRoute)
_Asked = ChatRequest | CompletionRequest


@router.post("/v1/chat/completions", **described(ChatRequest, ChatCompletion, streams=True))
async def chat_completions(request: Request, caller: Caller) -> Response:
    """Answer a chat, whole, or piece by piece with `stream`."""
    if (elsewhere := relay.asked(request, caller, services(request))) is not None:
        return await _relayed(request, elsewhere)
    asked = await read(ChatRequest, request)
    messages = [message.plain() for message in asked.messages]

    priority = asked_priority(request, PRIORITIES)

    def tokenize(text: GenerationText) -> list[Prompt]:
        return _prompts(asked, text, [text.chat_ids(messages)], priority)

    return await _respond(request, caller, asked, tokenize, ChatShape)


@router.post("/v1/completions", **described(CompletionRequest, Completion, streams=True))
async def completions(request: Request, caller: Caller) -> Response:
    """Continue a text or several, whole, or piece by piece with `stream`."""
    if (elsewhere := relay.asked(request, caller, services(request))) is not None:
        return await _relayed(request, elsewhere)
    asked = await read(CompletionRequest, request)
    priority = asked_priority(request, PRIORITIES)

    def tokenize(text: GenerationText) -> list[Prompt]:
        rows = [text.text_ids(each) if isinstance(each, str) else each for each in asked.prompts]
        return _prompts(asked, text, rows, priority)

    return await _respond(request, caller, asked, tokenize, CompletionShape)


async def _relayed(request: Request, asked: relay.Relayed) -> Response:
    served, route = choose_version(request, asked.services, "generation", asked.model, asked.user)
    return await asked.respond(served, route, {VERSION_HEADER: served.version})


def _prompts(asked: _Asked, text: GenerationText, rows: Sequence[list[int]], priority: int) -> list[Prompt]:
    """One a choice; raises `RequestError` for what is beyond the context."""
    found = []
    for ids in rows:
        left = text.context_tokens - len(ids)
        most = asked.most_tokens or left
        if left < 1 or most > left:
            raise RequestError(
                f"The context is {text.context_tokens:,} tokens; the prompt has {len(ids):,}"
                + (f", and {most:,} are to be generated." if left > 0 else "."),
                fix="shorten the prompt, or lower max_tokens",
            )
        for choice in range(asked.n):
            sampling = asked.sampling(max_tokens=most, logprobs=asked.asked_logprobs, choice=choice, priority=priority)
            found.append(Prompt(ids=ids, sampling=sampling))
    return found


async def _respond(
    request: Request, caller: Caller, asked: _Asked, tokenize: generation.Tokenize, shape: type[Shape]
) -> Response:
    own = services(request)
    model = asked.model or own.catalog.only("generation")
    served, route = choose_version(request, own, "generation", model, asked.user)
    made = await generation.begin(
        request, caller, served, route, tokenize, stops=asked.stops, choices_per_prompt=asked.n
    )
    head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
    form = shape(head, made.text, wants_logprobs=asked.asked_logprobs is not None)
    headers = _headers(served, made)
    if asked.stream:
        return await EventStream.opened(_events(made, form, asked.stream_options or StreamOptions()), headers)
    return await _whole(made, form, headers)


async def _events(made: Generation, form: Shape, options: StreamOptions) -> AsyncIterator[bytes]:
    tally = Tally(made.prompt_tokens)
    usage: dict[str, Any] = {"usage": None} if options.include_usage else {}
    begun: set[int] = set()
    async for part in made.parts():
        events = b""  # those of one part go out together
        tally.generated += part.tokens
        if options.continuous_usage_stats:
            usage = {"usage": tally.usage()}
        if part.choice not in begun:
            begun.add(part.choice)
            if (opening := form.opening(part.choice)) is not None:
                events += event(opening | usage)
        if part.text or part.logprobs:
            events += event(form.chunk(part) | usage)
        if part.finish:
            events += event(form.closing(part) | usage)
        if events:
            yield events
    if options.include_usage:
        yield event(form.usage_chunk(tally))


async def _whole(made: Generation, form: Shape, headers: dict[str, str]) -> Response:
    tally = Tally(made.prompt_tokens)
    texts = [""] * len(made.prompts)
    logprobs: list[list[Any]] = [[] for _ in made.prompts]
    finishes = [""] * len(made.prompts)
    async for part in made.parts():
        tally.generated += part.tokens
        texts[part.choice] += part.text
        logprobs[part.choice] += part.logprobs
        finishes[part.choice] = part.finish or ""
    content = to_json(form.whole(texts, logprobs, finishes, tally))
    return Response(content, media_type="application/json", headers=headers)


def _headers(served: ServedVersion, made: Generation) -> dict[str, str]:
    return {VERSION_HEADER: served.version, "x-tokenization-time": f"{made.tokenize_s * 1e3:.3f}"}
