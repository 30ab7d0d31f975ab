"""What is written: whole or not at all, whatever kills the writer, and never over somebody else's files."""

from __future__ import annotations

import concurrent.futures
import errno
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from accel_lib import atomic
from accel_lib.artifact import Artifact, foreign_files
from accel_lib.atomic import atomic_directory, atomic_file, locked, write_text
from accel_lib.errors import ConversionError, OutputError
from accel_lib.triton.repository import write_model
from tests.tiny import NOISE, TABLE, tiny_artifact

WRITER = """
import os, sys
from pathlib import Path
from accel_lib import atomic
if sys.argv[2] == "no exchange":
    atomic._exchange = lambda *_: False
steps = 0
def step(real):
    def taken(*arguments, **options):
        global steps
        if steps == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
        steps += 1
        return real(*arguments, **options)
    return taken
atomic.shutil.rmtree = step(atomic.shutil.rmtree)
atomic._exchange, Path.rename = step(atomic._exchange), step(Path.rename)
with atomic.atomic_directory(sys.argv[1]) as draft:
    for name in ("model.onnx", "manifest.json", "tokenizer.json"):
        (draft / name).write_bytes(Path(sys.argv[4], name).read_bytes())
print("whole")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return [tiny_artifact(folder / name, table) for name, table in {"one": TABLE, "two": NOISE}.items()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("way", ["exchange", "no exchange"])
def test_a_killed_writer_leaves_the_old_artifact_or_the_new_one_and_no_rubbish(tmp_path, made, way):
    old, new = made
    whole = False
    for step in range(9):
        target = tmp_path / str(step) / "tiny"
        old.copy_to(target)
        done = subprocess.run(
            [sys.executable, "-c", WRITER, target, way, str(step), new.folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert Artifact.load(target).manifest.files in (old.manifest.files, new.manifest.files)
        write_text(target.with_name("tiny-beside"), "another name is another target")
        old.copy_to(target)
        assert names(target.parent) == ["tiny", "tiny-beside"]
        if whole := "whole" in done.stdout:
            break
    assert whole, done.stderr
    assert step >= 2


def test_the_draft_of_a_living_writer_is_left_alone(tmp_path, made):
    with atomic_directory(tmp_path / "tiny") as draft:
        made[0].copy_to(tmp_path / "tiny")
        assert draft.is_dir()
        (draft / "only").write_text("later")
    assert names(tmp_path / "tiny") == ["only"]
    assert names(tmp_path) == ["tiny"]


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        ({"thesis.txt": "years of work"}, "thesis.txt"),
        ({"manifest.json": '{"name": "a web page"}', "index.html": ""}, "index.html, manifest.json"),
        ({"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"}, "model.safetensors"),
        ({".hidden": "mine"}, ".hidden"),
    ],
)
def test_a_folder_of_other_files_is_no_output(tmp_path, made, there, seen):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in there.items():
        (folder / name).write_text(text)
    for output in (folder, tmp_path, tmp_path / "docs" / ".." / "docs"):
        with pytest.raises(OutputError, match="did not write, so it stays") as refused:
            made[0].copy_to(output)
        assert str(tmp_path) not in str(refused.value)
    with pytest.raises(OutputError, match=seen):
        made[0].copy_to(folder)
    assert set(foreign_files(folder)) == there.keys()
    assert {name: (folder / name).read_text() for name in names(folder)} == there


def test_a_file_that_lies_beside_an_artifact_keeps_it(tmp_path, made):
    made[0].copy_to(tmp_path / "tiny")
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"seen: notes\.txt\n  fix:  move that elsewhere first"):
        made[1].copy_to(tmp_path / "tiny")
    made[1].copy_to(tmp_path / "tiny" / "model")
    assert (tmp_path / "tiny" / "notes.txt").read_text() == "mine"


def test_a_link_is_followed_and_a_file_or_the_working_directory_refused(tmp_path, made, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    made[0].copy_to(tmp_path / "link")
    assert Artifact.load(tmp_path / "real").manifest.files == made[0].manifest.files
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is a file"):
        made[0].copy_to(tmp_path / "file")
    with pytest.raises(OutputError, match="inner cannot be written"):
        made[0].copy_to(tmp_path / "file" / "inner")
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(OutputError, match="folder that you are in"):
        made[0].copy_to(".")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_called_so_and_leaves_nothing(tmp_path, made, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    made[0].copy_to(tmp_path / "tiny")
    monkeypatch.setattr(shutil, "copy2", full)
    for write in (made[1].copy_to, lambda folder: write_model(folder / "repository", "mine", made[0])):
        for target in (tmp_path / "tiny", tmp_path / "new" / "deep"):
            with pytest.raises(OutputError, match=r"disk is full[\s\S]*No space left[\s\S]*df -h"):
                write(target)
    assert names(tmp_path) == ["tiny"]
    assert Artifact.load(tmp_path / "tiny").manifest.files == made[0].manifest.files


def test_a_full_disk_is_called_so_whatever_a_library_makes_of_it(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="disk is full"), atomic_directory(tmp_path / "tiny"):
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise ConversionError("The export failed.", fix="an operator that ONNX has") from error
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(OutputError, match="disk is full"), atomic_file(tmp_path / "file"):
        raise RuntimeError("PytorchStreamWriter failed writing file data")
    assert names(tmp_path) == []


def test_an_error_of_something_else_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "tiny"):
        (tmp_path / "weights").read_bytes()
    with pytest.raises(ConnectionError), atomic_directory(tmp_path / "tiny"):
        raise ConnectionError("the hub does not answer")


def test_a_file_keeps_its_permissions_and_its_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["link", "real"]


def test_who_holds_a_folder_is_waited_for(tmp_path):
    order = []

    def other():
        with locked(tmp_path):
            order.append("other")

    with locked(tmp_path):
        waiting = threading.Thread(target=other)
        waiting.start()
        with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
            pass
        order.append("first")
    waiting.join()
    assert order == ["first", "other"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "no exchange"])
def test_many_writers_of_one_folder_leave_one_whole(tmp_path, monkeypatch, way):
    if way == "no exchange":
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    files = ("model.onnx", "manifest.json", "tokenizer.json")

    def write(target, text):
        with atomic_directory(target) as draft:
            for file in files:
                (draft / file).write_text(text)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for n in range(20):
            target = tmp_path / str(n) / "tiny"
            for written in [pool.submit(write, target, str(writer)) for writer in range(8)]:
                written.result()
            assert len({(target / file).read_text() for file in files}) == 1
            assert names(target.parent) == ["tiny"]


@pytest.mark.parametrize("way", ["exchange", "no exchange"])
def test_a_draft_that_is_gone_ends_the_write_and_keeps_the_old_folder(tmp_path, made, monkeypatch, way):
    if way == "no exchange":
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    made[0].copy_to(tmp_path / "tiny")
    for target in ("tiny", "new"):
        with pytest.raises(FileNotFoundError):
            atomic.put(tmp_path / "gone", tmp_path / target)
    assert names(tmp_path) == ["tiny"]
    assert Artifact.load(tmp_path / "tiny").manifest.files == made[0].manifest.files


def test_many_copies_of_artifacts_to_one_folder_leave_one_whole(tmp_path, made):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for n in range(10):
            target = tmp_path / str(n) / "tiny"
            for written in [pool.submit(made[writer % 2].copy_to, target) for writer in range(8)]:
                written.result()
            assert Artifact.load(target).manifest.files in [each.manifest.files for each in made]
            assert names(target.parent) == ["tiny"]


def test_a_draft_s_name_is_not_taken_for_a_file_of_somebody_else(tmp_path, made):
    made[0].copy_to(tmp_path / "tiny")
    Path(tmp_path, "tiny", ".manifest.json.accel-abc").mkdir()
    made[1].copy_to(tmp_path / "tiny")
    assert names(tmp_path / "tiny") == ["manifest.json", "model.onnx", "tokenizer.json"]
