"""TensorRT on a machine without a GPU: engines are really built, looked into, and refused where they do not fit."""

import dataclasses
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from accel_lib import open_engine, to_onnx, to_tensorrt
from accel_lib.artifact import Artifact, Profile, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.convert.cache import incompatibility, refusal, weights_digest
from accel_lib.convert.tensorrt import choose_profiles, inspect_engine
from accel_lib.engines import tensorrt_runtime
from accel_lib.engines.tensorrt import profile_for
from accel_lib.engines.tensorrt_runtime import installed
from accel_lib.errors import ArtifactError, ConversionError, EngineError, MissingDependencyError
from accel_lib.machine import inspect_machine

pytestmark = pytest.mark.skipif("tensorrt_rtx" not in installed(), reason="TensorRT-RTX is not installed")
without_gpu = pytest.mark.skipif(bool(inspect_machine().gpus), reason="this machine has a GPU")


INTERRUPTED = """
import dataclasses, os, signal, sys
from accel_lib import to_tensorrt
from accel_lib.artifact import Artifact
from accel_lib.convert import tensorrt
from accel_lib.engines import tensorrt_runtime

library = tensorrt_runtime.load_library("tensorrt_rtx")
before = signal.getsignal(signal.SIGINT)
sent = []


class Interrupting(library.module.ILogger):
    # presses Ctrl-C in the first message of the build, where an exception would be swallowed
    def log(self, severity, message):
        if not sent and signal.getsignal(signal.SIGINT) is not before:
            sent.append(message)
            os.kill(os.getpid(), signal.SIGINT)


tensorrt.choose_library = lambda target: dataclasses.replace(library, logger=Interrupting())
try:
    to_tensorrt(Artifact.load(sys.argv[1]), target="t4", output=sys.argv[2], progress=False)
except KeyboardInterrupt:
    assert sent
    assert signal.getsignal(signal.SIGINT) is before
    print("the build was interrupted")
"""


@pytest.fixture(scope="module")
def fp16(tiny_model, tmp_path_factory):
    return to_onnx(tiny_model, precision="fp16", output=tmp_path_factory.mktemp("trt") / "fp16", progress=False)


@pytest.fixture(scope="module")
def t4(fp16, tmp_path_factory):
    lengths = np.arange(3, 64)
    return to_tensorrt(fp16, target="t4", lengths=lengths, output=tmp_path_factory.mktemp("trt") / "t4", progress=False)


def changed(artifact: Artifact, **fields) -> Artifact:
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, **fields))


def test_a_t4_engine_is_built_and_carries_all_it_needs(t4: Artifact):
    loaded = Artifact.load(t4.folder)
    assert set(loaded.manifest.files) == {"model.plan", "model.onnx", "tokenizer.json"}
    assert loaded.manifest.target == "sm75"
    assert loaded.manifest.versions["tensorrt_rtx"]
    assert loaded.size_bytes > 10_000


def test_an_engine_can_be_built_again_from_what_it_carries(t4: Artifact, tmp_path):
    again = to_tensorrt(t4, target="l4", output=tmp_path / "l4", progress=False)
    assert again.manifest.target == "sm89"


def test_an_engine_belongs_to_the_library_that_built_it_last(t4: Artifact, tmp_path):
    by_another = changed(t4, versions=t4.manifest.versions | {"tensorrt": "10.0"})
    again = to_tensorrt(by_another, target="l4", output=tmp_path / "l4", progress=False)
    assert tensorrt_runtime.built_with(again.manifest) == "tensorrt_rtx"


@pytest.mark.parametrize(
    "profile",
    [
        Profile(min=(1, 1), opt=(8, 40), max=(8, 24)),
        Profile(min=(8, 1), opt=(4, 8), max=(8, 24)),
        Profile(min=(0, 1), opt=(4, 8), max=(8, 24)),
        Profile(min=(1, 1), opt=(8, 24), max=(8, 100_000)),
    ],
)
def test_a_profile_that_no_engine_can_have_is_refused_before_building(fp16, profile, tmp_path):
    with pytest.raises(ConversionError, match=re.escape(str(profile.max))):
        to_tensorrt(fp16, target="t4", profiles=[profile], output=tmp_path / "plan", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_tensorrt_is_named_and_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(tensorrt_runtime.subprocess, "run", None)
    tensorrt_runtime.ensure_installed()
    assert re.search(r"tensorrt_rtx \d+\.\d+", capsys.readouterr().out)


def test_a_missing_tensorrt_is_installed_by_pip(monkeypatch, capsys):
    answers = iter([[], ["tensorrt_rtx"], ["tensorrt_rtx"]])
    monkeypatch.setattr(tensorrt_runtime, "installed", lambda: next(answers))
    tensorrt_runtime.ensure_installed()
    assert "installing tensorrt-rtx-cu12>=1.7" in capsys.readouterr().out


def test_when_pip_fails_its_own_words_are_passed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_runtime, "installed", list)
    with pytest.raises(MissingDependencyError, match="no-such-wheel"):
        tensorrt_runtime.ensure_installed(str(tmp_path / "no-such-wheel.whl"))


