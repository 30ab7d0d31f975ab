"""Loading into a real Triton: versions come and go beside each other, and what is broken says so and harms nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import accel_lib
from accel_lib.artifact import Artifact, write_manifest
from accel_lib.errors import ArtifactError, RequestError, ServerError
from accel_lib.triton.config import TensorSpec
from accel_lib.triton.repository import default_config, unbuilt, write_model
from tests.tiny import NOISE, TABLE, end_at_once, tiny_artifact, tiny_model, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(4)
EXPECTED = tiny_model().reference(TEXTS)
FAILING = "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('no luck')\n"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture(scope="module")
def server(tmp_path_factory, artifact):
    folder = tmp_path_factory.mktemp("server") / "model_repository"
    write_model(folder, "tiny", artifact)
    with accel_lib.serve(folder) as running:
        yield running
        end_at_once(running)


def answers(served):
    return np.allclose(served.encode(TEXTS), EXPECTED, atol=1e-6)


def test_a_version_is_added_and_removed_while_the_other_answers(server, tmp_path):
    noise = tiny_artifact(tmp_path / "noise", NOISE)
    right, over = [], threading.Event()

    def ask():
        one = server.model("tiny", 1)
        while not over.is_set():
            right.append(answers(one))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        two = server.add("tiny", noise, version=2)
        frame = server.models()
        assert not answers(two)
        assert (server.model("tiny").encode(TEXTS) == two.encode(TEXTS)).all()
        server.remove("tiny", version=2)
    finally:
        over.set()
        thread.join()
    assert all(right)
    assert len(right) > 3
    assert frame[["name", "version", "state"]].values.tolist() == [["tiny", "1", "READY"], ["tiny", "2", "READY"]]
    with pytest.raises(ServerError, match=r"seen: tiny 2\n  fix:  choose from tiny 1; or load it"):
        server.model("tiny", 2)


def test_an_unloaded_model_says_so_and_can_be_loaded_again(server):
    served = server.model("tiny")
    server.unload("tiny")
    assert server.models()["state"].tolist() != ["READY"]
    with pytest.raises(RequestError, match=r"does not serve that model[\s\S]*server\.load\('tiny'\)"):
        served.encode(TEXTS)
    with pytest.raises(ServerError, match="choose from none"):
        server.unload("tiny")
    server.load("tiny")
    assert answers(served)


def garbage(folder, artifact):
    (folder / "model.onnx").write_bytes(b"not a graph" * 9)
    write_manifest(folder, artifact.manifest)
    Artifact.load(folder).record_validation({"passed": True})


def truncated(folder, _):
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200])


def unvalidated(folder, artifact):
    write_manifest(folder, artifact.manifest)


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (garbage, r"tiny did not load\. .*\n  seen: version 2: .*\n  fix:  .*accel\."),
        (
            truncated,
            r"model\.onnx is not the file[^\n]*\n  seen: version 2: 200 bytes where[^\n]*\n  fix:  .*accel convert",
        ),
        (unvalidated, r"not validated[^\n]*\n  seen: version 2: onnx fp32 in version 2 of tiny\n  fix:  .*validate\("),
        (
            FAILING,
            r"tiny did not load\.\n  seen: version 2: ValueError: no luck \(model\.py line 3\)\n  fix:  fix",
        ),
        ("def broken(:\n", r"seen: version 2: .*SyntaxError[^\n]*\n  fix:  fix"),
        ("import os\nos._exit(1)\n", r"seen: version 2: its Python process ended[^\n]*\n  fix:  fix"),
        ("import nothing_like_it\n", r"seen: version 2: .*No module named 'nothing_like_it'"),
    ],
    ids=["garbage", "truncated", "not validated", "raises", "syntax", "exits", "import"],
)
def test_a_broken_version_says_what_to_do_and_the_old_one_keeps_answering(server, artifact, damage, seen):
    folder = write_model(server.repository, "tiny", artifact, version=2)
    if callable(damage):
        damage(folder / "artifact", artifact)
    else:
        (folder / "model.py").rename(folder.parent / "kept.py")
        (folder / "model.py").write_text(damage)
    assert unbuilt(folder.parent) == []
    try:
        with pytest.raises(ServerError, match=seen) as caught:
            server.load("tiny")
        assert str(server.repository.parent) not in str(caught.value)
        assert answers(server.model("tiny", 1))
    finally:
        if not callable(damage):  # a version with code of one's own is not removed
            (folder.parent / "kept.py").rename(folder / "model.py")
        server.remove("tiny", version=2)


@pytest.mark.parametrize("version", [1, 2], ids=["in place of another", "new"])
def test_a_version_that_does_not_load_leaves_the_repository_as_it_was(server, artifact, tmp_path, version):
    broken = artifact.copy_to(tmp_path / "broken")
    garbage(broken.folder, broken)
    files = {path: path.read_bytes() for path in server.repository.rglob("*") if path.is_file()}
    with pytest.raises(ServerError, match=r"tiny did not load"):
        server.add("tiny", broken, version=version)
    assert {path: path.read_bytes() for path in server.repository.rglob("*") if path.is_file()} == files
    assert answers(server.model("tiny"))
    server.load("tiny")
    assert answers(server.model("tiny", 1))


def output(**change):
    return {"outputs": (TensorSpec(**({"name": "sentence_embedding", "data_type": "FP32", "dims": (16,)} | change)),)}


@pytest.mark.parametrize(
    "change",
    [
        output(name="vector"),
        output(dims=(32,)),
        output(data_type="FP16"),
        {"inputs": tuple(TensorSpec(name=n, data_type="INT32", dims=(-1,)) for n in ("input_ids", "attention_mask"))},
        {"dynamic_batching": False, "max_batch_size": 0},
    ],
    ids=["name", "width", "type", "inputs", "no batching"],
)
def test_a_configuration_of_other_tensors_is_refused_and_the_old_one_stays(server, artifact, change):
    wrong = default_config("tiny", artifact).replace(**change)
    with pytest.raises(ServerError, match=r"config\.pbtxt declares other tensors[\s\S]*fix:  declare input_ids INT64"):
        server.load("tiny", wrong)
    assert answers(server.model("tiny"))
    assert server.config("tiny").outputs == default_config("tiny", artifact).outputs


def test_an_artifact_that_was_not_validated_is_not_added(server, tmp_path):
    with pytest.raises(ArtifactError, match=r"fix:  accel_lib\.validate\("):
        server.add("other", tiny_artifact(tmp_path / "raw", TABLE, validated=False))
    assert not (server.repository / "other").exists()
