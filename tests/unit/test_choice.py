"""The engine follows the GPU's compute capability, and what is installed; FP16 is checked for its range first."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from accel_lib import course_models, to_onnx, to_torch
from accel_lib.artifact import Artifact
from accel_lib.convert.fp16_range import FP16_MAX, check_fp16_range
from accel_lib.engines.select import choices
from accel_lib.errors import ConversionError
from accel_lib.machine import Gpu, inspect_machine
from accel_lib.stats import QUALITY_CLASSES

T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_bytes=15 * 2**30, driver="580.82.07")
CUDA_TORCH = {"torch": "2.11.0+cu128"}


def on(capability, libraries=(), **versions):
    gpus = (dataclasses.replace(T4, compute_capability=capability),) if capability else ()
    machine = dataclasses.replace(inspect_machine(), gpus=gpus, versions=versions, libraries=frozenset(libraries))
    return [str(choice) for choice in choices(machine)]


@pytest.mark.parametrize(
    ("capability", "packages", "libraries", "expected"),
    [
        ("", {"torch": "2.13.0+cpu"}, (), ["ONNX Runtime INT8"]),
        ("7.5", CUDA_TORCH, (), ["PyTorch FP16 with CUDA graphs", "ONNX Runtime INT8"]),
        (
            *("7.5", CUDA_TORCH | {"tensorrt-rtx-cu12": "1.7", "tensorrt-cu12": "10.13"}, ["libnvinfer"]),
            ["TensorRT FP16", "TensorRT-RTX FP16", "PyTorch FP16 with CUDA graphs", "ONNX Runtime INT8"],
        ),
        (
            *("7.5", CUDA_TORCH | {"tensorrt-rtx-cu12": "1.7", "tensorrt-cu12": "10.13"}, []),
            ["TensorRT-RTX FP16", "PyTorch FP16 with CUDA graphs", "ONNX Runtime INT8"],
        ),
        ("9.0", CUDA_TORCH | {"tensorrt-rtx-cu12": "1.7"}, (), ["PyTorch FP16 with CUDA graphs", "ONNX Runtime INT8"]),
        ("6.0", {"torch": "2.13.0+cpu", "tensorrt-cu12": "10.13"}, ["libnvinfer"], ["ONNX Runtime INT8"]),
    ],
)
def test_the_best_engine_comes_first(capability, packages, libraries, expected):
    assert on(capability, libraries, **packages) == expected


@pytest.mark.parametrize(
    ("isa", "packages", "expected"),
    [
        (("AVX2",), {"openvino", "nncf"}, ["ONNX Runtime INT8"]),
        (("AVX2", "AVX-VNNI"), {"openvino", "nncf"}, ["OpenVINO INT8", "ONNX Runtime INT8"]),
        (("AVX-512", "AVX-512 BF16", "AVX-512 VNNI"), {"openvino"}, ["OpenVINO BF16", "ONNX Runtime INT8"]),
        (("AVX-512", "AMX"), {"openvino", "nncf"}, ["OpenVINO INT8", "OpenVINO BF16", "ONNX Runtime INT8"]),
        (("AVX-512", "AMX"), set(), ["ONNX Runtime INT8"]),
    ],
)
def test_a_cpus_instructions_decide_what_openvino_is_offered_for(isa, packages, expected):
    versions = dict.fromkeys(packages, "1")
    machine = dataclasses.replace(inspect_machine(), gpus=(), versions=versions, isa=isa)
    assert [str(choice) for choice in choices(machine)] == expected


def test_no_gpu_is_offered_bf16():
    everything = CUDA_TORCH | {"tensorrt-rtx-cu12": "1.7", "tensorrt-cu12": "10.13"}
    assert not [
        text for cc in ("7.5", "8.0", "8.9", "9.0") for text in on(cc, ["libnvinfer"], **everything) if "BF" in text
    ]


@pytest.fixture
def swollen(tiny_model):
    """The tiny model with one layer whose answers are beyond, or close to, the end of FP16."""

    def swell(largest):
        module = tiny_model.module
        layer = next(part for name, part in module.named_modules() if name.endswith("layer.1.intermediate.dense"))
        before = layer.bias.detach().clone()
        with torch.no_grad():
            layer.bias[0] = largest
        return lambda: layer.bias.data.copy_(before)

    undo = []
    yield lambda largest: undo.append(swell(largest))
    for back in undo:
        back()


def test_a_healthy_model_goes_into_fp16_without_a_word(tiny_model):
    assert check_fp16_range(tiny_model) == ()


def test_a_number_beyond_fp16_is_refused_with_the_layer_that_makes_it(tiny_model, swollen, tmp_path):
    swollen(2 * FP16_MAX)
    for convert in (to_onnx, to_torch):
        with pytest.raises(ConversionError, match=r"131,0\d\d in .*layer\.1\.intermediate.*65,504"):
            convert(tiny_model, precision="fp16", output=tmp_path / "fp16", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_number_close_to_the_end_is_noted_in_the_manifest(tiny_model, swollen, tmp_path):
    swollen(FP16_MAX / 2)
    artifact = to_torch(tiny_model, precision="fp16", output=tmp_path / "fp16", progress=False)
    assert [note for note in artifact.manifest.notes if "FP16 is nearly used up" in note]


@pytest.fixture
def gpu_course(tiny_model, texts, tmp_path, monkeypatch):
    """`ensure` on a machine that is said to have a GPU and TensorRT, with a tiny model; conversions run on the CPU."""
    (tmp_path / "embedding").mkdir()
    monkeypatch.setenv("ACCEL_REPOSITORY", str(tmp_path))
    engine = course_models._Recipe(name="TensorRT engine", format="tensorrt", instead=course_models._TORCH)
    monkeypatch.setattr(course_models, "_recipes", lambda _: {2: engine})
    monkeypatch.setattr(course_models, "_BUILDERS", {"embedding": lambda: (tiny_model, texts)})
    place = SimpleNamespace(source=tiny_model.source)
    monkeypatch.setattr("accel_lib.models.hub.resolve", lambda _name: place)
    return tmp_path / "embedding" / "2" / "artifact"


def test_where_tensorrt_refuses_pytorch_serves_and_the_manifest_says_so(gpu_course, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise ConversionError("TensorRT cannot build this graph.", seen="no FP16", fix="another target")

    monkeypatch.setattr(course_models, "_to_tensorrt", refuse)
    course_models.ensure("embedding")
    said = capsys.readouterr().out
    assert "no TensorRT engine: TensorRT cannot build this graph. no FP16" in said
    held = Artifact.load(gpu_course).manifest
    assert (held.format, held.precision) == ("torch", "fp32")
    assert "instead of TensorRT engine: TensorRT cannot build this graph." in held.notes
    course_models.ensure("embedding")
    assert "converting" not in capsys.readouterr().out


def test_where_int8_does_not_hold_fp32_without_padding_is_served(gpu_course, monkeypatch, capsys):
    monkeypatch.setattr(course_models, "_recipes", lambda _: {2: course_models._PACKED_INT8})
    monkeypatch.setattr("accel_lib.convert.sensitivity.LEAST_COSINE", 1.1)
    course_models.ensure("embedding")
    assert "no onnx int8 without padding: INT8 does not hold its targets" in capsys.readouterr().out
    held = Artifact.load(gpu_course).manifest
    assert (held.format, held.precision, held.packed) == ("onnx", "fp32", True)
    course_models.ensure("embedding")
    assert "converting" not in capsys.readouterr().out


def test_where_openvinos_int8_is_in_no_quality_class_onnx_runtimes_is_served(gpu_course, monkeypatch, capsys):
    monkeypatch.setattr(course_models, "_recipes", lambda _: {2: course_models._OPENVINO_INT8})
    small = dataclasses.replace(QUALITY_CLASSES["small"], kept=1.1)
    monkeypatch.setitem(QUALITY_CLASSES, "small", small)
    course_models.ensure("embedding")
    assert "no openvino int8 without padding: openvino int8 packed is not in" in capsys.readouterr().out
    assert Artifact.load(gpu_course).manifest.format == "onnx"


def test_openvinos_int8_is_served_where_it_is_in_the_class_and_says_what_it_keeps(gpu_course, monkeypatch, capsys):
    monkeypatch.setattr(course_models, "_recipes", lambda _: {2: course_models._OPENVINO_INT8})
    monkeypatch.setitem(
        QUALITY_CLASSES, "small", dataclasses.replace(QUALITY_CLASSES["small"], kept=0.0, cosine_mean=0.9)
    )
    course_models.ensure("embedding")
    held = Artifact.load(gpu_course).manifest
    assert (held.format, held.precision, held.packed) == ("openvino", "int8", True)
    assert "of ten nearest kept" in held.notes[-1]
    capsys.readouterr()
    course_models.ensure("embedding")
    assert "converting" not in capsys.readouterr().out
