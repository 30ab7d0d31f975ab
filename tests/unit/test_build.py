"""What a deployment waits for: models that another process builds."""

import shutil
import threading

import pytest

from accel_lib.build import build, wait_until_built
from accel_lib.errors import AccelError, ServerError
from accel_lib.triton.repository import write_model


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


def test_an_unknown_model_is_refused_by_name(repository):
    with pytest.raises(AccelError, match="no such model"):
        build(["nothing"])
    assert not list(repository.iterdir())