def test_matrix_products_are_half_and_norms_are_full_precision(t4: Artifact):
    report = inspect_engine(t4)
    types = {layer: set(rows["type"]) for layer, rows in report.layers.groupby("layer")}
    assert types["MATRIX_MULTIPLY"] == {"HALF"}
    assert types["NORMALIZATION"] == {"FLOAT"}
    assert types["SOFTMAX"] == {"FLOAT"}
    assert len(report.profiles) == len(t4.manifest.profiles)
    assert "MATRIX_MULTIPLY" in report._repr_html_()


@without_gpu
def test_without_a_driver_nothing_is_said_about_validity(t4: Artifact):
    report = inspect_engine(t4)
    assert (report.validity, report.kernels) == ("cannot be told without an NVIDIA driver", ())


def test_ctrl_c_ends_a_build_even_inside_a_callback_and_leaves_nothing(fp16, tmp_path):
    words = [sys.executable, "-c", INTERRUPTED, fp16.folder, tmp_path / "plan"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the build was interrupted\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_watches_progress_is_two_lines(fp16, tmp_path, capsys):
    to_tensorrt(fp16, target="t4", output=tmp_path / "plan")
    said = capsys.readouterr().out
    assert "\r" not in said
    assert [line.split()[0] for line in said.splitlines()] == ["tensorrt_rtx", "built"]


@pytest.mark.parametrize("spread", [0.2, 0.8, 1.5])
@pytest.mark.parametrize("most", [128, 256, 512])
def test_profiles_cover_every_length_and_every_batch(spread, most):
    lengths = np.clip(np.random.default_rng(1).lognormal(3.4, spread, 1000).astype(np.int64), 1, most)
    profiles = choose_profiles(lengths, max_batch_size=16, max_length=most)
    for length in range(1, most + 1):
        for batch in (1, 16):
            assert 0 <= profile_for(profiles, (batch, length)) < len(profiles)
    assert np.mean(lengths <= profiles[0].max[1]) >= 0.99
    for profile in profiles:
        assert profile.min <= profile.opt
        assert all(low <= best <= high for low, best, high in zip(profile.min, profile.opt, profile.max, strict=True))


def test_without_lengths_one_profile_covers_the_model():
    assert choose_profiles(None, max_batch_size=8, max_length=128) == (Profile(min=(1, 1), opt=(8, 32), max=(8, 128)),)


def test_a_batch_outside_every_profile_is_refused_with_the_limit():
    with pytest.raises(EngineError, match="ends at 8 × 128"):
        profile_for(choose_profiles(None, max_batch_size=8, max_length=128), (9, 16))


@pytest.mark.parametrize(
    ("fields", "target", "said"),
    [
        ({"precision": "fp32"}, "t4", 'precision="fp16"'),
        ({"precision": "int8"}, "t4", 'precision="fp16"'),
        ({"packed": True}, "t4", "without packed=True"),
        ({}, "voodoo2", "one of: auto, t4"),
        pytest.param({}, "auto", 'target="t4"', marks=without_gpu),
        pytest.param({}, "h200", 'target="auto"', marks=without_gpu),
    ],
)
def test_what_cannot_be_built_is_refused_before_building(fp16, fields, target, said, tmp_path):
    with pytest.raises(ConversionError) as refusal:
        to_tensorrt(changed(fp16, **fields), target=target, output=tmp_path / "plan")
    assert said in refusal.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_graph_the_parser_refuses_is_reported_by_node_and_leaves_nothing(fp16, tmp_path):
    graph = onnx.load(fp16.path)
    graph.graph.node[3].op_type = "NoSuchOperator"
    with atomic_directory(tmp_path / "broken") as draft:
        onnx.save(graph, draft / "model.onnx")
        shutil.copy(fp16.folder / "tokenizer.json", draft)
        manifest = write_manifest(draft, fp16.manifest)
    with pytest.raises(ConversionError, match="NoSuchOperator"):
        to_tensorrt(Artifact(tmp_path / "broken", manifest), target="t4", output=tmp_path / "plan", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_fp32_matrix_products_for_a_t4_are_refused_by_the_builder_in_its_own_words(tiny_model, tmp_path):
    fp32 = to_onnx(tiny_model, output=tmp_path / "fp32", progress=False)
    for _ in range(2):  # a second library object must hear the complaints as the first one did
        with pytest.raises(ConversionError, match="FP32 GEMM is not supported"):
            to_tensorrt(changed(fp32, precision="fp16"), target="t4", output=tmp_path / "plan", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["fp32"]


def test_a_builder_without_memory_names_a_batch_size_that_builds(fp16, tmp_path, monkeypatch):
    tried = []

    def plan(_library, _file, _target, profiles, **_):
        tried.append(profiles[0].max[0])
        return b"plan" if tried[-1] <= 8 else None

    monkeypatch.setattr("accel_lib.convert.builder._plan", plan)
    monkeypatch.setattr(
        tensorrt_runtime.Library, "complaint", lambda _: "Error Code 2: OutOfMemory (Requested size was 4294996688)"
    )
    with pytest.raises(ConversionError, match="OutOfMemory") as refusal:
        to_tensorrt(fp16, target="t4", output=tmp_path / "plan", progress=False)
    assert refusal.value.fix == "max_batch_size=8, which builds"
    assert tried == [32, 16, 8]


def test_a_build_without_memory_is_refused_with_numbers_before_it_begins(fp16, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_lib.convert.room.free_memory_bytes", lambda: 2**20)
    monkeypatch.setattr("accel_lib.convert.tensorrt.build", None)
    with pytest.raises(ConversionError, match=r"more memory than is free[\s\S]*GiB are free"):
        to_tensorrt(fp16, target="t4", output=tmp_path / "plan", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_a_large_model_keeps_its_weights_and_knows_them(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_lib.convert.storage.EXTERNAL_FROM_BYTES", 1)
    large = to_onnx(tiny_model, precision="fp16", output=tmp_path / "fp16", progress=False)
    plan = to_tensorrt(large, target="t4", max_batch_size=4, output=tmp_path / "t4", progress=False)
    assert {"model.plan", "model.onnx", "model.onnx.data"} < set(plan.manifest.files)
    other = plan.manifest.files | {"model.onnx.data": {"sha256": "0", "bytes": 0}}
    assert "for the weights" in refusal(
        changed(plan, files=other).manifest, plan.manifest, weights_digest(plan.manifest)
    )


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(t4):
    versions = t4.manifest.versions | {"tensorrt_rtx": "0.0.1"}
    with pytest.raises(ArtifactError, match=r"0\.0\.1 then") as refusal:
        open_engine(changed(t4, versions=versions))
    assert "accel.to_tensorrt" in refusal.value.fix


def test_a_truncated_engine_is_refused(t4, tmp_path):
    copy = t4.copy_to(tmp_path / "copy")
    copy.path.write_bytes(copy.path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="1000 bytes where the manifest says"):
        Artifact.load(copy.folder)


@without_gpu
def test_without_a_gpu_an_engine_says_so(t4):
    with pytest.raises(EngineError, match="no GPU here"):
        open_engine(t4)


@pytest.fixture
def cache(fp16, monkeypatch, tmp_path):
    """Build for a T4 into a cache of its own, and say what was printed."""
    monkeypatch.setenv("ACCEL_HOME", str(tmp_path))

    def build(capsys, artifact=fp16, lengths=range(3, 64)):
        plan = to_tensorrt(artifact, target="t4", lengths=np.array(lengths))
        return plan, capsys.readouterr().out

    return build


def rewrite(plan: Artifact, **fields):
    """Change what a cached manifest says, as if it had been built elsewhere."""
    manifest = dataclasses.replace(plan.manifest, **fields)
    (plan.folder / "manifest.json").write_text(manifest.to_json())


def test_a_cached_engine_is_used_again_when_nothing_differs(cache, capsys):
    first, _ = cache(capsys)
    again, said = cache(capsys)
    assert "reused" in said
    assert again.manifest.created == first.manifest.created


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"versions": {"tensorrt_rtx": "1.0.0"}}, r"by tensorrt_rtx 1\.0\.0, now it is tensorrt_rtx 1\.7"),
        ({"target": "sm89"}, "for sm89, now it is sm75"),
        ({"profiles": (Profile(min=(1, 1), opt=(1, 8), max=(1, 16)),)}, "for the shapes"),
        ({"files": {}}, "for the weights none"),
    ],
)
def test_a_cached_engine_that_does_not_fit_is_built_again_and_the_manifest_says_why(cache, capsys, fields, words):
    first, _ = cache(capsys)
    rewrite(first, **fields)
    again, said = cache(capsys)
    assert re.search(f"the cached engine was not used: it was built {words}", said)
    assert re.search(words, again.manifest.notes[-1])


def test_another_card_or_driver_refuses_an_engine_that_was_built_on_one(t4):
    here = {"gpu": "Tesla T4", "driver": "580.82.07"}
    weights = t4.manifest.files["model.onnx"]["sha256"]
    wanted = dataclasses.replace(t4.manifest, machine=here)
    for changed_fact, words in (("gpu", "on NVIDIA L4, now it is Tesla T4"), ("driver", "with driver 550.54")):
        other = {"gpu": "NVIDIA L4"} if changed_fact == "gpu" else {"driver": "550.54"}
        found = dataclasses.replace(t4.manifest, machine=here | other)
        assert words in refusal(found, wanted, weights)
    assert refusal(t4.manifest, wanted, weights) == ""  # built without a GPU, for any of its compute capability


def test_a_damaged_cached_engine_is_built_again(cache, capsys):
    first, _ = cache(capsys)
    first.path.write_bytes(b"half a file")
    _, said = cache(capsys)
    assert "the cached engine was not used: model.plan is not the file the manifest describes." in said


def test_a_kept_engine_of_another_tensorrt_is_unfit_here_with_the_reason(t4):
    assert incompatibility(t4.manifest) == ""
    old = dataclasses.replace(t4.manifest, versions={"tensorrt_rtx": "1.0.0"})
    assert "by tensorrt_rtx 1.0.0" in incompatibility(old)
