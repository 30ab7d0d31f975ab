"""From chat messages to the text a language model reads, by the model's own Jinja template, as transformers renders it.

Needs neither torch nor transformers. Templates come from the hub, so they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from accel_lib.errors import ModelError, TextError, require


class ChatTemplate:
    """A compiled chat template.

    Parameters
    ----------
    text
        The Jinja source, from ``chat_template.jinja`` or ``tokenizer_config.json``.
    special_tokens
        What the template may name, such as ``{"bos_token": "<s>"}``.

    Raises
    ------
    ModelError
        The template is not valid Jinja.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        self.text = text
        self.special_tokens = dict(special_tokens)
        self._template = _compile(text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat.

        Parameters
        ----------
        messages
            Each with ``role`` and ``content``.
        add_generation_prompt
            End with what opens the assistant's answer.
        tools
            JSON schemas of functions, for templates that know them.
        variables
            Further names that the template reads, such as ``enable_thinking``.

        Raises
        ------
        TextError
            The template refuses the messages, such as two answers in a row.
        """
        jinja2 = require("jinja2", extra="generate")
        try:
            text: str = self._template.render(
                messages=json.loads(json.dumps(list(messages))),  # plain data only: nothing with methods of its own
                tools=None if tools is None else json.loads(json.dumps(list(tools))),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **variables},
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TextError(
                "The model's chat template refuses these messages.",
                seen=str(error)[:300] or type(error).__name__,
                fix="send messages with role and content: user, assistant, user, …",
            ) from error
        return text


def _compile(text: str) -> Any:
    jinja2 = require("jinja2", extra="generate")
    sandbox = require("jinja2.sandbox", extra="generate")
    extensions = ["jinja2.ext.loopcontrols", _generation_tag()]
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ModelError(
            "The chat template is not valid Jinja.",
            seen=str(error),
            fix="set another one: tokenizer.chat_template = …; tokenizer.save_pretrained(folder)",
        ) from error


def _generation_tag() -> Any:
    """``{% generation %}``, with which some templates mark the assistant's words for training: its body, as it is."""
    jinja2 = require("jinja2.ext", extra="generate")

    class Generation(jinja2.Extension):  # type: ignore[misc, name-defined]
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As `json.dumps`: Jinja's own filter escapes HTML, which a model is not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise require("jinja2", extra="generate").TemplateError(message)
