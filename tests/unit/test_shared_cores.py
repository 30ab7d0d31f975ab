"""The cores that the instances of a model share: one that computes alone gets all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from accel_lib.engines.shared_cores import SharedCores
from accel_lib.ragged import Ragged
from accel_lib.triton import write_model
from tests.tiny import TABLE, tiny_artifact

OTHER = """
import sys
from accel_lib.engines.shared_cores import SharedCores
with SharedCores(sys.argv[1]).computing():
    print("computing", flush=True)
    input()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "shared").touch()
    return tmp_path / "shared"


@pytest.fixture
def other(file):
    """Another process that computes, until it is killed."""
    command = [sys.executable, "-c", OTHER, file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "computing\n"
        yield process
        process.kill()


def alone(shared):
    with shared.computing() as found:
        return found


def test_a_process_is_alone_until_another_one_computes_and_again_when_that_is_killed(file, other):
    shared = SharedCores(file)
    assert not alone(shared)
    other.kill()
    other.wait()
    assert alone(shared)
    shared.close()


def test_without_locks_no_process_is_alone(file):
    shared = SharedCores(file)
    shared.close()
    with shared.computing() as found:
        assert not found


@pytest.fixture
def instance(tmp_path, file, monkeypatch):
    """One of two instances of a model on two cores, as Triton's stub makes it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("stub"))
    from accel_lib.triton.backend import TritonPythonModel

    artifact = tiny_artifact(tmp_path / "artifact", TABLE)
    folder = write_model(tmp_path / "models", "tiny", artifact)
    manifest = artifact.manifest
    ids = [{"name": name, "data_type": "TYPE_INT64", "dims": [-1]} for name in manifest.inputs]
    vectors = [{"name": manifest.output_name, "data_type": "TYPE_FP32", "dims": [manifest.dimension]}]
    config = {
        "name": "tiny", "max_batch_size": 8, "input": ids, "output": vectors, "parameters": {},
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
    }  # fmt: skip
    own = TritonPythonModel()
    own.initialize(
        {
            "model_config": json.dumps(config), "model_repository": str(folder.parent), "model_version": "1",
            "model_name": "tiny", "model_instance_kind": "CPU", "model_instance_device_id": "0",
        }
    )  # fmt: skip
    own._cores.close()
    own._cores = SharedCores(file)
    yield own
    own.finalize()


def test_a_lone_request_gets_all_cores_and_requests_in_company_their_instances_share(instance, other, monkeypatch):
    run, used = instance._run, []

    def noted(engine, rows):
        used.append(engine.lanes)
        return run(engine, rows)

    monkeypatch.setattr(instance, "_run", noted)
    rows = Ragged.from_rows([np.array([1, 2, 3])])
    beside_another = instance._vectors(rows, requests=1)
    other.kill()
    other.wait()
    lone = instance._vectors(rows, requests=1)
    instance._vectors(Ragged.concat([rows, rows]), requests=2)
    assert used == [1, 2, 1]
    assert np.array_equal(lone, beside_another)
