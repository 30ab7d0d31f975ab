"""Models of a known shape with random weights: honest speed where there is no network to fetch the trained one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from accel_lib._logging import silenced
from accel_lib.errors import require
from accel_lib.machine import cache_dir

_MINILM_L12 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def random_folder(name: str, *, tokenizer: Path) -> Path:
    """Write the network of a catalogue name once, beside a copy of the `tokenizer` folder's files, and return it."""
    folder = cache_dir("models", name)
    if folder.is_dir():
        return folder
    torch, transformers = require("torch", extra="models"), require("transformers", extra="models")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside, silenced(), torch.random.fork_rng(devices=[]):
        draft = Path(aside, name)
        torch.manual_seed(0)
        if "SmolLM2" in name:
            config = transformers.AutoConfig.from_pretrained(tokenizer)
            transformers.LlamaForCausalLM(config).save_pretrained(draft)
        else:
            config = transformers.BertConfig(**_MINILM_L12)
            transformers.BertModel(config, add_pooling_layer=False).save_pretrained(draft)
        for file in _TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                shutil.copy2(tokenizer / file, draft)
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            draft.rename(folder)
    return folder
