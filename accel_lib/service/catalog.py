"""The models behind the gateway: their tokenizers and manifests, and which versions answer now."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import types
from collections.abc import Mapping, Sequence
from typing import Literal

from accel_lib.artifact import MANIFEST_FILE, MODEL_FILES, TOKENIZER_FILE, Manifest
from accel_lib.errors import AccelError, RequestError, ServerError
from accel_lib.models.encoding import Row
from accel_lib.models.generation_text import GenerationText
from accel_lib.models.tokenizer import Tokenizer, prompt_text
from accel_lib.ragged import SEGMENTS, Ragged
from accel_lib.service.errors import Problem
from accel_lib.service.supervisor import Supervisor
from accel_lib.triton.client import ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import ARTIFACT_FOLDER, model_names
from accel_lib.triton.statistics import Statistics

Truncate = Literal["NONE", "START", "END"]
InputType = Literal["query", "passage"]
Use = Literal["embedding", "classification", "rerank", "generation"]

_STARTING_S = 2.0  # what a client is told to wait for Triton
_ASK_S = 2.0
_PASSAGE_PROMPTS = ("passage", "document")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Texts as a client sent them.

    Parameters
    ----------
    seconds
        Of pairs, the second halves, None beside a text that is no pair.
    truncate
        Where one that is too long is cut; NONE refuses it.
    tei, prompt_name
        Whether the client speaks as text-embeddings-inference's do: prompts go by their names, none is the default one.
    called
        What the client calls the texts, where it is not ``input`` or ``inputs``.
    """

    texts: Sequence[str]
    seconds: Sequence[str | None] | None = None
    truncate: Truncate = "NONE"
    input_type: InputType | None = None
    tei: bool = False
    prompt_name: str | None = None
    called: str = ""

    @property
    def characters(self) -> int:
        """Of all texts together."""
        return sum(map(len, self.texts)) + sum(len(half) for half in self.seconds or () if half is not None)

    @property
    def field(self) -> str:
        """What the client calls the texts."""
        return self.called or ("inputs" if self.tei else "input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """One version of a model that is ready; `tokenizers` by the side at which they cut, `text` if it generates."""

    name: str
    version: str
    manifest: Manifest
    config: ModelConfig
    tokenizers: dict[str, Tokenizer]
    created_s: int
    text: GenerationText | None = None

    @property
    def vector_space_id(self) -> str:
        """Vectors with the same id may be compared; other weights or another precision give another one."""
        digest = self.manifest.files[MODEL_FILES[self.manifest.format]]["sha256"]
        return f"{self.manifest.model}:{hashlib.sha256(str(digest).encode()).hexdigest()[:12]}"

    @property
    def use(self) -> Use:
        """What it is first of all for; a classifier of pairs with one logit ranks passages for a query."""
        ranks = self.manifest.task == "classification" and self.manifest.pairs and self.manifest.dimension == 1
        return "rerank" if ranks else self.manifest.task

    def serves(self, use: Use) -> bool:
        """Whether it may be asked for that; a reranker also classifies pairs."""
        return use in (self.use, self.manifest.task)

    def prompt(self, inputs: Inputs) -> str:
        """The text to put in front of each of them; raises a 400 where the client has to choose one."""
        prompts, name = self.manifest.prompts, inputs.prompt_name
        if name is not None and name not in prompts:
            message = f"{self.name} has no prompt of that name; it has {', '.join(prompts) or 'none'}."
            raise Problem(400, message, param="prompt_name", code="unknown_prompt")
        if inputs.input_type is not None:
            return self._prompt(inputs.input_type)
        if self._prompt("query") != self._prompt("passage") and not inputs.tei:
            message = f"{self.name} embeds queries and passages differently: say which these are."
            raise Problem(400, message, param="input_type", code="missing")
        return prompt_text(prompts, self.manifest.default_prompt, name)

    def tokenize(self, inputs: Inputs, *, max_tokens: int) -> Ragged:
        """Rows of ids, shortened or refused (with a 400) as asked; burns CPU, so not for an event loop."""
        if inputs.seconds is not None and not self.manifest.pairs:
            message = f"{self.name} takes single texts, not pairs; if it is a cross-encoder, convert it again."
            raise Problem(400, message, param=inputs.field, code="no_pairs")
        prompt, pairs = self.prompt(inputs), inputs.seconds is not None
        tokenizer = self.tokenizers["left" if inputs.truncate == "START" else "right"]
        counted = max_tokens if inputs.truncate == "NONE" or pairs else 0
        rows: list[Row] = []
        tokens = 0
        try:
            for row in tokenizer.rows(inputs.texts, prompt=prompt, seconds=inputs.seconds, count_to=counted):
                if inputs.truncate == "NONE" and row.length > len(row.ids):
                    raise self._too_long(inputs, len(rows), row.length, max_tokens)
                rows.append(row)
                tokens += len(row.ids)
                if tokens > max_tokens:
                    message = f"The input has more than {max_tokens:,} tokens; send it in several requests."
                    raise Problem(400, message, param=inputs.field, code="too_many_tokens")
        except AccelError as error:
            raise Problem(400, f"{error.cause} Fix: {error.fix}.", param=inputs.field, code="invalid_text") from error
        return tokenizer.together(rows, pairs=pairs)

    def _too_long(self, inputs: Inputs, index: int, length: int, counted_to: int) -> Problem:
        size = f"{length:,}" if length <= counted_to else f"more than {counted_to:,}"
        fix = '"truncate": true' if inputs.tei else '"truncate": "END"'
        limit = f"{self.name} takes {self.manifest.max_length} tokens"
        message = f"Input {index} has {size} tokens; {limit}. Shorten it, or send {fix}."
        return Problem(400, message, param=inputs.field, code="context_length_exceeded")

    def _prompt(self, input_type: InputType) -> str:
        names = ("query",) if input_type == "query" else _PASSAGE_PROMPTS
        return next((self.manifest.prompts[name] for name in names if name in self.manifest.prompts), "")


class Catalog:
    """The versions that answer, read again from Triton and the repository by `refresh`; `elsewhere` are upstreams'."""

    def __init__(
        self, supervisor: Supervisor, elsewhere: Mapping[tuple[str, str], ServedVersion] = types.MappingProxyType({})
    ) -> None:
        self._supervisor, self._elsewhere = supervisor, dict(elsewhere)
        self._versions: dict[tuple[str, str], ServedVersion] = {}
        self._manifests: dict[tuple[str, str], str] = {}
        self._statistics: dict[str, Statistics] = {}
        self._queue_share: dict[str, float] = {}
        self._asked = False

    def refresh(self) -> None:
        """Ask Triton what is ready, and read what is new; blocks for some milliseconds."""
        if not self._supervisor.running:
            return
        try:
            ready = [each for each in self._supervisor.versions() if each.state == "READY"]
        except RequestError:  # a busy Triton: what answered a second ago answers still
            return
        self._asked = True
        found = {}
        for each in ready:
            with contextlib.suppress(AccelError, OSError):  # no artifact: a model that takes no texts
                found[each.model, each.version] = self._read(each.model, each.version)
        self._versions = found | self._elsewhere
        for name in {name for name, _ in found}:
            self._observe(name)

    @property
    def versions(self) -> list[ServedVersion]:
        """Every version that answers, by name and number."""
        return sorted(self._versions.values(), key=lambda each: (each.name, int(each.version)))

    def find(self, name: str, version: str = "") -> ServedVersion:
        """A version that is ready, without a number the newest; raises a 404, or 503 while Triton is away."""
        known = [each for (own, _), each in self._elsewhere.items() if own == name]
        if not known:
            self._check_awake()
            known = [each for each in self.versions if each.name == name]
        fitting = [each for each in known if version in ("", each.version)]
        if fitting:
            return fitting[-1]
        if known:
            message = f"{name} has no version {version!r}; {', '.join(each.version for each in known)} answer."
            raise Problem(404, message, param="x-model-version", code="version_not_found")
        message = f"There is no model {name!r}; loaded: {self._loaded()}."
        raise Problem(404, message, param="model", code="model_not_found")

    def first(self, use: Use) -> str:
        """The name of the first model for a use, for clients that cannot name one; raises as `find`."""
        return self._names(use)[0]

    def only(self, use: Use) -> str:
        """The name of the one model for a use, for a request that names none; raises a 400 if there are several."""
        names = self._names(use)
        if len(names) > 1:
            raise Problem(400, f"model is missing; one of {', '.join(names)}.", param="model", code="missing")
        return names[0]

    def uses(self) -> set[Use]:
        """What the versions that answer are for."""
        return {each.use for each in self._versions.values()}

    def knows(self, name: str) -> bool:
        """Whether there is a model of exactly this name, loaded or not."""
        return name in {each.name for each in self.versions} or name in model_names(self._supervisor.server.repository)

    def _names(self, use: Use) -> list[str]:
        self._check_awake()
        able = [each for each in self.versions if each.serves(use)]
        names = sorted({each.name for each in able if each.use == use} or {each.name for each in able})
        if not names:
            message = f"No model for {use} is loaded; loaded: {self._loaded()}."
            raise Problem(404, message, param="model", code="model_not_found")
        return names

    def _check_awake(self) -> None:
        if not self._supervisor.running or not self._asked:
            raise Problem(503, "Triton is starting; try again soon.", code="not_ready", retry_after_s=_STARTING_S)

    def _loaded(self) -> str:
        return ", ".join(sorted({each.name for each in self.versions})) or "none"

    def queue_share(self, name: str) -> float:
        """Share of the time in Triton that requests last spent queueing, 0 to 1, from Triton's own counters."""
        return self._queue_share.get(name, 0.0)

    def _read(self, name: str, version: str) -> ServedVersion:
        server = self._supervisor.server
        folder = server.repository / name / version / ARTIFACT_FOLDER
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        known = self._versions.get((name, version))
        config = server.config(name)
        if known and self._manifests.get((name, version)) == text:
            return dataclasses.replace(known, config=config)
        manifest = Manifest.from_json(text)
        created_s = int((folder / MANIFEST_FILE).stat().st_mtime)
        if manifest.task == "generation":
            self._manifests[name, version] = text
            return ServedVersion(
                name=name,
                version=version,
                manifest=manifest,
                config=config,
                tokenizers={},
                created_s=created_s,
                text=GenerationText(folder, manifest),
            )
        segments = SEGMENTS in manifest.inputs
        tokenizer = Tokenizer.load(folder / TOKENIZER_FILE, manifest.max_length, segments=segments)
        self._manifests[name, version] = text
        return ServedVersion(
            name=name,
            version=version,
            manifest=manifest,
            config=config,
            tokenizers={"right": tokenizer.cutting("right"), "left": tokenizer.cutting("left")},
            created_s=created_s,
        )

    def _observe(self, name: str) -> None:
        before = self._statistics.get(name)
        with contextlib.suppress(RequestError):
            now = self._statistics[name] = ServedModel(self._supervisor.server, name).statistics()
            with contextlib.suppress(ServerError):  # loaded again meanwhile: nothing to subtract from
                change = now - before if before else now
                if change.requests:
                    self._queue_share[name] = change.queue_share
