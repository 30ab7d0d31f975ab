"""A causal language model: its weights, tokenizer, chat template and the token ids that end a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tokenizers

from accel_lib._logging import silenced
from accel_lib.errors import ModelError, TextError, require
from accel_lib.formatting import Summarized
from accel_lib.models.chat import ChatTemplate
from accel_lib.models.checks import check_filled, check_own_code, loading, unused_tokens
from accel_lib.models.files import optional_json, read_json, refused
from accel_lib.models.hub import ModelSource
from accel_lib.texts import clean

if TYPE_CHECKING:
    import torch

_TEMPLATE_FILE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GenerationModel(Summarized):
    """A decoder that continues token ids, with what turns text and chats into them and back.

    Parameters
    ----------
    name, source
        What it is called, and where its weights came from (package and version, hub id and commit, folder and hash).
    folder
        Its files, as transformers reads them: `config.json`, safetensors, tokenizer.
    network
        transformers' own model in float32, in evaluation mode, on the CPU: the reference of every conversion.
    tokenizer
        The Rust tokenizer; `encode` and `decode` wrap it.
    chat_template
        Renders messages; None where the model has none: it continues text, and does not chat.
    context_tokens
        Longest sequence, prompt and answer together.
    vocabulary
        Rows of the table of token ids; every id is smaller.
    stop_ids
        Token ids that end a text, as the model's own settings say.
    notes
        Sentences a user should know before trusting the output.

    Examples
    --------
    >>> model = load_model("SmolLM2-135M-Instruct")  # doctest: +SKIP
    >>> ids = model.encode_chat([{"role": "user", "content": "What is the capital?"}])  # doctest: +SKIP
    """

    name: str
    source: str
    folder: Path
    network: torch.nn.Module
    tokenizer: tokenizers.Tokenizer
    chat_template: ChatTemplate | None
    context_tokens: int
    vocabulary: int
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    task: Literal["generation"] = "generation"

    def encode(self, text: str) -> list[int]:
        """Token ids of a text to continue, with the tokens that the tokenizer puts around every text."""
        (checked,) = clean([text])
        return self._ids(checked, special=True)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a chat, ending where the assistant's answer begins; `variables` are the template's own.

        Raises
        ------
        ModelError
            The model has no chat template.
        TextError
            The template refuses the messages.
        """
        if self.chat_template is None:
            raise ModelError(
                "The model has no chat template, so it continues text and does not chat.",
                seen=self.name,
                fix="pass a text to continue, or take the model's instruction-tuned sibling",
            )
        return self._ids(self.chat_template.render(messages, **variables), special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        if not ids:
            raise TextError("The text has no token this tokenizer knows.", seen=repr(text[:40]), fix="leave it out")
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, without special tokens unless `special`."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    @property
    def size_bytes(self) -> int:
        """Size of the weights, shared ones counted once."""
        return sum(weight.nbytes for weight in self.network.parameters())

    def summary(self) -> dict[str, str]:
        """What a reader wants to know first."""
        rows = {
            "model": self.name,
            "source": self.source,
            "context": f"{self.context_tokens:,} tokens",
            "vocabulary": f"{self.vocabulary:,} tokens",
            "chat": "yes" if self.chat_template else "no template: it continues text",
            "weights": f"{self.size_bytes / 1e6:.1f} MB",
        }
        return rows | ({"note": "; ".join(self.notes)} if self.notes else {})


def build_generation_model(place: ModelSource, *, max_length: int | None = None) -> GenerationModel:
    """Load a folder's causal language model.

    Raises
    ------
    ModelError
        It is no decoder alone, needs code of its own, or its files cannot be read.
    """
    folder = place.folder
    raw = read_json(folder / "config.json", dict)
    notes = check_own_code(folder, raw)
    if raw.get("is_encoder_decoder"):
        raise refused(
            folder,
            f"an encoder with a decoder ({raw.get('model_type')})",
            fix="pick a model that is a decoder alone: a Llama, Qwen or Gemma; accel models lists one",
        )
    with loading(folder, "model"):
        network = _network(folder, raw)
        theirs = _their_tokenizer(folder)
    vocabulary = int(network.get_input_embeddings().num_embeddings)
    unused_tokens(folder, theirs, vocabulary)
    context = int(getattr(network.config.get_text_config(), "max_position_embeddings", 0) or 0)
    return GenerationModel(
        name=place.name,
        source=place.source,
        folder=folder,
        network=network,
        tokenizer=_backend(theirs),
        chat_template=read_template(folder, {name: str(getattr(theirs, name) or "") for name in _SPECIAL}),
        context_tokens=min(context, max_length or context),
        vocabulary=vocabulary,
        stop_ids=_stop_ids(folder, theirs),
        notes=place.notes + notes,
    )


def _network(folder: Path, raw: dict[str, Any]) -> Any:
    transformers = require("transformers", extra="models")
    torch = require("torch", extra="models")
    with silenced():
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise refused(
                folder, f"no causal language model ({config.model_type})", fix="pick a Llama, a Qwen or a Gemma"
            )
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which `check_filled` names
        )
    check_filled(folder, raw, network, report)
    return network.eval().requires_grad_(False)


def _their_tokenizer(folder: Path) -> Any:
    transformers = require("transformers", extra="models")
    with silenced():
        theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not theirs.is_fast:
        raise refused(folder, f"a tokenizer without a fast version ({type(theirs).__name__})")
    return theirs


def _backend(theirs: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend


def read_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The folder's chat template; None where there is none."""
    file = folder / _TEMPLATE_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    text = text or optional_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((each["template"] for each in text if each["name"] == "default"), None)
    return ChatTemplate(text, special_tokens) if text else None


def _stop_ids(folder: Path, theirs: Any) -> tuple[int, ...]:
    """What `generation_config.json` lists, else `config.json`, and the tokenizer's own end of text."""
    listed = [json_file.get("eos_token_id") for json_file in map(optional_json, _settings(folder))]
    first: Any = next((ids for ids in listed if ids is not None), [])
    ids = {*(first if isinstance(first, list) else [first]), theirs.eos_token_id} - {None}
    return tuple(sorted(map(int, ids)))


def _settings(folder: Path) -> tuple[Path, ...]:
    return folder / "generation_config.json", folder / "config.json"
