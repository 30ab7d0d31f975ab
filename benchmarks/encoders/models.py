"""The files that take part, made once: the course's model, and a larger one of BGE-base's shape with random weights."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import accel_lib as accel
from accel_lib.atomic import atomic_directory
from accel_lib.engines.openvino import has_bf16
from accel_lib.models import Model
from accel_lib.models.hub import DEFAULT, resolve
from benchmarks.encoders.environments import apart, python_of

HERE = Path(__file__).parent
CALIBRATION_TEXTS = 300  # as sentence-transformers and NNCF take by default
LARGE_CALIBRATION_TEXTS = 16  # its vectors mean nothing, and each takes long
LARGE_NAME = "BERT-12x768-random"
LARGE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SENTENCE_TRANSFORMERS = "exported"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """One model in every form.

    Parameters
    ----------
    folder
        The model itself.
    ours
        Our artifacts, by name.
    plain, int8, openvino
        Folders: an ONNX file with padding, ONNX Runtime's dynamic INT8 of it, OpenVINO's INT8 of it by NNCF.
    exported
        Files of sentence-transformers' backends; None where they could not be made.
    """

    folder: Path
    ours: dict[str, accel.Artifact]
    plain: Path
    int8: Path
    openvino: Path
    exported: Path | None = None


def prepare(build: Path) -> tuple[Files, Files]:
    """The course's model and the larger one."""
    model, folder = accel.load_model(), resolve(DEFAULT).folder
    small = files(model, folder, build / "minilm", keep="auto", calibration=None)
    small = dataclasses.replace(small, ours={name: validated(one, model) for name, one in small.ours.items()})
    large_folder = random_encoder(build / "large" / LARGE_NAME, tokenizer=folder)
    large = files(
        accel.load_model(large_folder), large_folder, build / "large", keep=(), calibration=LARGE_CALIBRATION_TEXTS
    )
    return dataclasses.replace(small, exported=export(folder, build)), large


def validated(artifact: accel.Artifact, model: Model) -> accel.Artifact:
    """The artifact with its verdict: what has none is not served."""
    if artifact.validated:
        return artifact
    texts = accel.load_texts("mixed", limit=64, seed=3)
    return accel.validate(artifact, reference=model, texts=texts).artifact or artifact


def our_own(model: Model, texts: list[str] | None, *, keep: Any) -> dict[str, accel.Artifact]:
    """Our packed artifacts, for ONNX Runtime and for OpenVINO."""
    packed = accel.to_onnx(model, packed=True, progress=False)
    made = {
        "ours, ONNX Runtime FP32": packed,
        "ours, ONNX Runtime INT8": accel.to_onnx(model, packed=True, precision="int8", keep=keep, progress=False),
        "ours, OpenVINO FP32": accel.to_openvino(packed, progress=False),
        "ours, OpenVINO INT8": accel.to_openvino(packed, precision="int8", texts=texts, progress=False),
    }
    return made | (
        {"ours, OpenVINO BF16": accel.to_openvino(packed, precision="bf16", progress=False)} if has_bf16() else {}
    )


def files(model: Model, folder: Path, build: Path, *, keep: Any, calibration: int | None) -> Files:
    """Ours and the peers' files of one model; `keep` is what our INT8 on ONNX Runtime leaves in FP32.

    `calibration` is the number of texts for INT8 on OpenVINO; None is each one's own default.
    """
    plain = accel.to_onnx(model, progress=False)
    texts = list(accel.load_texts("mixed", limit=calibration or CALIBRATION_TEXTS, seed=5))
    ours = our_own(model, texts if calibration else None, keep=keep)
    for name, make in (("int8", quantize_onnx), ("openvino", quantize_openvino)):
        if not (build / name).is_dir():
            print(f"{model.name}: making its file for {name}", flush=True)
            with atomic_directory(build / name) as made:
                shutil.copy2(plain.folder / "tokenizer.json", made)
                make(plain.path, made, model, texts)
    return Files(folder=folder, ours=ours, plain=plain.folder, int8=build / "int8", openvino=build / "openvino")


def quantize_onnx(source: Path, folder: Path, model: Model, texts: list[str]) -> None:  # noqa: ARG001
    """ONNX Runtime's dynamic quantization: weights by channel, activations as they come.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    extra = {"DefaultTensorType": 1}  # of what shape inference does not know, as behind contrib operators
    quantize_dynamic(source, folder / "model.onnx", per_channel=True, weight_type=QuantType.QInt8, extra_options=extra)


def quantize_openvino(source: Path, folder: Path, model: Model, texts: list[str]) -> None:
    """OpenVINO's post-training quantization by NNCF, with SmoothQuant as it does for transformers.

    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
    """
    import nncf
    import openvino

    from accel_lib.models.tokenizer import pad

    rows = [pad([row], model.tokenizer.pad_id) for row in model.tokenizer(texts)]
    samples = nncf.Dataset([dict(zip(("input_ids", "attention_mask"), row, strict=True)) for row in rows])
    graph = openvino.Core().read_model(source)
    quantized = nncf.quantize(graph, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
    openvino.save_model(quantized, folder / "model.xml")


def random_encoder(folder: Path, *, tokenizer: Path) -> Path:
    """A BERT of BGE-base's shape with random weights beside the files of a tokenizer: for speed, never for quality."""
    if folder.is_dir():
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    with atomic_directory(folder) as made:
        transformers.BertModel(transformers.BertConfig(**LARGE), add_pooling_layer=False).save_pretrained(made)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy2(tokenizer / file, made)
    return folder


def export(folder: Path, build: Path) -> Path | None:
    """The files of sentence-transformers' backends; None, with a line that says why, where they cannot be made."""
    exported, python = build / SENTENCE_TRANSFORMERS, python_of("sentence-transformers", build)
    if python is None or exported.is_dir():
        return exported if python else None
    calibration = build / "calibration"
    calibration.mkdir(exist_ok=True)
    with (calibration / "train.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["sentence"], *([text] for text in accel.load_texts("mixed", limit=CALIBRATION_TEXTS, seed=5))])
    try:
        with atomic_directory(exported) as made:
            command = [python, HERE / "export_backends.py", folder, made, calibration]
            subprocess.run(command, capture_output=True, text=True, check=True, env=apart())
    except subprocess.CalledProcessError as error:
        print(f"sentence-transformers goes without its backends: {error.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return exported
