"""Sweeps on a real Triton: resumed, refused, cut off, written."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

import accel_lib
from accel_lib.bench.memory import instance_bytes, room_for
from accel_lib.errors import AccelError
from accel_lib.triton.repository import read_config
from accel_lib.tuning import actuators, grid
from accel_lib.tuning.grid import share_cores, sweep
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)
QUICK = {"p95_ms": 1_000, "concurrency": 4, "seconds": 0.3}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, artifact):
    repository = tmp_path_factory.mktemp("sweep") / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as server:
        server.add("tiny", artifact)
        server.add("tiny", artifact, version=2)
        yield server.model("tiny")
        end_at_once(server)


def test_a_sweep_compares_versions_and_sizes_writes_the_best_and_says_why(tiny):
    before = tiny.config
    found = sweep(tiny, TEXTS, grid={"version": (1, 2), "max_batch_size": (1, 16)}, repeats=1, **QUICK)
    assert tiny.config == before
    assert sorted(zip(found.frame["version"], found.frame["max_batch_size"], strict=True)) == [
        (1, 1), (1, 16), (2, 1), (2, 16)
    ]  # fmt: skip
    assert set(found.frame["engine"]) == {"onnx fp32"}
    assert len(found.front) >= 1
    assert f"max_batch_size: {found.best['max_batch_size']}" in found.config
    assert "instead of" in found.explanation
    folder = found.write()
    assert read_config(folder).max_batch_size == found.best["max_batch_size"]
    assert found.headline in found._repr_html_().replace("&#x27;", "'")


def test_a_setting_that_triton_refuses_is_named_and_the_others_are_measured(tiny):
    found = sweep(tiny, TEXTS, grid={"preferred_batch_size": (0, 500)}, repeats=1, **QUICK)
    assert found.frame["preferred_batch_size"].tolist() == [0]
    (refusal,) = found.refused
    assert refusal.startswith("preferably 500: ")
    assert "Not measured" in found.headline


def test_a_killed_sweep_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    file, sizes = tmp_path / "sweep.jsonl", {"max_batch_size": (1, 16)}
    seen = []

    def loaded(*arguments, **settings):
        seen.append(settings["concurrency"])
        if len(seen) == 3:  # the one that is alone, the first setting, and then
            raise KeyboardInterrupt
        return load_test(*arguments, **settings)

    load_test = grid.load_test
    monkeypatch.setattr(grid, "load_test", loaded)
    before = tiny.config
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, TEXTS, grid=sizes, repeats=1, file=file, **QUICK)
    assert tiny.config == before
    found = sweep(tiny, TEXTS, grid=sizes, repeats=1, file=file, **QUICK)
    assert seen == [1, 4, 4, 1, 4]
    assert found.frame["max_batch_size"].tolist() == [1, 16]


def test_memory_that_would_not_hold_another_copy_is_noticed_before_it_is_loaded(tiny, monkeypatch):
    assert instance_bytes(tiny) > 10 * 2**20
    assert room_for(tiny, 1) == ""
    assert "tiny need" in room_for(tiny, 100_000)
    monkeypatch.setattr(actuators, "room_for", lambda *_: "1 more need 8 MB, 4 MB are free")
    found = sweep(tiny, TEXTS, grid={"max_batch_size": (64, 16)}, repeats=1, **QUICK)
    assert found.frame["max_batch_size"].tolist() == [64]
    assert "4 MB are free" in found.headline


@pytest.mark.parametrize("asked", [{}, {"max_batch_size": ()}, [{}], [{"instance_count": 1, "treads": 2}]])
def test_a_sweep_of_nothing_or_of_a_setting_that_there_is_not_is_refused(tiny, asked):
    with pytest.raises(AccelError, match="values for each setting"):
        sweep(tiny, TEXTS, grid=asked, **QUICK)


def test_a_server_that_dies_during_a_sweep_leaves_what_was_measured(artifact, tmp_path):
    (tmp_path / "model_repository").mkdir()
    journal = tmp_path / "sweep.jsonl"

    def kill_once_something_was_measured(pid):
        while not journal.is_file() or len(journal.read_text().splitlines()) < 3:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)

    with accel_lib.serve(tmp_path / "model_repository") as server:
        doomed = server.add("doomed", artifact)
        killer = threading.Thread(target=kill_once_something_was_measured, args=(server.pid,), daemon=True)
        killer.start()
        found = sweep(doomed, TEXTS, grid={"max_batch_tokens": range(64, 96)}, repeats=1, file=journal, **QUICK)
        killer.join()
    assert 1 <= len(found.frame) < 32
    assert found.stopped
    assert "It ended early" in found.headline


def test_instances_and_threads_are_chosen_together_and_written(tiny, monkeypatch):
    monkeypatch.setattr(grid, "inspect_machine", lambda: SimpleNamespace(cores=2))
    found = share_cores(tiny, TEXTS, concurrency=4, seconds=0.3, repeats=1)
    tried = zip(found.frame["instance_count"], found.frame["threads"], strict=True)
    assert sorted(tried) == [(1, 1), (1, 2), (2, 1)]
    written = read_config(found.write())
    assert {"instance_count": written.instance_count, "threads": written.threads} == found.best
    assert "thread" in found.headline
