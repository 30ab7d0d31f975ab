"""A Triton that dies comes back, with its models, their settings and its ports; one that is stopped stays away."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import numpy as np
import psutil
import pytest

import accel_lib
from accel_lib.errors import AccelError, ServerError
from accel_lib.service.supervisor import Supervisor
from accel_lib.triton import process
from accel_lib.triton.repository import write_model
from tests.tiny import TABLE, tiny_artifact, tiny_model, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(4)
EXPECTED = tiny_model().reference(TEXTS)


@pytest.fixture
def repository(tmp_path):
    artifact = tiny_artifact(tmp_path / "artifact", TABLE)
    write_model(tmp_path / "model_repository", "tiny", artifact)
    return tmp_path / "model_repository"


@pytest.fixture
def supervisor(repository, monkeypatch):
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    made = Supervisor(repository)
    made.start()
    yield made
    made.stop()


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def kill(supervisor):
    first = supervisor.server
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not supervisor.ready)
    wait_for(lambda: supervisor.ready)
    assert supervisor.server is not first


def quietly(supervisor):
    with contextlib.suppress(AccelError):  # it is being loaded
        return answers(supervisor)
    return False


def answers(supervisor):
    return np.allclose(supervisor.server.model("tiny").encode(TEXTS), EXPECTED, atol=1e-6)


def test_a_killed_triton_comes_back_with_its_models_settings_and_ports(supervisor):
    assert supervisor.served == {"tiny"}
    ports = supervisor.server.ports
    supervisor.configure("tiny", {"max_queue_delay_us": 700})
    supervisor.configure("tiny", {"preferred_batch_sizes": [4]})
    kill(supervisor)
    assert supervisor.restarts == 1
    assert supervisor.server.ports == ports
    assert answers(supervisor)
    config = supervisor.server.model("tiny").config
    assert (config.max_queue_delay_us, config.preferred_batch_sizes) == (700, (4,))
    assert supervisor.settings("tiny") == {"max_queue_delay_us": 700, "preferred_batch_sizes": [4]}
    assert [incident.what for incident in supervisor.incidents] == ["Triton ended by itself"]


def test_a_model_whose_process_is_killed_is_loaded_again_with_its_settings(supervisor):
    supervisor.configure("tiny", {"max_queue_delay_us": 700})
    triton = psutil.Process(supervisor.server.pid)
    stubs = [child for child in triton.children(recursive=True) if "python_backend_stub" in " ".join(child.cmdline())]
    for stub in stubs:
        stub.kill()
    wait_for(lambda: any("ended by itself" in incident.what for incident in supervisor.incidents))
    wait_for(lambda: supervisor.server.config("tiny").max_queue_delay_us == 700 and quietly(supervisor))
    assert supervisor.restarts == 0
    assert [incident.what for incident in supervisor.incidents] == ["a process of tiny ended by itself"]


def test_an_unloaded_model_makes_it_unready_until_it_is_loaded_again(supervisor):
    supervisor.unload("tiny")
    assert supervisor.running
    assert not supervisor.ready
    assert supervisor.missing() == ["tiny"]
    with pytest.raises(ServerError):
        supervisor.unload("tiny")
    supervisor.load("tiny")
    assert supervisor.ready
    assert answers(supervisor)


def test_a_model_that_does_not_load_again_keeps_triton_from_nothing(supervisor, repository):
    (repository / "tiny" / "1" / "artifact" / "model.onnx").write_bytes(b"damaged")
    os.kill(supervisor.server.pid, signal.SIGKILL)
    wait_for(lambda: supervisor.restarts == 1 and supervisor.running)
    assert supervisor.missing() == ["tiny"]
    assert supervisor.incidents[-1].what.startswith("tiny did not load again: ")


def test_restarts_that_fail_come_later_each_time_and_end_when_nobody_wants_them(supervisor, repository, monkeypatch):
    tried = []

    def fail(*_, **__):
        tried.append(time.monotonic())
        raise ServerError("No luck.", fix="none")

    monkeypatch.setattr("accel_lib.service.supervisor.serve", fail)
    os.kill(supervisor.server.pid, signal.SIGKILL)
    wait_for(lambda: len(tried) == 4)
    pauses = np.diff(tried)
    assert (pauses[1:] > pauses[:-1]).all()
    supervisor.stop()
    assert not supervisor.running
    assert not any(each.what == "No luck." for each in supervisor.incidents)
    assert supervisor.incidents[-1].what == "Triton did not start again: No luck."
    assert repository.is_dir()


def test_a_server_of_somebody_else_is_watched_and_left_when_its_owner_stops_it(repository, monkeypatch):
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    with accel_lib.serve(repository) as own:
        supervisor = Supervisor(repository, triton=own)
        supervisor.start()
        assert supervisor.ready
        own.stop()
        time.sleep(0.5)
        assert not supervisor.running
        assert supervisor.restarts == 0
        supervisor.stop()


def test_before_its_start_there_is_no_server(repository):
    supervisor = Supervisor(repository, settings={"tiny": {"max_queue_delay_us": 5}})
    assert not supervisor.ready
    assert supervisor.versions() == []
    with pytest.raises(ServerError, match=r"supervisor\.start\(\)"):
        _ = supervisor.server
    supervisor.start()
    assert supervisor.server.model("tiny").config.max_queue_delay_us == 5
    os.kill(supervisor.server.pid, signal.SIGKILL)
    supervisor.stop()
    assert not supervisor.running
