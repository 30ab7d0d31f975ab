"""OpenVINO as engine and as format: the numbers of the others, the precision that was asked for, refusals by name."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from accel_lib import Artifact, open_engine, to_onnx, to_openvino, validate
from accel_lib.engines import openvino as engines
from accel_lib.engines.batching import run_batches
from accel_lib.errors import ArtifactError, ConversionError, EngineError, OutputError
from accel_lib.texts import Texts, load_texts
from tests.tiny import TABLE, tiny_artifact

# The first batches of a process, from several threads that change places as often as can be.
AT_ONCE = """
import os, sys, threading
import numpy as np
from accel_lib.artifact import Artifact
from accel_lib.engines.openvino import OpenVINOEngine

sys.setswitchinterval(1e-6)
engine = OpenVINOEngine(Artifact.load(sys.argv[1]), threads=2)
ids, together = np.ones((1, 8), dtype=np.int64), threading.Barrier(4)
threads = [
    threading.Thread(target=lambda: (together.wait(), engine.run_on_one_core(ids, ids)), daemon=True) for _ in range(4)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
os._exit(sum(thread.is_alive() for thread in threads))
"""

bf16 = pytest.mark.skipif(not engines.has_bf16(), reason="this CPU multiplies no BF16")


@pytest.fixture(scope="module")
def onnx(tiny_model, tmp_path_factory):
    return {
        packed: to_onnx(tiny_model, packed=packed, output=tmp_path_factory.mktemp("onnx") / "made", progress=False)
        for packed in (False, True)
    }


@pytest.fixture(scope="module")
def int8(onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "int8"
    return to_openvino(onnx[True], precision="int8", texts=load_texts("short", limit=40), output=folder, progress=False)


@pytest.fixture(scope="module")
def rows(tiny_model):
    return tiny_model.tokenize(list(load_texts("mixed", limit=40)))


@pytest.mark.parametrize("packed", [False, True])
def test_an_onnx_file_gives_the_numbers_of_onnx_runtime(onnx, rows, packed):
    ours, theirs = (
        run_batches(open_engine(onnx[packed], runtime=runtime), rows) for runtime in ("openvino", "onnxruntime")
    )
    assert np.abs(ours - theirs).max() < 1e-5


def test_threads_whose_first_batches_meet_do_not_wait_for_each_other(onnx):
    for _ in range(4):  # a quarter of such processes hung, on two cores
        done = subprocess.run([sys.executable, "-c", AT_ONCE, onnx[False].folder], check=False, timeout=200)
        assert done.returncode == 0, "threads hang"


def test_the_precision_is_fp32_unless_bf16_is_asked_for(onnx):
    engine = open_engine(onnx[False], runtime="openvino")
    assert (engine.precision, engine.computed_precision()) == ("fp32", "fp32")  # type: ignore[attr-defined]


@bf16
def test_bf16_is_a_precision_of_its_own(onnx, rows):
    engine = open_engine(onnx[True], runtime="openvino", precision="bf16")
    assert (engine.name, engine.precision) == ("onnx bf16 packed openvino", "bf16")
    assert engine.computed_precision() == "bf16"  # type: ignore[attr-defined]
    moved = np.abs(run_batches(engine, rows) - run_batches(open_engine(onnx[True]), rows)).max()
    assert 1e-5 < moved < 0.05


def test_bf16_is_refused_by_name_where_the_cpu_has_none(onnx, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "BF16", frozenset({"an instruction of tomorrow"}))
    with pytest.raises(EngineError, match="no BF16"):
        open_engine(onnx[False], runtime="openvino", precision="bf16")
    with pytest.raises(ConversionError, match="no BF16"):
        to_openvino(onnx[False], precision="bf16", output=tmp_path / "bf16")
    assert not (tmp_path / "bf16").exists()


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_side_by_side_give_the_numbers_of_batches_in_a_row(onnx, rows, threads):
    engine = open_engine(onnx[True], runtime="openvino", threads=threads)
    assert engine.lanes == threads  # type: ignore[attr-defined]
    together = run_batches(engine, rows, max_batch_size=3)
    assert together == pytest.approx(run_batches(engine, rows, max_batch_size=3, side_by_side=False), abs=1e-5)


def test_threads_that_share_an_engine_do_not_mix_their_answers(onnx, rows):
    engine = open_engine(onnx[False], runtime="openvino", threads=2)
    alone = [engine.run(*rows.take(np.array([i])).padded(0)) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: engine.run(*rows.take(np.array([i])).padded(0)), range(16)))
    assert np.abs(np.concatenate(alone) - np.concatenate(together)).max() < 1e-6


def test_what_the_engine_cannot_do_is_refused(onnx, tmp_path):
    engine = open_engine(onnx[False], runtime="openvino")
    ids = np.full((1, 4), 10**6)
    with pytest.raises(EngineError, match="1 to 128 tokens"):
        engine.run(np.ones((1, 129), np.int64), np.ones((1, 129), np.int64))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.run(ids, np.ones_like(ids))
    with pytest.raises(EngineError, match="runs on CPUs"):
        open_engine(onnx[False], runtime="openvino", device="cuda:0")
    with pytest.raises(EngineError, match="does not run that format"):
        open_engine(tiny_artifact(tmp_path / "plan", TABLE, form="tensorrt"), runtime="openvino")
    rounded = tiny_artifact(tmp_path / "int8", TABLE, precision="int8")
    with pytest.raises(EngineError, match="takes FP32 files of ONNX"):
        open_engine(rounded, runtime="openvino")


def test_an_artifact_of_openvino_names_its_engine_and_is_validated(onnx, tiny_model, texts, tmp_path):
    made = to_openvino(onnx[True], output=tmp_path / "fp32", progress=False)
    assert sorted(made.manifest.files) == ["model.bin", "model.xml", "tokenizer.json"]
    assert made.size_bytes == sum(made.manifest.files[name]["bytes"] for name in ("model.xml", "model.bin"))
    verdict = validate(made, reference=tiny_model, texts=texts)
    assert verdict.passed
    assert open_engine(Artifact.load(made.folder)).name == "openvino fp32 packed"


def test_int8_computes_in_int8_and_keeps_what_it_was_calibrated_on(int8, onnx, rows):
    engine = open_engine(int8)
    assert (engine.precision, engine.computed_precision()) == ("int8", "int8")  # type: ignore[attr-defined]
    found, wanted = run_batches(engine, rows), run_batches(open_engine(onnx[True]), rows)
    assert (found * wanted).sum(axis=1).mean() > 0.95
    told = int8.manifest.calibration
    assert (told["texts"], told["source"]) == (40, "short, from accel_lib")
    assert "40 texts" in int8.manifest.notes[-1]
    assert "0 matrix products kept in FP32" in int8.manifest.notes[-1]
    assert int8.size_bytes < 0.5 * onnx[True].size_bytes


def test_products_that_are_kept_compute_in_fp32(int8, onnx, tmp_path):
    how = {"precision": "int8", "texts": load_texts("short", limit=40), "progress": False}
    kept = to_openvino(onnx[True], keep=["layer.0.", "layer.1."], output=tmp_path / "kept", **how)
    assert open_engine(kept).computed_precision() == "fp32"  # type: ignore[attr-defined]
    assert "12 matrix products kept in FP32" in kept.manifest.notes[-1]
    assert kept.size_bytes > int8.size_bytes
    with pytest.raises(ConversionError, match="No matrix product"):
        to_openvino(onnx[True], keep=["layer.9."], output=tmp_path / "none", **how)
    with pytest.raises(ConversionError, match="Only INT8 keeps nodes"):
        to_openvino(onnx[True], keep=["layer.0."], output=tmp_path / "none")


def test_a_manifest_that_claims_another_precision_fails_its_validation(int8, tiny_model, texts, tmp_path):
    from accel_lib.artifact import MANIFEST_FILE
    from accel_lib.errors import ValidationError

    claimed = int8.copy_to(tmp_path / "claimed")
    manifest = claimed.folder / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"precision": "int8"', '"precision": "fp32"'))
    with pytest.raises(ValidationError, match=r"precision of the graph int8, allowed fp32"):
        validate(Artifact.load(claimed.folder), reference=tiny_model, texts=texts)


def test_the_cache_is_used_again_until_something_has_changed(tiny_model, capsys):
    first, again = (to_openvino(tiny_model) for _ in range(2))
    assert again.manifest.created == first.manifest.created
    assert "openvino fp32: reused" in capsys.readouterr().out
    short = to_openvino(tiny_model, precision="int8", texts=Texts(["one text", "another text"], name="two"))
    other = to_openvino(tiny_model, precision="int8", texts=Texts(["one text", "a third text"], name="two"))
    assert short.manifest.calibration != other.manifest.calibration


def test_what_cannot_be_converted_leaves_nothing_behind(onnx, tmp_path):
    with pytest.raises(ConversionError, match="no such precision"):
        to_openvino(onnx[False], precision="fp4", output=tmp_path / "made")
    with pytest.raises(ArtifactError, match="from ONNX in FP32"):
        to_openvino(tiny_artifact(tmp_path / "int8", TABLE, precision="int8"), output=tmp_path / "made")
    with pytest.raises(OutputError, match="replace the one it is made from"):
        to_openvino(onnx[False], output=onnx[False].folder)
    broken = onnx[False].copy_to(tmp_path / "broken")
    broken.path.write_bytes(b"not a model")
    with pytest.raises(ConversionError, match="conversion to OpenVINO failed"):
        to_openvino(broken, output=tmp_path / "made", progress=False)
    assert not (tmp_path / "made").exists()
    made = to_openvino(onnx[False], output=tmp_path / "made", progress=False)
    made.path.write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"OpenVINO cannot load model\.xml"):
        open_engine(made)


def test_nothing_is_reported_to_its_makers(onnx, tmp_path):
    code = (
        "import pathlib, sys; from accel_lib import Artifact, open_engine, to_openvino; a, b = sys.argv[1:];"
        "made = to_openvino(Artifact.load(a), precision='int8', texts=['a text', 'another one'], output=b);"
        "open_engine(made)"
    )
    hidden = ("CI", "TF_BUILD", "JENKINS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(onnx[False].folder), str(tmp_path / "made")]
    subprocess.run(command, env=environment, check=True)
    assert not (tmp_path / "intel").exists()  # where the identity of a reporting machine would be
