"""From a folder and its recipe to a `Model`: weights, tokenizer, length limit and reference."""

from __future__ import annotations

import inspect
import json
from typing import Any

import tokenizers
import torch
from torch import nn

from accel_lib._logging import silenced
from accel_lib.errors import require
from accel_lib.models.checks import (
    check_filled,
    check_layout,
    check_mask,
    check_own_code,
    check_tokens,
    count_rows,
    loading,
    unused_tokens,
)
from accel_lib.models.files import read_json, refused
from accel_lib.models.head import read_activation, read_labels
from accel_lib.models.hub import ModelSource
from accel_lib.models.limits import Limit, length_limit, settle_rope
from accel_lib.models.model import Model, Task
from accel_lib.models.modules import Classifier, Encoder, Normalize, Truncate
from accel_lib.models.reference import ClassifierReference, SentenceReference
from accel_lib.models.spec import ModelSpec, read_spec
from accel_lib.models.steps import Dense
from accel_lib.models.tokenizer import Tokenizer, prompt_text
from accel_lib.ragged import IDS_AND_MASK, SEGMENTS

_UNUSED = "the token {!r} has no row in the network's table: in a text it is read as plain characters"
_Parts = dict[str, Any]


def build_model(place: ModelSource, *, task: Task | None, max_length: int | None) -> Model:
    """Load the weights of a folder and put everything it asks for behind them.

    Raises
    ------
    ModelError
        Something is missing, broken, or cannot be honoured exactly.
    """
    recipe = read_spec(place.folder, task)
    with loading(place.folder, "model"):
        return _assembled(place, recipe, max_length)


def _assembled(place: ModelSource, recipe: ModelSpec, max_length: int | None) -> Model:
    network, notes = _network(recipe)
    theirs = _their_tokenizer(recipe)
    unused = unused_tokens(recipe.transformer, theirs, count_rows(recipe.transformer, network))
    limit = length_limit(recipe, network, theirs, max_length)
    settle_rope(recipe.transformer, network, limit.tokens)
    parts = _classifier if recipe.task == "classification" else _encoder
    made = parts(recipe, network, _wants_segments(network, theirs), limit)
    module: nn.Module = made.pop("module").float().eval().requires_grad_(False)
    check_mask(recipe.transformer, module, theirs, limit.tokens)
    inputs, pairs = _inputs(recipe, module, theirs)
    return Model(
        name=place.name,
        source=place.source,
        task=recipe.task,
        module=module,
        tokenizer=_tokenizer(recipe, theirs, limit.tokens, unused, segments=SEGMENTS in inputs),
        max_length=limit.tokens,
        inputs=inputs,
        pairs=pairs,
        prompts=recipe.prompts,
        default_prompt=recipe.default_prompt,
        notes=place.notes + recipe.notes + notes + limit.notes + tuple(map(_UNUSED.format, unused)),
        **made,
    )


def _classifier(recipe: ModelSpec, network: Any, segments: bool, limit: Limit) -> _Parts:
    labels = read_labels(recipe.folder, network.config.id2label)
    prompt = prompt_text(recipe.prompts, recipe.default_prompt)
    cut = limit.reference or recipe.max_length
    return {
        "module": Classifier(network, segments=segments),
        "output_name": "logits",
        "dimension": len(labels),
        "labels": labels,
        "activation": read_activation(recipe.folder, network.config),
        "reference": ClassifierReference(recipe.folder, max_length=cut, prompt=prompt),
    }


def _encoder(recipe: ModelSpec, network: Any, segments: bool, limit: Limit) -> _Parts:
    steps, dimension = _steps(recipe, network.config.hidden_size * len(recipe.pooling))
    return {
        "module": Encoder(network, pooling=recipe.pooling, steps=steps, segments=segments),
        "output_name": "sentence_embedding",
        "dimension": dimension,
        "reference": SentenceReference(recipe.folder, max_length=limit.reference, normalize=recipe.bare),
    }


