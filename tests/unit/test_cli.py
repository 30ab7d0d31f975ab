"""The command line answers at once, prints errors plainly, and gives nothing away in a report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import accel_lib
from accel_lib.cli import app
from accel_lib.errors import ValidationError
from tests.tiny import TABLE, tiny_artifact

ACCEL = Path(sys.executable).with_name("accel")


def run(*words):
    """Run the installed command as a shell would."""
    return subprocess.run([ACCEL, *words], capture_output=True, text=True, check=False)


def test_help_names_every_subcommand():
    done = run("--help")
    assert done.returncode == 0
    for name in ("doctor", "report", "models", "convert", "sweep", "tune", "control", "memory", "keys"):
        assert name in done.stdout


def test_the_version_is_the_package_s():
    assert run("--version").stdout == f"accel_lib {accel_lib.__version__}\n"


def test_models_lists_the_embedded_default_first():
    done = run("models")
    assert done.returncode == 0, done.stderr
    assert "all-MiniLM-L6-v2" in done.stdout


def test_doctor_shows_a_table_and_succeeds_here():
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    for row in ("Python", "Memory", "torch", "Triton"):
        assert row in done.stdout


@pytest.mark.slow
def test_a_report_is_markdown_without_paths_or_names():
    text = run("report", "--speed").stdout
    assert f"**accel_lib {accel_lib.__version__}** on " in text
    assert "| ✓ | Python |" in text
    assert "| batch size | tokens | baseline, ms | candidate, ms | speedup |" in text
    for private in (str(Path.home()) + "/", str(Path.cwd()), os.uname().nodename, sys.prefix):
        assert private not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "cause", "fix"),
    [
        (("convert", "--model", "no-such-model", "--output", "x"), "no-such-model", "all-MiniLM-L6-v2"),
        (("convert", "--model", "all-MiniLM-L6-v2", "--precision", "fp7", "--output", "x"), "fp7", "fp16"),
        (("convert", "--model", "all-MiniLM-L6-v2", "--texts", "no.csv", "--output", "x"), "no.csv", "fix:"),
        (("load", "no-such-model"), "no-such-model", "embedding"),
    ],
)
def test_an_error_is_three_plain_lines_and_exit_2(words, cause, fix, tmp_path):
    done = subprocess.run([ACCEL, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "  fix:  " in done.stderr
    assert cause in done.stderr
    assert fix in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("output", ["mine", ".", "..", "mine/config.json", "docs"])
def test_an_output_that_holds_anything_else_is_refused_before_the_work(tmp_path, tiny_folder, output):
    (tmp_path / "here").mkdir()
    for name in ("here/mine", "mine"):
        shutil.copytree(tiny_folder, tmp_path / name)
    (tmp_path / "here" / "docs").mkdir()
    (tmp_path / "here" / "docs" / "thesis.txt").write_text("years of work")
    before = sorted(path for path in tmp_path.rglob("*"))
    words = [ACCEL, "convert", "--model", str(tmp_path / "here" / "mine"), "--output", output]
    done = subprocess.run(words, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path for path in tmp_path.rglob("*")) == before


def refuse(*_arguments, **_options):
    raise ValidationError("The artifact disagrees.", fix="another precision")


@pytest.mark.slow
def test_a_conversion_that_fails_in_validation_leaves_the_old_artifact(tmp_path, tiny_folder, monkeypatch):
    words = ["convert", "--model", str(tiny_folder), "--output", str(tmp_path / "out")]
    tiny_artifact(tmp_path / "out", TABLE)
    before = (tmp_path / "out" / "manifest.json").read_text()
    monkeypatch.setattr("accel_lib.convert.validate.validate", refuse)
    assert CliRunner().invoke(app, words).exit_code == 2
    assert (tmp_path / "out" / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_option_shows_usage_and_exit_2():
    result = CliRunner().invoke(app, ["convert", "--model", "all-MiniLM-L6-v2"])
    assert result.exit_code == 2
    assert "--output" in result.output


def test_a_key_is_made_listed_without_its_secret_and_revoked(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_STATE_FILE", str(tmp_path / "state.sqlite3"))
    made = CliRunner().invoke(app, ["keys", "create", "search page", "--role", "viewer", "--role", "operator"])
    key = made.output.strip()
    assert key.startswith("accel_")
    listed = CliRunner().invoke(app, ["keys", "list"]).output
    identity = key.split("_")[1]
    assert identity in listed
    assert "operator, viewer" in listed
    assert key.split("_", 2)[2] not in listed  # the secret itself may hold an underscore
    assert CliRunner().invoke(app, ["keys", "revoke", identity]).output == f"revoked: {identity}\n"
    assert CliRunner().invoke(app, ["keys", "revoke", identity]).exit_code == 2
    assert CliRunner().invoke(app, ["keys", "create", "x", "--role", "root"]).exit_code == 2


@pytest.mark.slow
def test_settings_that_are_no_numbers_are_refused_before_anything_starts():
    done = run("sweep", "-s", "max_batch_size=few")
    assert done.returncode == 2
    assert "max_batch_size=1,8,64" in done.stderr
