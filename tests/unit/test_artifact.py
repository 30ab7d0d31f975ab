"""The manifest beside every artifact: written whole, checked before use."""

import dataclasses
import json
from pathlib import Path

import pytest

from accel_lib.artifact import Artifact, Manifest, Profile, write_manifest
from accel_lib.atomic import atomic_directory
from accel_lib.errors import ArtifactError

MANIFEST = Manifest(
    model="tiny",
    source="made on the spot",
    task="classification",
    format="onnx",
    precision="fp16",
    output_name="logits",
    dimension=2,
    max_length=64,
    labels=("negative", "positive"),
    prompts={"query": "query: "},
    profiles=(Profile(min=(1, 1), opt=(8, 32), max=(32, 64)),),
    versions={"onnx": "1.0"},
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with atomic_directory(tmp_path / "tiny") as draft:
        (draft / "model.onnx").write_bytes(b"weights" * 100)
        (draft / "tokenizer.json").write_text("{}")
        manifest = write_manifest(draft, MANIFEST)
    return Artifact(tmp_path / "tiny", manifest)


def test_a_manifest_survives_the_round_trip_through_json():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_a_written_artifact_loads_with_every_field(artifact: Artifact):
    loaded = Artifact.load(artifact.folder)
    assert loaded.manifest == artifact.manifest
    assert set(loaded.manifest.files) == {"model.onnx", "tokenizer.json"}
    assert loaded.size_bytes == 700


def test_an_artifact_shows_what_it_is_and_not_where(artifact: Artifact):
    assert "fp16" in repr(artifact)
    assert str(artifact.folder.parent) not in repr(artifact) + artifact._repr_html_()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "no such file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"weights" * 50), "350 bytes where the manifest says 700"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"Weights" * 100), "SHA-256 differs"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 99}'), "schema 99"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 1, "model": "x"}'), "cannot be read"),
    ],
)
def test_a_damaged_artifact_is_refused_and_says_what_to_run(artifact: Artifact, damage, said: str):
    damage(artifact.folder)
    with pytest.raises(ArtifactError, match=said) as refusal:
        Artifact.load(artifact.folder)
    assert "accel convert" in refusal.value.fix


def test_a_manifest_field_of_a_later_version_is_refused_not_ignored(artifact: Artifact):
    data = json.loads(artifact.manifest.to_json()) | {"unheard_of": 1}
    (artifact.folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="unheard_of"):
        Artifact.load(artifact.folder)


def test_an_interrupted_write_leaves_no_folder(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "tiny") as draft:
        (draft / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_artifact(artifact: Artifact):
    with pytest.raises(RuntimeError), atomic_directory(artifact.folder) as draft:
        (draft / "model.onnx").write_bytes(b"half")
        raise RuntimeError
    assert Artifact.load(artifact.folder).manifest == artifact.manifest
    assert [path.name for path in artifact.folder.parent.iterdir()] == ["tiny"]


def test_a_rewrite_replaces_the_old_artifact_whole(artifact: Artifact):
    with atomic_directory(artifact.folder) as draft:
        (draft / "model.onnx").write_bytes(b"new")
        write_manifest(draft, dataclasses.replace(MANIFEST, precision="fp32"))
    assert Artifact.load(artifact.folder).manifest.precision == "fp32"
    assert [path.name for path in artifact.folder.parent.iterdir()] == ["tiny"]


def test_a_recorded_validation_is_read_back_and_a_new_seal_forgets_it(artifact: Artifact):
    assert not artifact.validated
    artifact.record_validation({"passed": True})
    assert Artifact.load(artifact.folder).validated
    with atomic_directory(artifact.folder) as draft:
        (draft / "model.onnx").write_bytes(b"new")
        write_manifest(draft, dataclasses.replace(MANIFEST, validation={"passed": True}))
    assert not Artifact.load(artifact.folder).validated


def test_a_copy_is_a_whole_artifact_of_its_own(artifact: Artifact, tmp_path: Path):
    artifact.copy_to(tmp_path / "elsewhere" / "copy")
    assert Artifact.load(tmp_path / "elsewhere" / "copy").manifest == artifact.manifest
