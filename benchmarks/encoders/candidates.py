"""What is compared in one process: ours and its strongest peers, each with the ways to batch that are tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_lib.engines.openvino import has_bf16
from benchmarks.encoders.models import Files

SIZES = ("1", "8", "32")  # sentence-transformers sorts by itself
CUT = ("8", "32", "t256", "t512", "t1024")
SIDE_BY_SIDE = ("t256/2", "t512/2", "t1024/2")
PACKED = ("t256", "t512", "t1024", "t2048")
QUICK = {SIZES: ("8", "32"), (*CUT, *SIDE_BY_SIDE): ("t512", "t512/2"), CUT: ("8", "t512"), PACKED: ("t512",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that turns texts into vectors.

    Parameters
    ----------
    process
        The library whose process it shares, which names the environment of sentence-transformers.
    kind, options
        What the worker opens it with.
    folder, large
        Where its files of the course's model are, and of the larger one; None where that takes no part.
    ways
        Ways to batch that are tried.
    """

    name: str
    process: str
    kind: str
    folder: Path
    large: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ways: tuple[str, ...]

    @property
    def ours(self) -> bool:
        """Whether it is this library's."""
        return self.kind == "ours"


def candidates(small: Files, large: Files, *, quick: bool) -> list[Candidate]:
    """Everyone who takes part on this machine; `quick` tries fewer ways to batch."""
    every = [*in_torch(small, large), *backends(small), *runtimes(small, large), *our_own(small, large)]
    return [dataclasses.replace(one, ways=QUICK[one.ways]) for one in every] if quick else every


def in_torch(small: Files, large: Files) -> list[Candidate]:
    common = {"process": "torch", "kind": "torch", "folder": small.folder}
    compiled = common | {"large": large.folder, "ways": CUT}
    return [
        Candidate(name="PyTorch", **common, ways=(*CUT, *SIDE_BY_SIDE)),
        Candidate(name="torch.compile", **compiled, options={"compiled": True}),
        Candidate(name="torch.compile BF16", **compiled, options={"compiled": True, "bf16": True}),
    ]


def runtimes(small: Files, large: Files) -> list[Candidate]:
    ways = (*CUT, *SIDE_BY_SIDE)
    onnx = {"process": "onnxruntime", "kind": "onnxruntime", "ways": ways}
    vino = {"process": "openvino", "kind": "openvino", "ways": ways}
    plain, int8 = {"folder": small.plain, "large": large.plain}, {"folder": small.int8, "large": large.int8}
    fp32, bf16 = {"file": "model.onnx", "precision": "f32"}, {"file": "model.onnx", "precision": "bf16"}
    return [
        Candidate(name="ONNX Runtime", **onnx, **plain),
        Candidate(name="ONNX Runtime INT8", **onnx, **int8),
        Candidate(name="OpenVINO", **vino, **plain, options=fp32),
        *([Candidate(name="OpenVINO BF16", **vino, **plain, options=bf16)] if has_bf16() else []),
        Candidate(
            name="OpenVINO INT8", **vino, folder=small.openvino, large=large.openvino, options={"file": "model.xml"}
        ),
    ]


def backends(small: Files) -> list[Candidate]:
    """sentence-transformers with each of its backends."""
    common = {"process": "sentence-transformers", "kind": "sentence-transformers", "ways": SIZES}
    return [
        Candidate(name=f"sentence-transformers{name and f', {name}'}", **common, folder=folder, options=options)
        for name, (folder, options) in backend_options(small).items()
    ]


def backend_options(small: Files) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder and arguments of ``SentenceTransformer`` by backend."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {"": (small.folder, {"backend": "torch"})}
    if small.exported is None:
        return made

    def onnx(file: str) -> dict[str, Any]:
        return {"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider", "file_name": file}}

    def openvino(file: str, **config: str) -> dict[str, Any]:
        return {"backend": "openvino", "model_kwargs": {"file_name": file, "ov_config": config}}

    made |= {
        "ONNX": (small.exported, onnx("model.onnx")),
        "ONNX INT8": (small.exported, onnx("model_qint8_avx512_vnni.onnx")),
        "OpenVINO FP32": (small.exported, openvino("openvino_model.xml", INFERENCE_PRECISION_HINT="f32")),
        "OpenVINO INT8": (small.exported, openvino("openvino_model_qint8_quantized.xml")),
    }
    if has_bf16():
        made["OpenVINO BF16"] = (small.exported, openvino("openvino_model.xml", INFERENCE_PRECISION_HINT="bf16"))
    return made


def our_own(small: Files, large: Files) -> list[Candidate]:
    common = {"process": "ours", "kind": "ours", "ways": PACKED}
    return [
        Candidate(name=name, **common, folder=one.folder, large=large.ours[name].folder if name in large.ours else None)
        for name, one in small.ours.items()
    ]
