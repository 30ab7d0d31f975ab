"""What is built into a repository and what is left alone there, and waiting for what another process builds."""

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from accel_lib import course_models
from accel_lib.artifact import Artifact
from accel_lib.course_models import build, check_built_here, ensure, repository_to_serve, wait_until_built
from accel_lib.errors import AccelError, ServerError
from accel_lib.machine import Gpu, inspect_machine
from accel_lib.triton.repository import default_config, read_config, versions, write_config, write_model
from tests.tiny import TABLE, tiny_artifact


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("ACCEL_REPOSITORY", str(folder))
    return folder


@pytest.fixture(scope="module")
def artifact(tiny_model):
    import accel_lib as accel

    made = accel.to_onnx(tiny_model, progress=False)
    accel.validate(made, reference=tiny_model, texts=accel.load_texts("mixed", limit=24))
    return made


def test_a_waiting_server_goes_on_when_the_model_is_whole(repository, artifact):
    late = threading.Timer(0.2, lambda: write_model(repository, "embedding", artifact))
    late.start()
    wait_until_built(["embedding"], timeout_s=20, poll_s=0.02)
    late.join()
    assert (repository / "embedding" / "1" / "artifact" / "manifest.json").is_file()


def test_a_model_that_never_comes_is_named(repository, artifact):
    write_model(repository, "embedding", artifact)
    with pytest.raises(ServerError, match="missing: sentiment"):
        wait_until_built(["embedding", "sentiment"], timeout_s=0.05, poll_s=0.01)


def test_a_half_copied_artifact_is_waited_for(repository, artifact):
    folder = write_model(repository, "embedding", artifact) / "artifact"
    next(folder.glob("*.onnx")).write_bytes(b"half")
    with pytest.raises(ServerError, match="missing: embedding/1"):
        wait_until_built(["embedding"], timeout_s=0.05, poll_s=0.01)
    shutil.rmtree(folder)
    with pytest.raises(ServerError, match="missing: embedding/1"):
        wait_until_built(["embedding"], timeout_s=0.05, poll_s=0.01)


def test_an_engine_that_was_asked_for_is_waited_for_too(repository, artifact):
    write_model(repository, "embedding", artifact)
    with pytest.raises(ServerError, match="missing: embedding/3"):
        wait_until_built(["embedding"], engine=True, timeout_s=0.05, poll_s=0.01)


@pytest.fixture
def course(monkeypatch, tiny_model, texts):
    """`ensure` with a tiny model in two versions; both are converted to the same, which a test can count."""
    recipes = {n: dataclasses.replace(course_models._ON_CPU[1], name=f"recipe {n}") for n in (1, 2)}
    built = []
    monkeypatch.setattr(course_models, "_recipes", lambda _: recipes)
    monkeypatch.setattr(course_models, "_BUILDERS", {"embedding": lambda: built.append(1) or (tiny_model, texts)})  # type: ignore[func-returns-value]
    monkeypatch.setattr("accel_lib.models.hub.resolve", lambda _: SimpleNamespace(source=tiny_model.source))
    return built


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_ensure_built_is_kept_and_what_was_damaged_is_built_again(repository, course):
    ensure("embedding")
    assert versions(repository / "embedding") == [1, 2]
    ensure("embedding")
    assert len(course) == 1
    before = contents(repository)
    (repository / "embedding" / "2" / "artifact" / "model.onnx").write_bytes(b"half")
    ensure("embedding")
    assert contents(repository).keys() == before.keys()
    assert Artifact.load(repository / "embedding" / "2" / "artifact").manifest.recipe == "recipe 2"


@pytest.mark.parametrize("changed", [False, True])
def test_on_a_gpu_the_configuration_that_the_course_ships_becomes_a_gpu_s(
    repository, course, artifact, monkeypatch, changed
):
    t4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_bytes=15 * 2**30, driver="580.82.07")
    machine = dataclasses.replace(inspect_machine(), gpus=(t4,))
    monkeypatch.setattr("accel_lib.triton.repository.inspect_machine", lambda: machine)
    torch_fp32 = dataclasses.replace(course_models._TORCH, name="recipe 1")
    monkeypatch.setattr(course_models, "_recipes", lambda _: {1: torch_fp32})
    shipped = default_config("embedding", artifact, gpu=False)
    write_config(repository / "embedding", shipped.replace(max_queue_delay_us=9) if changed else shipped)
    ensure("embedding")
    config = read_config(repository / "embedding")
    assert (config.max_batch_size, config.instance_count) == ((64, 1) if changed else (1024, 2))
    assert course


@pytest.mark.parametrize("version", [1, 2, 5])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_model_of_one_s_own_is_never_replaced_nor_added_to(repository, course, tmp_path, version, damaged):
    theirs = tiny_artifact(tmp_path / "theirs", TABLE)
    folder = write_model(repository, "embedding", theirs, version=version)
    if damaged:
        (folder / "artifact" / "model.onnx").write_bytes(b"half")
    before = contents(repository)
    with pytest.raises(AccelError, match=rf"was not built by accel.ensure[\s\S]*seen: version {version}\n"):
        ensure("embedding")
    assert contents(repository) == before
    assert repository_to_serve() == repository
    assert (contents(repository), course) == (before, [])


@pytest.mark.usefixtures("course")
def test_a_version_that_was_added_to_the_course_s_model_stays(repository):
    ensure("embedding")
    write_model(repository, "embedding", Artifact.load(repository / "embedding" / "1" / "artifact"), version=3)
    (repository / "embedding" / "1" / "artifact" / "model.onnx").unlink()
    before = contents(repository / "embedding" / "3")
    ensure("embedding")
    assert contents(repository / "embedding" / "3") == before
    assert Artifact.load(repository / "embedding" / "3" / "artifact").manifest.recipe == ""
    with pytest.raises(AccelError, match=r"seen: version 3"):
        check_built_here(repository / "embedding", [3])


@pytest.mark.usefixtures("repository")
def test_two_processes_that_build_one_model_build_it_once(course):
    with ThreadPoolExecutor() as pool:
        list(pool.map(ensure, ["embedding"] * 3))
    assert len(course) == 1


@pytest.mark.usefixtures("course")
def test_a_repository_that_is_not_there_is_an_error_and_is_not_made(repository, monkeypatch):
    monkeypatch.setenv("ACCEL_REPOSITORY", str(repository / "mistyped"))
    for use in (ensure, repository_to_serve):
        with pytest.raises(AccelError, match=r"no such model repository[\s\S]*mistyped"):
            use()
    assert contents(repository) == {}
    assert not (repository / "mistyped").exists()


def test_one_s_own_repository_is_served_as_it_is(repository, course, artifact, monkeypatch, tmp_path):
    with pytest.raises(AccelError, match=r"models holds no model that is built[\s\S]*accel build embedding"):
        repository_to_serve()
    write_model(repository, "mine", artifact)
    before = contents(repository)
    assert repository_to_serve() == repository
    monkeypatch.delenv("ACCEL_REPOSITORY")
    repository.rename(tmp_path / "model_repository")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert repository_to_serve() == tmp_path / "model_repository"
    assert contents(tmp_path / "model_repository") == before
    assert course == []


def test_an_unknown_model_is_refused_by_name(repository):
    with pytest.raises(AccelError, match="no such model"):
        build(["nothing"])
    assert not list(repository.iterdir())
