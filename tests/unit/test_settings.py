"""What an operator sets is read, and what is wrong with it is said by the variable's name."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import accel_lib
from accel_lib.errors import AccelError, ServerError, StateError
from accel_lib.service.database import Database
from accel_lib.service.server import bind
from accel_lib.service.settings import Settings


def test_every_setting_is_read_by_some_code():
    read = set()
    for file in Path(accel_lib.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                read |= {node.attr} if owner in ("settings", "_settings") else set()
    assert set(Settings.model_fields) - read == set()


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("ACCEL_PORT", "99999", "a whole number of at least 0 and at most 65,535"),
        ("ACCEL_METRICS_PORT", "http", "a whole number"),
        ("ACCEL_MAX_INPUTS", "0", "a whole number above 0"),
        ("ACCEL_DEADLINE_S", "nan", "a number above 0"),
        ("ACCEL_DRAIN_S", "-1", "a number of at least 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_seen_and_what_is_allowed(monkeypatch, variable, value, allowed):
    monkeypatch.setenv(variable, value)
    with pytest.raises(AccelError) as caught:
        Settings()
    assert caught.value.cause.startswith(variable)
    assert value in caught.value.seen
    assert allowed in caught.value.fix


@pytest.mark.parametrize(
    "value",
    ["{", "[]", '{"a": 1}', '{"a": []}', '{"a": {"key": "sk-1"}}', '{"a": {"url": "ftp://x", "key": "sk-1"}}',
     '{"a": {"url": "http://x/v1", "kee": "sk-1"}}'],
)  # fmt: skip
def test_a_wrong_upstream_is_refused_and_no_key_is_shown(monkeypatch, value):
    monkeypatch.setenv("ACCEL_UPSTREAMS", value)
    with pytest.raises(AccelError, match="ACCEL_UPSTREAMS") as caught:
        Settings()
    assert "sk-1" not in str(caught.value)
    assert "http://host:8000/v1" in caught.value.fix


def test_one_upstream_or_several_are_versions_and_their_keys_are_not_shown(monkeypatch):
    one, two = '{"url": "http://x:1/v1", "key": "sk-1"}', '{"url": "https://y/v1", "model": "theirs"}'
    monkeypatch.setenv("ACCEL_UPSTREAMS", f'{{"a": {one}, "b": [{one}, {two}]}}')
    found = Settings().upstreams
    assert [len(each) for each in found.values()] == [1, 2]
    assert found["b"][1].model == "theirs"
    assert "sk-1" not in repr(Settings())


def test_upstreams_may_stand_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCEL_UPSTREAMS", str(tmp_path / "upstreams.json"))
    with pytest.raises(AccelError, match=r"upstreams\.json cannot be read: No such file"):
        Settings()
    (tmp_path / "upstreams.json").write_text('{"a": {"url": "http://x:1/v1", "key": "sk-1"}}', encoding="utf-8")
    assert list(Settings().upstreams) == ["a"]


def test_a_setting_that_does_not_exist_is_refused_and_an_empty_variable_sets_nothing(monkeypatch):
    with pytest.raises(AccelError, match="no such setting"):
        Settings(prot=1)
    monkeypatch.setenv("ACCEL_PORT", "")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("host", "fix"),
    [("nowhere.invalid", "ACCEL_HOST"), ("203.0.113.1", "ACCEL_HOST"), ("a..b", "ACCEL_HOST"), ("", "ACCEL_PORT=0")],
    ids=["a name", "another machine", "no name", "a port that is taken"],
)
def test_an_address_that_cannot_be_listened_on_is_refused_with_the_fix_of_its_cause(host, fix):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerError) as caught:
        bind(host or "127.0.0.1", 0 if host else taken.getsockname()[1])
    assert fix in caught.value.fix


def test_a_damaged_state_file_is_called_so_and_left_as_it_is(tmp_path):
    for name, content in (("text", b"no database" * 500), ("cut", b"SQLite format 3\0" + b"x" * 5_000)):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(StateError, match=f"damaged[\\s\\S]*mv {name} {name}.old"):
            Database(file)
        assert file.read_bytes() == content
    with pytest.raises(StateError, match=r"could not be opened[\s\S]*ACCEL_STATE_FILE"):
        Database(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"ACCEL_PORT": "x"}, {"ACCEL_STATE_FILE": __file__}], ids=["a setting", "a state file"]
)
def test_accel_serve_ends_with_three_lines_and_no_traceback(tmp_path, wrong):
    command = [sys.executable, "-c", "from accel_lib.cli import app; app()", "serve"]
    given = {"ACCEL_TRITON_HOST": "127.0.0.1", "ACCEL_PORT": "0", "ACCEL_METRICS_PORT": "0", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | given | wrong, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "fix:" in done.stderr
