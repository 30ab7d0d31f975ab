"""An environment for each kind of peer, made once by pip and again when its list of packages changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = {
    "sentence-transformers": ["sentence-transformers[onnx,openvino]", "datasets", "fastapi", "uvicorn", "litserve"],
    # Its PyTorch engine has BetterTransformer (which computes no padding) with these versions only, and its ONNX engine
    # does not start with them and a torch of today: so each engine gets what it runs with, and the faster one counts.
    "infinity": ["infinity-emb[server,torch]", "optimum<2", "transformers<4.49", "pyarrow<22"],
    "infinity-onnx": ["infinity-emb[server,torch]", "optimum-onnx[onnxruntime]"],
    "llama.cpp": ["xllamacpp", "numpy"],
    "onnxruntime-genai": ["onnxruntime-genai", "onnx", "onnx-ir", "transformers"],
}


def python_of(peer: str, build: Path) -> Path | None:
    """The Python of a peer's environment; None, with a line that says why, where it could not be made."""
    folder = build / peer
    python, mark = folder / "bin" / "python", folder / ".installed"
    packages = [*PACKAGES[peer], *([] if peer == "llama.cpp" else [f"torch=={torch.__version__}"])]
    if mark.is_file() and mark.read_text(encoding="utf-8").split() == packages:
        return python
    print(f"{peer}: making its environment", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    install = [python, "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{peer} is left out: pip says {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    mark.write_text("\n".join(packages), encoding="utf-8")
    return python


def apart() -> dict[str, str]:
    """The environment of a process that is none of ours: no path of ours, no network, nothing sent home."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
