"""What a folder's network and tokenizer must be like for answers exactly as the original's; else refused by name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accel_lib.errors import AccelError, ModelError
from accel_lib.models.files import refused
from accel_lib.models.spec import ModelSpec
from accel_lib.models.tokenizer import pad

_ONCE_REMOTE = ("eurobert", "nomic_bert")  # whose code, named by published folders, transformers has taken over
_NOT_A_NETWORK = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")
_MOST_MOVED = 1e-3  # of the largest number; rounding moves it by 1e-6
_UNUSUAL = "zqxj \u16a0 \ua66e \u8639"  # letters that no small vocabulary has
_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)
_PROBES = ("a", "a longer text, beside which the other one is padded")


@contextlib.contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever another library raises inside the block into a `ModelError` that names the folder."""
    try:
        yield
    except AccelError:
        raise
    except Exception as error:  # three libraries read here, each with errors of its own
        fix = "fetch the model again: hf download <id> --local-dir <folder>"
        if isinstance(error, ImportError):
            fix = "install what it names, with python -m pip install"
        elif isinstance(error, _UNREADABLE) and not isinstance(error, json.JSONDecodeError | UnicodeError):
            fix = "update transformers (python -m pip install -U transformers), which does not read it; or pick another"
        raise ModelError(
            f"The {what} in {folder.name} cannot be loaded.", seen=first_line(error, folder), fix=fix
        ) from error


def check_layout(folder: Path, config: Any, loader: Any) -> None:
    """Refuse networks that are more, or attend otherwise, than one transformer of texts."""
    parts = [name.removesuffix("_config") for name in config.sub_configs if getattr(config, name, None) is not None]
    if parts and loader.__name__ != "AutoModelForTextEncoding":
        several = f"a network of several parts ({config.model_type}: {', '.join(sorted(parts))})"
        raise refused(folder, several, fix="pick a model of texts alone: accel models lists some")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise refused(
            folder,
            f"attention to random blocks ({config.model_type}, block_sparse)",
            fix='set "attention_type": "original_full" in its config.json: attention to every token',
        )


def check_own_code(folder: Path, raw: dict[str, Any]) -> tuple[str, ...]:
    """Refuse code of the folder's own, named by its config.json, but for families that transformers took over.

    Returns
    -------
    tuple of str
        A note where such code was passed over.
    """
    named = {str(value) for name, value in (raw.get("auto_map") or {}).items() if name not in _NOT_A_NETWORK}
    if not named:
        return ()
    if raw.get("model_type") not in _ONCE_REMOTE:
        raise remote_code(folder, f"({raw.get('model_type')}): {', '.join(sorted(named))}")
    return (f"remote code ({', '.join(sorted(named))}) was not run: the network is transformers' own",)


def remote_code(folder: Path, what: str) -> ModelError:
    """The error for a folder whose answers need Python code that lies in it, or in another one on the hub."""
    return refused(
        folder,
        f"code of its own {what}",
        fix="remote code is never run: pick a model, or a conversion of this one, that transformers has by itself; "
        "if that code changes nothing, take auto_map out of its JSON files",
    )


def check_filled(folder: Path, raw: dict[str, Any], network: Any, report: dict[str, Any]) -> None:
    """Refuse weights that are not this network's; `raw` is its config.json, `report` what transformers says of them."""
    reshaped = {each if isinstance(each, str) else each[0] for each in report["mismatched_keys"]}
    wanted = network.state_dict().keys() & (set(report["missing_keys"]) | reshaped)
    whole = type(network).__name__ in (raw.get("architectures") or [])
    if "auto_map" in raw and (wanted or (whole and report["unexpected_keys"])):
        raise remote_code(folder, f"for weights that transformers' {type(network).__name__} does not take")
    if wanted:
        raise ModelError(
            f"The weights in {folder.name} do not fill the network that its config.json describes.",
            seen=f"{len(wanted)} missing or of another shape, such as {min(wanted)}",
            fix="fetch the model again: hf download <id> --local-dir <folder>",
        )


