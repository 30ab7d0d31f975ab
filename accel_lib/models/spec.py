"""What a model folder asks for, read from its JSON files alone: honoured exactly, or refused by name.

The files are those of sentence-transformers (https://sbert.net/docs/sentence_transformer/usage/custom_models.html):
``modules.json`` lists the modules, ``sentence_bert_config.json`` holds the limits of the first one, and
``config_sentence_transformers.json`` the prompts.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

from accel_lib.models.files import optional_json, read_json, refused
from accel_lib.models.model import Task
from accel_lib.models.steps import Dense, pooling_modes, read_step

# The only values honoured, for settings of the first module that are not read.
_TRANSFORMER_DEFAULTS: dict[Task, dict[str, Any]] = {
    "embedding": {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    },
    "classification": {
        "transformer_task": "sequence-classification",
        "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    },
}
_HEAD = re.compile(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|WithProjection)$")
_PRETRAINING = re.compile(r"(ForMaskedLM|ForPreTraining|WithLMHeadModel|XLNetLMHeadModel)$")
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")
_GENERATOR = re.compile(r"(ForCausalLM|ForConditionalGeneration|LMHeadModel)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything `folder` asks for; its network lies in `transformer`, and `steps` follow the pooling in order."""

    task: Task
    folder: Path
    transformer: Path
    bare: bool = False
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[Dense | Literal["normalize"], ...] = ()
    truncate_dim: int | None = None
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What of it is our choice, in words."""
        chosen = f"bare checkpoint: {self.pooling[0]} pooling and unit length are our choice"
        return (f"{chosen}; for speed, not trained for similarity",) if self.bare else ()


def is_generator(folder: Path) -> bool:
    """Whether a folder holds a causal language model with its head, and no modules of sentence-transformers."""
    if (folder / "modules.json").is_file() or not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json", dict)
    name = str((config.get("architectures") or [""])[0])
    return bool(_CAUSAL.search(name)) and not config.get("is_encoder_decoder")


def read_spec(folder: Path, task: Task | None = None) -> ModelSpec:
    """Read a sentence-transformers folder, a classifier or a bare checkpoint.

    Raises
    ------
    ModelError
        A file cannot be read, or something in it cannot be honoured exactly.
    """
    if (folder / "adapter_config.json").is_file():
        raise refused(
            folder,
            "an adapter (PEFT)",
            fix="merge it into its base model first: model.merge_and_unload().save_pretrained(...)",
        )
    if (folder / "modules.json").is_file():
        general = optional_json(folder / "config_sentence_transformers.json")
        pairs = general.get("model_type") == "CrossEncoder"
        if pairs and task != "embedding":
            return _read_cross_encoder(folder, general)
        if not pairs and task != "classification":
            return _read_modules(folder, general)
    return _read_checkpoint(folder, task)


def _read_checkpoint(folder: Path, task: Task | None) -> ModelSpec:
    """A folder without modules, by the head that its first architecture names."""
    config = read_json(folder / "config.json", dict)
    name = str((config.get("architectures") or [""])[0])
    if task == "classification" and not name.endswith("ForSequenceClassification"):
        raise refused(
            folder,
            f"a classifier without a head ({name or 'no architecture named'})",
            fix="train one: accel.train_classifier(accel.load_model(...), accel.load_texts('sentiment-train'))",
        )
    if task != "embedding" and name.endswith("ForSequenceClassification"):
        return ModelSpec(task="classification", folder=folder, transformer=folder)
    if task is None and _HEAD.search(name) and not _PRETRAINING.search(name):
        what = "a text generator" if _GENERATOR.search(name) else "a head for another task"
        raise refused(
            folder,
            f"{what} ({name})",
            fix="pass task='embedding' to embed texts with its network alone, without that head",
        )
    causal = name.endswith("ForCausalLM") and config.get("is_causal", True)  # as sentence-transformers tells them apart
    pooling = "lasttoken" if causal else "mean"
    return ModelSpec(
        task="embedding", folder=folder, transformer=folder, bare=True, pooling=(pooling,), steps=("normalize",)
    )


def _read_cross_encoder(folder: Path, general: dict[str, Any]) -> ModelSpec:
    modules = _modules(folder)
    if modules != [("Transformer", folder.resolve())]:
        raise refused(
            folder, f"a CrossEncoder of the modules {_arrows(modules)}, not of one Transformer in the folder itself"
        )
    first = _transformer_settings(folder, folder, "classification")
    return ModelSpec(task="classification", folder=folder, transformer=folder, **_text_side(folder, first, general))


def _read_modules(folder: Path, general: dict[str, Any]) -> ModelSpec:
    modules = _modules(folder)
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"]:
        raise refused(folder, f"the modules {_arrows(modules)}, not Transformer → Pooling → …")
    later = [read_step(folder, kind, path) for kind, path in modules[2:]]
    first = _transformer_settings(folder, modules[0][1], "embedding")
    if general.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise refused(folder, f"a {general['model_type']}")
    return ModelSpec(
        task="embedding",
        folder=folder,
        transformer=modules[0][1],
        pooling=pooling_modes(folder, modules[1][1]),
        steps=tuple(later),
        truncate_dim=general.get("truncate_dim"),
        **_text_side(folder, first, general),
    )


def _text_side(folder: Path, first: dict[str, Any], general: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that concern texts before the network sees them."""
    prompts = {name: text or "" for name, text in (general.get("prompts") or {}).items()}
    default = general.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise refused(folder, f"the default prompt {default!r}, which is not among its prompts")
    return {
        "max_length": first.get("max_seq_length"),
        "lower_case": bool(first.get("do_lower_case")),
        "prompts": prompts,
        "default_prompt": default,
    }


def _modules(folder: Path) -> list[tuple[str, Path]]:
    return [_module(folder, entry) for entry in read_json(folder / "modules.json", list)]


def _arrows(modules: list[tuple[str, Path]]) -> str:
    return " → ".join(kind for kind, _ in modules)


def _module(folder: Path, entry: Any) -> tuple[str, Path]:
    if not isinstance(entry, dict) or not {"type", "path"} <= entry.keys():
        raise refused(folder, "an unknown layout in modules.json")
    origin, _, kind = str(entry["type"]).rpartition(".")
    if origin.partition(".")[0] != "sentence_transformers":
        raise refused(
            folder, f"code of its own ({entry['type']})", fix="remote code is never run: pick a model without it"
        )
    path = (folder / entry["path"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise refused(folder, f"a module outside the folder ({entry['path']})")
    return kind, path


def _transformer_settings(folder: Path, path: Path, task: Task) -> dict[str, Any]:
    files = [path / "sentence_bert_config.json", *sorted(path.glob("sentence_*_config.json"))]
    settings = next((found for file in files if (found := optional_json(file))), {})
    for name, value in settings.items():
        if name in ("max_seq_length", "do_lower_case"):
            continue
        if value and value != _TRANSFORMER_DEFAULTS[task].get(name):
            raise refused(folder, f"a Transformer module with {name} = {value!r}")
    return settings
