"""Bodies of the endpoints that generate, by OpenAI's and vLLM's fields; what is not supported is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag, model_validator

from accel_lib.generate import Sampling
from accel_lib.service.errors import Problem
from accel_lib.service.fields import Body, ModelName, one_or_many, told_apart
from accel_lib.service.schemas import Usage

_MOST_STOPS = 16
_MOST_CHOICES = 16
_MOST_SEED = 2**63
_LONGEST_SCHEMA = 16_384  # characters; a longer one takes the engine's thread too long
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
# Fields of OpenAI's and vLLM's requests that nothing here honours -> values that ask for nothing.
_NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_json": (),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[
    Annotated[_Stop, Tag("one")] | Annotated[list[_Stop], Field(max_length=_MOST_STOPS, fail_fast=True), Tag("many")],
    told_apart(one_or_many, "a text or a list of texts"),
]


class StreamOptions(Body):
    """What a stream says beside the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(Body):
    """What the text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = Field(default=None, description="As OpenAI has it: name and schema.")

    @property
    def schema_text(self) -> str:
        """The JSON schema that the text keeps to, as JSON; empty for any text."""
        if self.type == "text":
            return ""
        schema = {"type": "object"} if self.json_schema is None else self.json_schema["schema"]
        return json.dumps(schema)

    @model_validator(mode="after")
    def _has_a_schema(self) -> ResponseFormat:
        wanted = self.type == "json_schema"
        if wanted != (self.json_schema is not None):
            message = "json_schema goes with the type json_schema, and that with it."
        elif wanted and not isinstance((self.json_schema or {}).get("schema"), dict):
            message = 'json_schema has the field schema, an object such as {"type": "object"}.'
        elif len(self.schema_text) > _LONGEST_SCHEMA:
            message = f"The schema has more than {_LONGEST_SCHEMA:,} characters."
        else:
            return self
        raise Problem(400, message, param="response_format", code="invalid_value")


class _GenerationBody(Body):
    """What both endpoints take."""

    model: ModelName | None = Field(default=None, description="May be left out where only one model generates.")
    max_tokens: int | None = Field(default=None, ge=1, description="Tokens to generate at most.")
    min_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, description="0 and -1 are all tokens.")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-_MOST_SEED, lt=_MOST_SEED, description="The same seed, the same text.")
    stop: Stops = Field(default_factory=list, description="Strings before which the text ends.")
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, max_length=64)
    ignore_eos: bool = False
    n: int = Field(default=1, ge=1, le=_MOST_CHOICES, description="Texts for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = Field(default=None, description="JSON, if the engine can.")
    user: str | None = Field(default=None, description="Whom the request is for; experiments stick to it.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_honoured(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in _NOT_HONOURED.items():
            if name in data and data[name] is not None and data[name] not in neutral:
                message = f"{name} is not supported here. Leave it out."
                raise Problem(400, message, param=name, code="unsupported")
        return {name: value for name, value in data.items() if name not in _NOT_HONOURED}

    @model_validator(mode="after")
    def _fits_together(self) -> _GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise Problem(
                400, "stream_options goes with stream=true only.", param="stream_options", code="invalid_value"
            )
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self, *, max_tokens: int, logprobs: int | None, choice: int = 0, priority: int = 0) -> Sampling:
        """How the tokens of one choice are chosen; each has a seed of its own."""
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + choice) % _MOST_SEED,
            stop_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            json_schema=self.response_format.schema_text if self.response_format else "",
            priority=priority or Sampling.priority,
        )


class TextPart(Body):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("one")] | Annotated[list[TextPart], Field(min_length=1), Tag("many")],
        told_apart(one_or_many, "a text or a list of parts"),
    ]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template reads it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_GenerationBody):
    """OpenAI's and vLLM's fields together."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "generation",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "max_completion_tokens": 16,
                    "temperature": 0,
                }
            ]
        }
    )

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The rest of the context without one.")
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _logprobs_fit_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise Problem(400, "top_logprobs goes with logprobs=true only.", param="top_logprobs", code="invalid_value")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Tokens to generate at most; None is the rest of the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def asked_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_GenerationBody):
    """OpenAI's and vLLM's fields together."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "generation", "prompt": "The capital of France is", "max_tokens": 8}]}
    )

    prompt: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1, max_length=64_000)] = Field(
        description="A text to continue, its token ids, or a list of either."
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt: a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(each) for each in self.prompt]]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def most_tokens(self) -> int:
        """Tokens to generate at most."""
        return self.max_tokens or _COMPLETION_TOKENS

    @property
    def asked_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return self.logprobs


class GenerationUsage(Usage):
    """Tokens of the prompts and of what was generated."""

    completion_tokens: int


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: dict[str, Any] = Field(description="role and content.")
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """With `stream`, server-sent events with chunks of it instead."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: GenerationUsage


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """With `stream`, server-sent events with chunks of it instead."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: GenerationUsage
