"""An environment for each peer, made once by pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = {
    "sentence-transformers": ["sentence-transformers", "optimum-onnx[onnxruntime]"],
    # Its PyTorch engine has BetterTransformer (which computes no padding) with these versions only, and its ONNX engine
    # does not start with them and a torch of today: so each engine gets what it runs with, and the faster one counts.
    "infinity": ["infinity-emb[server,torch]", "optimum<2", "transformers<4.49", "pyarrow<22"],
    "infinity-onnx": ["infinity-emb[server,torch]", "optimum-onnx[onnxruntime]"],
    "fastapi": ["sentence-transformers", "optimum-onnx[onnxruntime]", "fastapi", "uvicorn"],
    "litserve": ["sentence-transformers", "optimum-onnx[onnxruntime]", "litserve"],
}


def python_of(peer: str, build: Path) -> Path | None:
    """The Python of a peer's environment; None, with a line that says why, where it could not be made."""
    folder = build / peer
    python, mark = folder / "bin" / "python", folder / ".installed"
    if mark.is_file():
        return python
    print(f"{peer}: making its environment", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [python, "-m", "pip", "install", "-q", *PACKAGES[peer], f"torch=={torch.__version__}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{peer} is left out: pip says {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    mark.touch()
    return python