def check_mask(folder: Path, module: nn.Module, tokenizer: Any, tokens: int) -> None:
    """Run a text alone and beside a longer one: the network must run, and its answer must be the same."""
    rows = [np.array(row) for row in tokenizer(list(_PROBES), truncation=True, max_length=tokens)["input_ids"]]
    if not all(map(len, rows)):  # a vocabulary of other words
        return
    try:
        with torch.no_grad():  # not inference mode: what a network keeps of this run is exported with it
            alone, beside = (
                module(*(torch.from_numpy(array) for array in pad(each, tokenizer.pad_token_id)))[0]
                for each in (rows[:1], rows)
            )
    except Exception as error:  # whatever a network raises that does not take ids and mask
        raise ModelError(
            f"The network of {folder.name} does not run on two texts.",
            seen=first_line(error, folder),
            fix="pick a model that takes token ids and a mask alone: accel models lists some",
        ) from error
    far = float((alone - beside).abs().max() / alone.abs().max().clamp(min=1e-6))
    if far > _MOST_MOVED:
        raise refused(
            folder,
            f"a network whose answer to a text changes with padding (by {far:.0%}), so with its batch mates",
            fix="pick a model of another family: accel models lists some",
        )


def check_tokens(recipe: ModelSpec, tokenizer: Any) -> None:
    """Refuse a tokenizer of transformers that is not Rust's, cannot pad, or needs code of its own."""
    folder = recipe.transformer
    if "AutoTokenizer" in (tokenizer.init_kwargs.get("auto_map") or {}):
        raise remote_code(folder, "for its tokenizer")
    if not tokenizer.is_fast:
        raise refused(folder, f"a tokenizer without a fast version ({type(tokenizer).__name__})")
    try:
        tokenizer(_UNUSUAL)
    except Exception as error:  # what Rust raises has no class of its own
        raise refused(
            folder,
            f"a tokenizer that fails on unknown words ({first_line(error, folder)})",
            fix="give its vocabulary a token for them, and the network a row for that token",
        ) from error
    if tokenizer.pad_token_id is None:
        raise refused(
            folder,
            "a tokenizer without a padding token",
            fix="give it one: tokenizer.pad_token = tokenizer.eos_token; tokenizer.save_pretrained(folder)",
        )
    if recipe.bare and tokenizer.chat_template:
        raise refused(
            folder,
            "a chat template, which sentence-transformers puts around each text of a bare checkpoint",
            fix="take it out: tokenizer.chat_template = None; tokenizer.save_pretrained(folder)",
        )


def count_rows(folder: Path, network: Any) -> int:
    """Rows of the table in which a network looks token ids up."""
    try:
        return len(network.get_input_embeddings().weight)
    except RuntimeError as error:  # CANINE's kind, which reads characters, has none
        raise refused(
            folder,
            f"a network without a table of token ids ({type(network).__name__})",
            fix="pick a model of another family: accel models lists some",
        ) from error


def unused_tokens(folder: Path, tokenizer: Any, rows: int) -> list[str]:
    """Tokens of another network's kind, such as one for images, for which the table of `rows` rows has none.

    Raises
    ------
    ModelError
        A token that texts may hold has no row.
    """
    added = tokenizer.added_tokens_decoder
    needed = {tokenizer.pad_token_id, *tokenizer("a")["input_ids"]}
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    for index, token in beyond:
        if index in needed or index not in added or not added[index].special:
            raise refused(
                folder,
                f"a tokenizer that gives {token!r} the id {index}, where the network's table has {rows} rows",
                fix="take the token out, or add rows and train them: network.resize_token_embeddings(len(tokenizer))",
            )
    return [token for _, token in beyond]


def first_line(error: Exception, folder: Path) -> str:
    """What an error of somebody else's says, short and without the path of a user's folder."""
    return f"{type(error).__name__}: {' '.join(str(error).replace(str(folder), folder.name).split())[:200]}"
