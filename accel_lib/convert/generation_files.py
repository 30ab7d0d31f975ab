"""A causal language model as an artifact that transformers opens: the reference, and the engine that always exists."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from accel_lib.artifact import Artifact, Manifest, foreign_files, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.errors import ModelError
from accel_lib.generate.wire import PROMPT_IDS, TOKEN_IDS
from accel_lib.models.generation import GenerationModel

_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors")


def generation_to_transformers(model: GenerationModel, output: str | Path) -> Artifact:
    """Write a model's own files, as they are, into an artifact; it is its own reference, so it counts as validated.

    Raises
    ------
    ModelError
        Its weights are in several files, or not in safetensors.
    OutputError
        The folder holds anything but an artifact, or the disk is full.
    """
    began = time.monotonic()
    if not (model.folder / "model.safetensors").is_file():
        raise ModelError(
            "The model's weights are not in one safetensors file.",
            seen=", ".join(sorted(file.name for file in model.folder.glob("*.safetensors*"))) or "none",
            fix="model.network.save_pretrained(folder, max_shard_size='100GB'), and load that folder",
        )
    with atomic_directory(output, foreign=foreign_files) as draft:
        for name in _FILES:
            if (model.folder / name).is_file():
                shutil.copy2(model.folder / name, draft / name)
        model.tokenizer.save(str(draft / "tokenizer.json"))
        write_manifest(draft, _manifest(model, time.monotonic() - began))
    exact = {"passed": True, "checks": [], "note": "the model's own files, opened by transformers"}
    return Artifact.load(output).record_validation(exact)


def _manifest(model: GenerationModel, seconds: float) -> Manifest:
    template = model.chat_template
    return Manifest(
        model=model.name,
        source=model.source,
        task="generation",
        format="transformers",
        precision="fp32",
        inputs=(PROMPT_IDS,),
        output_name=TOKEN_IDS,
        dimension=model.vocabulary,
        max_length=model.context_tokens,
        stop_ids=model.stop_ids,
        chat_template=template.text if template else "",
        special_tokens=template.special_tokens if template else {},
        seconds=seconds,
        notes=model.notes,
    )
