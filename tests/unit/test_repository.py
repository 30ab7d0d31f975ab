"""A model repository on disk: configurations that keep what they don't name, versions written whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from accel_lib.artifact import Artifact
from accel_lib.errors import AccelError, ArtifactError, OutputError, ServerError
from accel_lib.texts import load_texts
from accel_lib.triton.config import ModelConfig, TensorSpec
from accel_lib.triton.repository import (
    default_config,
    model_names,
    read_config,
    remove_version,
    rollback_on_error,
    unbuilt,
    versions,
    write_config,
    write_model,
)
from tests.tiny import NOISE, TABLE, tiny_artifact

COURSE = Path(__file__).parents[2] / "model_repository"
IMPORT = "from accel_lib.triton.backend import TritonPythonModel as TritonPythonModel\n"
FOREIGN = """
name: "theirs"
platform: "onnxruntime_onnx"
max_batch_size: 8
version_policy { latest { num_versions: 3 } }
input { name: "image" data_type: TYPE_FP16 format: FORMAT_NCHW dims: [3, 224, 224] }
output { name: "scores" data_type: TYPE_FP32 dims: 10 label_filename: "labels.txt" }
instance_group { count: 2 kind: KIND_GPU gpus: [0, 1] }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching {
  preserve_ordering: true
  priority_queue_policy { key: 1 value { max_queue_size: 5 } }
  max_queue_delay_microseconds: 100
}
parameters { key: "threads" value { string_value: "2" } }
parameters { key: "theirs" value { string_value: "kept" } }
model_warmup { name: "once" batch_size: 1 }
"""
SETTINGS = {
    "max_batch_size": 16,
    "inputs": (TensorSpec(name="ids", data_type="INT64", dims=(-1,), ragged=True),),
    "outputs": (TensorSpec(name="vector", data_type="FP32", dims=(16,)),),
    "max_queue_delay_us": 500,
    "preferred_batch_sizes": (4, 8),
    "priority_levels": 3,
    "default_priority_level": 2,
    "max_queue_size": 9,
    "queue_timeout_us": 1_000,
    "instance_count": 2,
    "instance_kind": "cpu",
    "versions": (1, 3),
    "response_cache": True,
    "max_batch_tokens": 256,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def without_kept(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, kept=b"")


def test_every_setting_survives_text_and_protobuf():
    config = ModelConfig(name="mine", **SETTINGS)
    assert {name for name, value in SETTINGS.items() if value == getattr(ModelConfig(name="mine"), name)} == set()
    assert without_kept(ModelConfig.from_protobuf(config.to_protobuf())) == config
    assert without_kept(ModelConfig.from_text(config.to_text())) == config
    off = ModelConfig(name="mine", dynamic_batching=False, versions="latest")
    assert without_kept(ModelConfig.from_text(off.to_text())) == off


def test_a_foreign_configuration_is_written_back_unchanged():
    config = ModelConfig.from_text(FOREIGN)
    assert (config.instance_count, config.instance_kind, config.threads, config.versions) == (2, "gpu", 2, "latest")
    again = ModelConfig.from_text(config.to_text())
    assert again.to_protobuf() == config.to_protobuf()
    assert again == config


def test_a_change_leaves_every_field_that_it_does_not_name():
    message = ModelConfig.from_text(FOREIGN).to_protobuf()
    changed = ModelConfig.from_text(FOREIGN).replace(max_queue_delay_us=7, threads=None, instance_count=4).to_protobuf()
    assert changed.dynamic_batching.max_queue_delay_microseconds == 7
    assert set(changed.parameters) == {"theirs"}
    message.dynamic_batching.max_queue_delay_microseconds = 7
    message.parameters.pop("threads")
    message.instance_group[0].count = 4
    assert changed == message


def test_lists_do_where_tuples_are_meant():
    config = ModelConfig(name="mine", preferred_batch_sizes=[4, 8], versions=[2])
    assert without_kept(ModelConfig.from_text(config.to_text())) == config


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(ServerError, match=r"no such setting.*\n  seen: delay, kept\n.*max_queue_delay_us"):
        ModelConfig(name="mine").replace(delay=3, kept=b"")


OUT_OF_RANGE = [("max_batch_size", value) for value in (-1, True, 2**31, 1.5, "9")]
OUT_OF_RANGE += [("instance_count", 0), ("max_batch_tokens", 0), ("threads", 0), ("max_queue_delay_us", -1)]


@pytest.mark.parametrize(("setting", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(ServerError, match=f"seen: {setting}={value!r}"):
        ModelConfig(name="mine").replace(**{setting: value})


@pytest.mark.parametrize(
    "setting",
    [
        {"instance_kind": "tpu"},
        {"preferred_batch_sizes": ("four",)},
        {"preferred_batch_sizes": 4},
        {"versions": 2},
        {"response_cache": "yes"},
        {"outputs": (TensorSpec(name="vector", data_type="FLOAT", dims=(16,)),)},
    ],
)
def test_a_value_that_the_message_cannot_hold_is_refused(setting):
    with pytest.raises(ServerError, match="no configuration may hold"):
        ModelConfig(name="mine", **setting).to_protobuf()


def test_batching_settings_without_batching_are_refused():
    with pytest.raises(ServerError, match=r"seen: max_queue_delay_us=5\n  fix:  pass dynamic_batching=True"):
        ModelConfig(name="mine", max_queue_delay_us=5, dynamic_batching=False)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('name: "mine"\nmax_batch_sise: 8\n', "line 'max_batch_sise: 8'.*\n.*fix line 2 of mine/config.pbtxt"),
        ('name: "mine"\nmax_batch_size: "8"\n', "fix line 2"),
        ('name: "mine"\n\ninput {\n  data_type: TYPE_INT65\n}', "TYPE_INT65.*\n.*fix line 4"),
        ('name: "mine" input {', "fix line 1"),
        ("\x00\x01", "fix line 1"),
        ('name: "theirs"', "seen: name: 'theirs'\n  fix:  give both the same name"),
        ("", "seen: name: ''"),
        ('name: "mine"\nparameters { key: "threads" value { string_value: "two" } }', "'two' in the configuration"),
        ('name: "mine"\nmax_batch_size: -8', "seen: max_batch_size=-8"),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_its_place(tmp_path, text, seen):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.pbtxt").write_text(text)
    with pytest.raises(ServerError, match=seen) as caught:
        read_config(tmp_path / "mine")
    assert str(tmp_path) not in str(caught.value)


def test_another_model_s_configuration_is_not_replaced(tmp_path):
    write_config(tmp_path / "theirs", ModelConfig(name="theirs"))
    with pytest.raises(ServerError, match=r"of another model, so it stays\.\n  seen: name: 'theirs'"):
        write_config(tmp_path / "theirs", ModelConfig(name="mine"))
    assert read_config(tmp_path / "theirs").name == "theirs"


def test_a_missing_model_is_refused_with_those_there_are(tmp_path):
    write_config(tmp_path / "mine", ModelConfig(name="mine"))
    with pytest.raises(ServerError, match=r"no model 'other'.*\n.*\n.*choose from mine"):
        read_config(tmp_path / "other")


def test_a_model_is_written_with_one_import_its_artifact_and_a_configuration(tmp_path, artifact):
    folder = write_model(tmp_path, "mine", artifact, version=3)
    assert folder == tmp_path / "mine" / "3"
    assert (folder / "model.py").read_text() == IMPORT
    assert Artifact.load(folder / "artifact").manifest == artifact.manifest
    assert without_kept(read_config(folder.parent)) == default_config("mine", artifact)
    assert {path.name for path in tmp_path.rglob(".*")} == set()
    assert (model_names(tmp_path), versions(folder.parent), unbuilt(folder.parent)) == (["mine"], [3], [])


def test_a_version_is_replaced_and_the_configuration_stays(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact, config=default_config("mine", artifact).replace(max_queue_delay_us=9))
    other = tiny_artifact(tmp_path / "other", NOISE)
    write_model(tmp_path, "mine", other)
    assert Artifact.load(tmp_path / "mine" / "1" / "artifact").manifest == other.manifest
    assert read_config(tmp_path / "mine").max_queue_delay_us == 9


@pytest.mark.parametrize(
    ("name", "version"),
    [("", 1), ("../mine", 1), (".mine", 1), ("my model", 1), ("mine/2", 1), ("mine", 0), ("mine", "1"), ("mine", True)],
)
def test_names_and_versions_that_cannot_be_folders_are_refused(tmp_path, artifact, name, version):
    with pytest.raises(ServerError, match=r"fix:  (use letters|pass version=1)"):
        write_model(tmp_path / "repository", name, artifact, version=version)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_was_not_validated_leaves_nothing(tmp_path):
    raw = tiny_artifact(tmp_path / "raw", TABLE, validated=False)
    with pytest.raises(ArtifactError, match=r"not validated[\s\S]*accel_lib\.validate\("):
        write_model(tmp_path / "repository", "mine", raw)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("truncated", r"model\.onnx is not the file[\s\S]*100 bytes where"),
        ("no tokenizer", r"tokenizer\.json is not the file[\s\S]*no such file"),
        ({"name": "theirs"}, r"of another model\.\n  seen: 'theirs'\n  fix:  config\.replace\(name='mine'\)"),
        ({"instance_kind": "tpu"}, "no configuration may hold"),
        ({"outputs": ()}, "another output"),
    ],
)
def test_a_write_that_is_refused_leaves_the_version_that_was_there(tmp_path, artifact, fault, seen):
    repository, other = tmp_path / "repository", tiny_artifact(tmp_path / "other", NOISE)
    write_model(repository, "mine", artifact)
    before = tree(repository)
    if fault == "truncated":
        other.path.write_bytes(other.path.read_bytes()[:100])
    if fault == "no tokenizer":
        (other.folder / "tokenizer.json").unlink()
    config = default_config("mine", other).replace(**fault) if isinstance(fault, dict) else None
    for version in (1, 2):
        with pytest.raises(AccelError, match=seen):
            write_model(repository, "mine", other, version=version, config=config)
    assert tree(repository) == before


def test_another_output_needs_another_name(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact)
    wide = tiny_artifact(tmp_path / "wide", TABLE.repeat(2, axis=1))
    with pytest.raises(ServerError, match=r"embedding \[16\] in config.pbtxt, sentence_embedding \[32\] in the art"):
        write_model(tmp_path, "mine", wide, version=2)
    assert versions(tmp_path / "mine") == [1]
    write_model(tmp_path, "mine", wide, version=1)
    assert read_config(tmp_path / "mine").outputs[0].dims == (32,)


def test_versions_without_an_artifact_are_named_unless_they_need_none(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact)
    for version, code in {"2": IMPORT, "3": "class TritonPythonModel: ...\n", "old": IMPORT}.items():
        (tmp_path / "mine" / version).mkdir()
        (tmp_path / "mine" / version / "model.py").write_text(code)
    assert versions(tmp_path / "mine") == [1, 2, 3]
    assert unbuilt(tmp_path / "mine") == [2]


def test_a_removed_version_leaves_the_others_and_the_last_takes_the_model(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact)
    write_model(tmp_path, "mine", artifact, version=2)
    assert remove_version(tmp_path, "mine", 1) == [2]
    with pytest.raises(ServerError, match=r"mine has no version 1\.\n  seen: versions 2"):
        remove_version(tmp_path, "mine", 1)
    assert remove_version(tmp_path, "mine", 2) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["model.py", "weights.pt", "artifact/notes.txt"])
def test_a_version_with_somebody_s_own_files_is_neither_replaced_nor_removed(tmp_path, artifact, file):
    write_model(tmp_path, "mine", artifact)
    (tmp_path / "mine" / "1" / file).write_text("class TritonPythonModel: ...")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"seen: {Path(file).parts[0]}"):
        write_model(tmp_path, "mine", tiny_artifact(tmp_path.with_name("other"), NOISE))
    with pytest.raises(OutputError, match="did not write"):
        remove_version(tmp_path, "mine", 1)
    assert tree(tmp_path) == before


def test_a_model_of_another_backend_keeps_its_configuration(tmp_path, artifact):
    (tmp_path / "theirs" / "1").mkdir(parents=True)
    (tmp_path / "theirs" / "config.pbtxt").write_text(FOREIGN)
    (tmp_path / "theirs" / "1" / "model.onnx").write_bytes(b"weights")
    for version in (1, 2):
        with pytest.raises(ServerError, match="theirs is a model of another backend"):
            write_model(tmp_path, "theirs", artifact, version=version)
    assert tree(tmp_path) == {"theirs/config.pbtxt": FOREIGN.encode(), "theirs/1/model.onnx": b"weights"}


def test_a_model_s_last_version_leaves_what_lies_beside_it(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact)
    (tmp_path / "mine" / "labels.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"seen: labels\.txt"):
        remove_version(tmp_path, "mine", 1)
    assert versions(tmp_path / "mine") == [1]


def test_comments_of_a_configuration_stay_when_a_version_is_added(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact)
    file = tmp_path / "mine" / "config.pbtxt"
    file.write_text(f"# why it is so\n{file.read_text()}")
    write_model(tmp_path, "mine", artifact, version=2)
    assert file.read_text().startswith("# why it is so")


def test_another_output_keeps_the_other_settings(tmp_path, artifact):
    write_model(tmp_path, "mine", artifact, config=default_config("mine", artifact).replace(max_queue_delay_us=9))
    write_model(tmp_path, "mine", tiny_artifact(tmp_path.with_name("wide"), TABLE.repeat(2, axis=1)))
    config = read_config(tmp_path / "mine")
    assert (config.outputs[0].dims, config.max_queue_delay_us) == ((32,), 9)


@pytest.mark.parametrize("there", [True, False])
def test_what_fails_leaves_the_model_as_it_was(tmp_path, artifact, there):
    if there:
        write_model(tmp_path, "mine", artifact)
        (tmp_path / "mine" / "labels.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ServerError), rollback_on_error(tmp_path / "mine"):
        write_model(tmp_path, "mine", tiny_artifact(tmp_path.with_name(f"other-{there}"), NOISE))
        raise ServerError("Triton could not load it.", fix="another artifact")
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.rglob(".*")} == set()


@pytest.mark.parametrize("name", ["embedding", "sentiment"])
def test_the_course_s_models_are_committed_as_they_are_served(name, artifact):
    classes = len(set(load_texts("sentiment-test").labels))
    output_name, dimension = {"embedding": ("sentence_embedding", 384), "sentiment": ("logits", classes)}[name]
    manifest = dataclasses.replace(artifact.manifest, output_name=output_name, dimension=dimension)
    expected = default_config(name, Artifact(artifact.folder, manifest))
    assert without_kept(read_config(COURSE / name)) == expected
    assert (COURSE / name / "config.pbtxt").read_text() == expected.to_text()
    assert versions(COURSE / name) == [1, 2]
    assert {(COURSE / name / version / "model.py").read_text() for version in "12"} == {IMPORT}
