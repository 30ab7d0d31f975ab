"""Bodies of text-embeddings-inference's endpoints; as there, a field that is not listed here is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag
from pydantic_core import PydanticCustomError

from accel_lib.service.catalog import Truncate
from accel_lib.service.fields import Body, NotTooMany, Text, Texts, told_apart

MOST_TOKENS = 65_536  # of a request whose answer is tokens or made of them, and characters of one that asks for tokens
_IGNORED: Literal["ignore"] = "ignore"


class _Body(Body):
    model_config = ConfigDict(extra=_IGNORED)


class Cut(_Body):
    """What becomes of a text that is too long."""

    truncate: bool = Field(default=False, description="Cut it; else it is refused.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        default="Right", description="The end at which it is cut."
    )

    @property
    def side(self) -> Truncate:
        """The same in NIM's words."""
        if not self.truncate:
            return "NONE"
        return "START" if self.truncation_direction.lower() == "left" else "END"


class _Prompted(Cut):
    prompt_name: str | None = Field(
        default=None, description="One of the prompts that came with the model; else its default prompt, if it has one."
    )


class EmbedRequest(_Prompted):
    """text-embeddings-inference's ``/embed``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a cat on a mat"], "truncate": True}]})

    inputs: Texts
    normalize: bool = Field(default=True, description="Give vectors of length 1; false gives the model's own.")
    dimensions: int | None = Field(default=None, ge=1, description="Keep that many, then normalize if asked.")


class Sentences(_Body):
    """A text, and those that it is compared with."""

    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1, fail_fast=True), NotTooMany]


class SimilarityRequest(_Body):
    """text-embeddings-inference's ``/similarity``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": {"source_sentence": "a cat", "sentences": ["a dog", "a car"]}}]}
    )

    inputs: Sentences
    parameters: _Prompted = _Prompted()


def _shape(value: Any) -> str | None:
    if isinstance(value, list):
        return "pair" if value and isinstance(value[0], str) else "batch"
    return "text" if isinstance(value, str) else None


def _two_at_most(texts: Any) -> Any:
    if isinstance(texts, list) and len(texts) > 2:
        raise PydanticCustomError(
            "too_many", 'has more than two texts; a batch is a list of lists: [["a"], ["b", "c"]]'
        )
    return texts


_Pair = Annotated[
    list[Text], Field(min_length=1, fail_fast=True, json_schema_extra={"maxItems": 2}), BeforeValidator(_two_at_most)
]


class PredictRequest(Cut):
    """text-embeddings-inference's ``/predict``: a text, a pair ``["a", "b"]``, or a batch ``[["a"], ["b", "c"]]``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [["what a lovely day"], ["never again"]]}]})

    inputs: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[_Pair, Tag("pair")]
        | Annotated[list[_Pair], Field(min_length=1, fail_fast=True), NotTooMany, Tag("batch")],
        told_apart(_shape, "a text, a pair of texts, or a list of lists of one or two texts"),
    ]
    raw_scores: bool = Field(default=False, description="Give logits.")


class Prediction(BaseModel):
    """One class of one text."""

    label: str
    score: float


class TokenizeRequest(_Body):
    """text-embeddings-inference's ``/tokenize``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a cat on a mat"]}]})

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(BaseModel):
    """One token: its id, and the bytes of UTF-8 that it stands for."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def _one_or_many_rows(value: Any) -> str | None:
    return ("many" if value and isinstance(value[0], list) else "one") if isinstance(value, list) else None


_Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=MOST_TOKENS, fail_fast=True)
]


class DecodeRequest(_Body):
    """text-embeddings-inference's ``/decode``: token ids of the model's own tokenizer, one text's or many."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [101, 1037, 4937, 102]}]})

    ids: Annotated[
        Annotated[_Ids, Tag("one")]
        | Annotated[list[_Ids], Field(min_length=1, fail_fast=True), NotTooMany, Tag("many")],
        told_apart(_one_or_many_rows, "a list of token ids, or a list of such lists"),
    ]
    skip_special_tokens: bool = True


class Pooling(BaseModel):
    """How a model that embeds makes one vector of a text's tokens; an artifact does not say it."""

    pooling: str | None = None


class Classes(BaseModel):
    """The classes of a model."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class EmbeddingType(BaseModel):
    """Of a model that embeds."""

    embedding: Pooling


class ClassifierType(BaseModel):
    """Of a model that classifies."""

    classifier: Classes


class RerankerType(BaseModel):
    """Of a model that ranks texts for a query."""

    reranker: Classes


ModelType = EmbeddingType | ClassifierType | RerankerType


class Info(BaseModel):
    """text-embeddings-inference's ``/info``: the model behind its endpoints, and the limits of a request."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None = None
    model_dtype: str = Field(description="float32, float16, or the precision that it was quantized to.")
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int = Field(description="Tokens of a text, special tokens included.")
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = Field(
        default=False, description="A text that is too long is refused unless `truncate` is set."
    )
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None