def _network(recipe: ModelSpec) -> tuple[Any, tuple[str, ...]]:
    """The transformer of a folder, and notes on it."""
    transformers = require("transformers", extra="models")
    folder = recipe.transformer
    raw = read_json(folder / "config.json", dict)
    notes = check_own_code(folder, raw)
    with silenced(), loading(folder, "weights"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if recipe.task == "classification":
            loader = transformers.AutoModelForSequenceClassification
        elif type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:  # T5's kind: its encoder without its decoder
            loader = transformers.AutoModelForTextEncoding
        else:
            loader = transformers.AutoModel
        check_layout(folder, config, loader)
        network, report = loader.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which `check_filled` names
        )
    if recipe.task == "embedding" and "add_pooling_layer" in inspect.signature(type(network).__init__).parameters:
        network.pooler = None
    check_filled(folder, raw, network, report)
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    return network, notes


def _their_tokenizer(recipe: ModelSpec) -> Any:
    transformers = require("transformers", extra="models")
    folder = recipe.transformer
    with silenced(), loading(folder, "tokenizer"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_tokens(recipe, theirs)
    return theirs


def _tokenizer(recipe: ModelSpec, theirs: Any, max_length: int, unused: list[str], *, segments: bool) -> Tokenizer:
    backend = theirs.backend_tokenizer
    if unused:
        layout = json.loads(backend.to_str())
        layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in unused]
        backend = tokenizers.Tokenizer.from_str(json.dumps(layout))
    if recipe.lower_case:
        lower = tokenizers.normalizers.Lowercase()
        before = backend.normalizer
        backend.normalizer = tokenizers.normalizers.Sequence([lower, before]) if before else lower
    backend.enable_truncation(max_length, direction=theirs.truncation_side)
    return Tokenizer(backend, max_length=max_length, pad_id=int(theirs.pad_token_id), segments=segments)


def _wants_segments(network: Any, theirs: Any) -> bool:
    takes = "token_type_ids" in inspect.signature(network.forward).parameters
    return takes and SEGMENTS in theirs.model_input_names


def _inputs(recipe: ModelSpec, module: Any, theirs: Any) -> tuple[tuple[str, ...], bool]:
    """Names of what the network takes, and whether it takes pairs.

    Segment ids belong to the inputs where a classifier's tokenizer gives some and they change the network's numbers. An
    encoder gets none: those of single texts are zeros, which it makes itself.
    """
    single, pair = (theirs.backend_tokenizer.encode(*texts) for texts in (("a",), ("a", "b")))
    if recipe.task == "embedding":
        if module.segments and any(single.type_ids):
            raise refused(recipe.transformer, "a tokenizer with segment ids other than 0")
        return IDS_AND_MASK, False
    if not module.segments or not any(pair.type_ids):
        return IDS_AND_MASK, True
    ids, mask, segments = (torch.tensor([each]) for each in (pair.ids, pair.attention_mask, pair.type_ids))
    try:
        with torch.inference_mode():
            moved = bool((module(ids, mask) != module(ids, mask, segments)).any())
    except IndexError:  # more segment ids than the network has: transformers runs single texts alone, too
        return IDS_AND_MASK, False
    return ((*IDS_AND_MASK, SEGMENTS) if moved else IDS_AND_MASK), True


def _steps(recipe: ModelSpec, width: int) -> tuple[list[nn.Module], int]:
    steps: list[nn.Module] = []
    for step in recipe.steps:
        if isinstance(step, Dense):
            if step.in_features != width:
                raise refused(step.folder, f"a Dense module for {step.in_features} numbers where {width} arrive")
            steps += [_dense(step), getattr(nn, step.activation)()]
            width = step.out_features
        else:
            steps.append(Normalize())
    if recipe.truncate_dim and recipe.truncate_dim < width:
        steps.append(Truncate(recipe.truncate_dim))
        width = recipe.truncate_dim
    return steps, width


def _dense(step: Dense) -> nn.Linear:
    linear = nn.Linear(step.in_features, step.out_features, bias=step.bias)
    with loading(step.folder, "weights"):
        if (step.folder / "model.safetensors").is_file():
            weights = require("safetensors.torch", extra="models").load_file(step.folder / "model.safetensors")
        else:
            weights = torch.load(step.folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    return linear
