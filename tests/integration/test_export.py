"""A served model leaves as one zip, serves elsewhere as it did here, and can be rebuilt from what its README says."""

from __future__ import annotations

import dataclasses
import shlex
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.cli import app
from accel_lib.errors import ArtifactError, OutputError, ServerError
from accel_lib.triton.export import write_export
from accel_lib.triton.repository import default_config
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with accel.serve(tmp_path_factory.mktemp("model_repository")) as running:
        yield running
        end_at_once(running)


@pytest.fixture(scope="module")
def mine(server, tmp_path_factory):
    served = server.add("mine", tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE), version=3)
    served.configure(max_queue_delay_us=2_000, max_batch_tokens=64)
    return served


def unpack(path, folder):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


def readme(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("README.md").decode()


def rebuilding(path):
    return readme(path).partition("## Rebuild it\n\n```\n")[2].partition("\n```")[0]


def test_an_export_serves_elsewhere_with_the_same_vectors_and_settings(mine, tmp_path):
    there = unpack(mine.export(tmp_path / "new" / "export.zip"), tmp_path / "elsewhere")
    with accel.serve(there / "model_repository") as theirs:
        served = theirs.model("mine", version=3)
        np.testing.assert_array_equal(served.encode(TEXTS), mine.encode(TEXTS))
        assert served.config.to_json() == mine.config.to_json()
    assert served.config.max_batch_tokens == 64


def test_an_export_holds_what_serves_and_names_no_place_of_this_machine(mine, tmp_path):
    there = unpack(mine.export(tmp_path / "export.zip"), tmp_path / "elsewhere")
    names = {str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()}
    inside = {f"artifact/{name}" for name in ("model.onnx", "tokenizer.json", "manifest.json")} | {"model.py"}
    model = "model_repository/mine"
    assert names == {"README.md", f"{model}/config.pbtxt", *(f"{model}/3/{name}" for name in inside)}
    for file in (there / name for name in names if not name.endswith(".onnx")):
        assert str(tmp_path.parent) not in file.read_text()


def test_the_readme_tells_versions_settings_and_what_was_measured(mine, tmp_path):
    run = accel.load_test(mine, TEXTS, concurrency=2, seconds=0.3, warmup_s=0.1)
    text = readme(mine.export(tmp_path / "export.zip", run, "0.25 € an hour"))
    for said in (run.headline, run.machine, "0.25 € an hour", "Triton 2.51", "accel.serve('model_repository')"):
        assert said in text
    assert "docker run --rm --shm-size" in text


def test_the_rebuild_command_makes_the_same_model_again(tiny_model, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifact = accel.to_onnx(tiny_model, output=tmp_path / "first", progress=False)
    artifact = accel.validate(artifact, reference=tiny_model, texts=accel.load_texts("short", limit=16)).artifact  # type: ignore[assignment]
    command = rebuilding(write_export("export.zip", artifact, default_config("mine", artifact)))
    config = next(tmp_path_factory.getbasetemp().glob("models*/tiny/config.json"))
    (tmp_path / "tiny").symlink_to(config.parent)
    accel_word, *words = shlex.split(command)
    done = CliRunner().invoke(app, words)
    assert (accel_word, done.exit_code) == ("accel", 0)
    again = Artifact.load("artifact")
    assert again.validated
    assert again.manifest.source == artifact.manifest.source


@pytest.mark.parametrize(
    ("form", "changes", "command"),
    [
        ("onnx", {"source": "hub:her/model@0a1b2c, weights 12"}, "--output artifact --revision 0a1b2c"),
        ("tensorrt", {}, "accel convert --model tiny --precision fp32 --output artifact --target sm75"),
        ("onnx", {"source": "pypi:a==1 + head sha256:12", "model": "a-classifier"}, '(accel.load_model("a"), labelled'),
    ],
)
def test_each_kind_of_model_has_its_own_way_to_be_rebuilt(tmp_path, form, changes, command):
    target = "sm75" if form == "tensorrt" else "any"
    artifact = tiny_artifact(tmp_path / "artifact", TABLE, form=form, target=target)
    path = artifact.folder / "manifest.json"
    path.write_text(dataclasses.replace(artifact.manifest, **changes).to_json())
    export = write_export(tmp_path / "export.zip", Artifact.load(artifact.folder), default_config("mine", artifact))
    assert command in rebuilding(export)
    assert ("--gpus all" in readme(export)) == (form == "tensorrt")
    assert any(name.endswith("artifact/model.onnx") for name in zipfile.ZipFile(export).namelist())


def test_a_refused_export_leaves_the_old_file_and_nothing_else(server, mine, tmp_path):
    path = mine.export(tmp_path / "export.zip")
    before = path.read_bytes()
    onnx = server.repository / "mine" / "3" / "artifact" / "model.onnx"
    whole = onnx.read_bytes()
    try:
        onnx.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match="not the file the manifest describes"):
            mine.export(path)
    finally:
        onnx.write_bytes(whole)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["export.zip"]


def test_an_unvalidated_artifact_is_not_exported(tmp_path):
    artifact = tiny_artifact(tmp_path / "artifact", TABLE, validated=False)
    with pytest.raises(ArtifactError, match="not validated"):
        write_export(tmp_path / "export.zip", artifact, default_config("mine", artifact))
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]


def test_only_an_export_is_overwritten(tmp_path):
    artifact = tiny_artifact(tmp_path / "artifact", TABLE)
    write_export(tmp_path / "export.zip", artifact, default_config("mine", artifact))
    write_export(tmp_path / "export.zip", artifact, default_config("again", artifact))
    assert "# again" in readme(tmp_path / "export.zip")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("README.md", "mine")
    (tmp_path / "thesis.zip").write_text("no zip at all")
    for name in ("photos.zip", "thesis.zip"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputError, match=rf"{name} was not written by this library, so it stays"):
            write_export(tmp_path / name, artifact, default_config("mine", artifact))
        assert (tmp_path / name).read_bytes() == before


def test_a_folder_is_not_overwritten(mine, tmp_path):
    with pytest.raises(ServerError, match="An export is one file"):
        mine.export(tmp_path)
