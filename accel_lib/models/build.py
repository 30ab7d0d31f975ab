"""From a folder and its recipe to a `Model`: weights, tokenizer, length limit and reference."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import nn

from accel_lib.errors import ModelError, require
from accel_lib.models.head import read_activation
from accel_lib.models.model import Model, Task
from accel_lib.models.network import Classifier, Encoder, Normalize, Truncate
from accel_lib.models.places import Place
from accel_lib.models.quiet import quiet
from accel_lib.models.reference import ClassifierReference, SentenceReference
from accel_lib.models.sentence import BARE_NOTE, Dense, Recipe, read_json, read_recipe, refused
from accel_lib.models.tokenizer import Tokenizer
from accel_lib.ragged import IDS_AND_MASK, SEGMENTS

_UNLIMITED_TOKENS = 512
_Parts = dict[str, Any]


def build_model(place: Place, *, task: Task | None, max_length: int | None) -> Model:
    """Load the weights of a folder and put everything it asks for behind them.

    Raises
    ------
    ModelError
        Something is missing, broken, or cannot be honoured exactly.
    """
    recipe = read_recipe(place.folder, task)
    network = _network(recipe)
    theirs = _their_tokenizer(recipe)
    limit, notes = _length_limit(recipe, network, theirs, max_length)
    parts = _classifier if recipe.task == "classification" else _encoder
    made = parts(recipe, network, _wants_segments(network, theirs), limit)
    module: nn.Module = made.pop("module")
    inputs, pairs = _inputs(recipe, module.float().eval().requires_grad_(False), theirs)
    return Model(
        name=place.name,
        source=place.source,
        task=recipe.task,
        module=module,
        tokenizer=_tokenizer(recipe, theirs, limit, segments=SEGMENTS in inputs),
        max_length=limit,
        inputs=inputs,
        pairs=pairs,
        prompts=recipe.prompts,
        default_prompt=recipe.default_prompt,
        notes=place.notes + ((BARE_NOTE,) if recipe.bare else ()) + notes,
        **made,
    )


def _classifier(recipe: Recipe, network: Any, segments: bool, limit: int) -> _Parts:
    names = network.config.id2label
    labels = tuple(str(names[index]) for index in sorted(names))
    return {
        "module": Classifier(network, segments=segments),
        "output_name": "logits",
        "dimension": len(labels),
        "labels": labels,
        "activation": read_activation(recipe.folder, network.config),
        "reference": ClassifierReference(recipe.folder, max_length=limit),
    }


def _encoder(recipe: Recipe, network: Any, segments: bool, limit: int) -> _Parts:
    steps, dimension = _steps(recipe, network.config.hidden_size * len(recipe.pooling))
    return {
        "module": Encoder(network, pooling=recipe.pooling, steps=steps, segments=segments),
        "output_name": "sentence_embedding",
        "dimension": dimension,
        "reference": SentenceReference(recipe.folder, max_length=limit, normalize=recipe.bare),
    }


def _network(recipe: Recipe) -> Any:
    transformers = require("transformers", extra="models")
    folder = recipe.transformer
    raw = read_json(folder / "config.json", dict)
    if "auto_map" in raw and raw.get("model_type") not in transformers.CONFIG_MAPPING:
        raise refused(
            folder, f"code of its own ({raw.get('model_type')})", fix="remote code is never run: pick another model"
        )
    with quiet(), _loading(folder, "weights"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if recipe.task == "classification":
            loader = transformers.AutoModelForSequenceClassification
        elif type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:  # T5's kind: its encoder without its decoder
            loader = transformers.AutoModelForTextEncoding
        else:
            loader = transformers.AutoModel
        network, report = loader.from_pretrained(
            folder, config=config, trust_remote_code=False, output_loading_info=True
        )
    if recipe.task == "embedding" and "add_pooling_layer" in inspect.signature(type(network).__init__).parameters:
        network.pooler = None
    _check_filled(folder, network, report["missing_keys"])
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    return network


def _check_filled(folder: Path, network: Any, missing: Iterable[str]) -> None:
    wanted = network.state_dict().keys() & set(missing)
    if wanted:
        raise ModelError(
            f"The weights in {folder.name} do not fill the network that its config.json describes.",
            seen=f"{len(wanted)} missing, such as {min(wanted)}",
            fix="fetch the model again: hf download <id> --local-dir <folder>",
        )


def _their_tokenizer(recipe: Recipe) -> Any:
    transformers = require("transformers", extra="models")
    with quiet(), _loading(recipe.transformer, "tokenizer"):
        theirs = transformers.AutoTokenizer.from_pretrained(recipe.transformer, trust_remote_code=False)
    if not theirs.is_fast:
        raise refused(recipe.transformer, f"a tokenizer without a fast version ({type(theirs).__name__})")
    return theirs


def _tokenizer(recipe: Recipe, theirs: Any, max_length: int, *, segments: bool) -> Tokenizer:
    backend = theirs.backend_tokenizer
    if recipe.lower_case:
        lower = tokenizers.normalizers.Lowercase()
        before = backend.normalizer
        backend.normalizer = tokenizers.normalizers.Sequence([lower, before]) if before else lower
    backend.enable_truncation(max_length, direction=theirs.truncation_side)
    pad_id = theirs.pad_token_id
    pad_id = 0 if pad_id is None else int(pad_id)
    return Tokenizer(backend, max_length=max_length, pad_id=pad_id, segments=segments)


def _length_limit(recipe: Recipe, network: Any, theirs: Any, asked: int | None) -> tuple[int, tuple[str, ...]]:
    positions = _positions(network)
    own = recipe.max_length or theirs.model_max_length
    limit = min(own, positions or (_UNLIMITED_TOKENS if own > 1e6 else own))
    notes: tuple[str, ...] = ()
    if recipe.max_length and limit < recipe.max_length:
        notes = (f"the folder asks for {recipe.max_length} tokens, its network has {limit} positions",)
    if asked is None:
        return int(limit), notes
    least, most = theirs.num_special_tokens_to_add() + 1, int(positions or max(limit, asked))
    if not least <= asked <= most:
        raise ModelError(
            "The model cannot take texts of that length.",
            seen=f"max_length={asked}",
            fix=f"pass {least} to {most} tokens",
        )
    return asked, ()


def _positions(network: Any) -> int | None:
    for name, part in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1  # RoBERTa's kind count from the padding id on
    most = getattr(network.config, "max_position_embeddings", None)
    return int(most) if most and most > 0 else None


def _wants_segments(network: Any, theirs: Any) -> bool:
    takes = "token_type_ids" in inspect.signature(network.forward).parameters
    return takes and SEGMENTS in theirs.model_input_names


def _inputs(recipe: Recipe, module: Any, theirs: Any) -> tuple[tuple[str, ...], bool]:
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


def _steps(recipe: Recipe, width: int) -> tuple[list[nn.Module], int]:
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
    with _loading(step.folder, "weights"):
        if (step.folder / "model.safetensors").is_file():
            weights = require("safetensors.torch", extra="models").load_file(step.folder / "model.safetensors")
        else:
            weights = torch.load(step.folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    return linear


@contextlib.contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # three libraries read here, each with errors of its own
        reason = str(error).strip().replace(str(folder), folder.name).splitlines()
        raise ModelError(
            f"The {what} in {folder.name} cannot be loaded.",
            seen=f"{type(error).__name__}: {reason[0][:200] if reason else ''}",
            fix="fetch the model again: hf download <id> --local-dir <folder>",
        ) from error
