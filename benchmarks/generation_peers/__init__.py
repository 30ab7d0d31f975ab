"""What others serve a small language model on a CPU with, each in a process of its own, under the same load.

llama.cpp reads the package's own GGUF file, and the same weights in 8 and 32 bits; ONNX Runtime GenAI what its model
builder makes of the folder; OpenVINO GenAI this project's graph, with its own defaults. Each gets one thread, as many
rows as ours and a cache as large.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accel_lib.convert.generation import generation_to_openvino
from accel_lib.models.generation import GenerationModel
from benchmarks.encoders.environments import apart, python_of
from benchmarks.generation_peers.gguf_files import requantized, shipped

WORKER = Path(__file__).with_name("worker.py")
BUILD = Path(__file__).parents[2] / "build" / "bench"
_LONGEST_S = 900


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A function of `worker.py`, the environment it runs in (None: this one), and the file or folder it opens."""

    kind: str
    environment: str | None
    model: Callable[[GenerationModel], Path]


def _openvino(model: GenerationModel, precision: str) -> Path:
    return generation_to_openvino(model, precision=precision, progress=False).folder


def _built(model: GenerationModel, precision: str) -> Path:
    """What ONNX Runtime GenAI's own builder makes: its fused attention, and a configuration beside it."""
    folder = BUILD / f"onnxruntime-genai-{precision}"
    if not (folder / "genai_config.json").is_file():
        python = python_of("onnxruntime-genai", BUILD)
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", model.folder, "-o", folder, "-p", precision]
        done = subprocess.run(
            [str(part) for part in (*command, "-e", "cpu", "-c", BUILD / "cache")],
            capture_output=True, text=True, env=apart(), check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"ONNX Runtime GenAI's builder: {done.stderr.strip().splitlines()[-1]}")
    return folder


PEERS = {
    "llama.cpp, F32": Peer(kind="llama_cpp", environment="llama.cpp", model=lambda _: requantized(BUILD, "F32")),
    "llama.cpp, Q8_0": Peer(kind="llama_cpp", environment="llama.cpp", model=lambda _: requantized(BUILD, "Q8_0")),
    "llama.cpp, Q4_1 as shipped": Peer(kind="llama_cpp", environment="llama.cpp", model=lambda _: shipped()),
    "onnxruntime-genai, fp32": Peer(
        kind="onnxruntime_genai", environment="onnxruntime-genai", model=lambda model: _built(model, "fp32")
    ),
    "openvino-genai's defaults": Peer(
        kind="openvino_genai", environment=None, model=lambda model: _openvino(model, "fp32")
    ),
    "openvino-genai's defaults, int8": Peer(
        kind="openvino_genai", environment=None, model=lambda model: _openvino(model, "int8")
    ),
}


def run(
    peer: Peer, model: GenerationModel, requests: Sequence[tuple[Sequence[int], int]], *, rows: int, cache_tokens: int
) -> dict[str, Any]:
    """Prompts and lengths through a peer; its seconds, tokens and their times, as `worker.py` prints them.

    Raises
    ------
    RuntimeError
        Its environment could not be made, or it failed; the last line it said is in it.
    """
    python = python_of(peer.environment, BUILD) if peer.environment else Path(sys.executable)
    if python is None:
        raise RuntimeError(f"no environment for {peer.environment}")
    load = {
        "model": str(peer.model(model)), "rows": rows, "cache_tokens": cache_tokens,
        "requests": [[list(ids), count] for ids, count in requests],
    }  # fmt: skip
    command = [str(python), str(WORKER), peer.kind]
    done = subprocess.run(
        command, input=json.dumps(load), capture_output=True, text=True, env=apart(), timeout=_LONGEST_S, check=False
    )
    if done.returncode:
        raise RuntimeError("; ".join(done.stderr.strip().splitlines()[-2:]))
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
