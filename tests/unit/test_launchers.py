"""What brings the course onto Colab and Kaggle: sources, folders, metadata, summary; each without either of them."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from accel_lib.machine import repository_url
from tools.badges import setup_cell
from tools.notebooks import NOTEBOOKS

ROOT = Path(__file__).parents[2]
METADATA = json.loads((ROOT / "kaggle" / "kernel-metadata.json").read_text())


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """The bootstrap's functions, with Colab's and Kaggle's folders in a temporary one and pip left out."""
    monkeypatch.setenv("ACCEL_ROOT", str(tmp_path / "root"))
    for name in ("ACCEL_SOURCE", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "colab" / "bootstrap.py"), run_name="bootstrap")


@pytest.fixture
def checkout(tmp_path):
    """The least that is the project: its bootstrap and a notebook."""
    folder = tmp_path / "checkout"
    (folder / "colab").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "colab" / "bootstrap.py", folder / "colab")
    (folder / "notebooks" / "00_start_here.ipynb").write_text("{}")
    return folder


def git(*words, cwd):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, *words], cwd=cwd, check=True, capture_output=True)


def has_the_project(folder):
    return (folder / "notebooks" / "00_start_here.ipynb").is_file() and (folder / "colab" / "bootstrap.py").is_file()


def test_a_checkout_is_copied_so_that_a_read_only_dataset_will_do(bootstrap, checkout, tmp_path):
    (checkout / ".git").mkdir()
    bootstrap["fetch"](str(checkout), tmp_path / "content" / "project")
    assert has_the_project(tmp_path / "content" / "project")
    assert not (tmp_path / "content" / "project" / ".git").exists()


@pytest.mark.parametrize("top", ["", "genai-accelerator-main/"])
def test_a_zip_is_unpacked_with_or_without_a_folder_around_it(bootstrap, checkout, tmp_path, top):
    archive = tmp_path / "project.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in checkout.rglob("*.*"):
            packed.write(path, f"{top}{path.relative_to(checkout)}")
    for number, origin in enumerate([str(archive), archive.as_uri()]):
        bootstrap["fetch"](origin, tmp_path / f"project{number}")
        assert has_the_project(tmp_path / f"project{number}")


def test_a_repository_is_cloned_at_a_tag(bootstrap, checkout, tmp_path):
    git("init", "-q", "-b", "main", ".", cwd=checkout)
    git("add", ".", cwd=checkout)
    git("commit", "-qm", "one", cwd=checkout)
    git("tag", "v0.1.0", cwd=checkout)
    (checkout / "later").touch()
    git("add", ".", cwd=checkout)
    git("commit", "-qm", "two", cwd=checkout)
    address = checkout.as_uri()
    bootstrap["fetch"](f"{address}@v0.1.0", tmp_path / "tagged")
    bootstrap["fetch"](address, tmp_path / "newest")
    assert not (tmp_path / "tagged" / "later").exists()
    assert (tmp_path / "newest" / "later").exists()


def test_what_is_not_the_project_is_refused_and_leaves_nothing(bootstrap, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(RuntimeError, match="does not hold the project"):
        bootstrap["fetch"](str(tmp_path / "other"), tmp_path / "content" / "project")
    assert list((tmp_path / "content").iterdir()) == []


def test_an_attached_dataset_goes_before_the_repository(bootstrap, checkout, tmp_path, monkeypatch):
    assert bootstrap["source"]() == repository_url()
    dataset = tmp_path / "root" / "kaggle" / "input" / "mine" / "project"
    shutil.copytree(checkout, dataset)
    assert bootstrap["source"]() == str(dataset)
    monkeypatch.setenv("ACCEL_SOURCE", "elsewhere@v1")
    assert bootstrap["source"]() == "elsewhere@v1"


def test_colab_is_known_by_its_module_too_and_nothing_else_depends_on_it(bootstrap, monkeypatch):
    assert bootstrap["place"]() == "elsewhere"
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert bootstrap["place"]() == "colab"


def test_elsewhere_it_does_nothing_and_says_what_to_do(bootstrap, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bootstrap["bootstrap"]() is None
    assert f"git clone {repository_url()}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_set_up_that_changed_what_must_stay_is_an_error(bootstrap, checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("ACCEL_SOURCE", str(checkout))
    monkeypatch.setenv("PIP_CONSTRAINT", "")
    inside = bootstrap["bootstrap"].__globals__
    pins = iter(["torch==2.10.0\n", "torch==2.11.0\n", "torch==2.11.0\n"])
    monkeypatch.setitem(inside, "constraints", lambda: next(pins))
    monkeypatch.setitem(inside, "install_project", lambda _project: None)
    with pytest.raises(RuntimeError, match=r"changed what must stay:\ntorch==2.10.0\nbecame\ntorch==2.11.0"):
        bootstrap["bootstrap"]()
    assert (tmp_path / "root" / "kaggle" / "working" / "genai-accelerator" / "notebooks").is_dir()


def test_kaggle_s_metadata_is_what_its_command_line_takes():
    owner, slug = METADATA["id"].split("/")
    assert owner == repository_url().split("/")[-2]
    assert slug == re.sub(r"[^a-z0-9]+", "-", METADATA["title"].lower())
    assert (ROOT / "kaggle" / METADATA["code_file"]).is_file()
    assert (METADATA["language"], METADATA["kernel_type"]) == ("python", "script")
    assert METADATA["machine_shape"] == "NvidiaTeslaT4"
    assert all(METADATA[name] is True for name in ("is_private", "enable_gpu", "enable_internet"))
    sources = [f"{kind}_sources" for kind in ("dataset", "competition", "kernel", "model")]
    assert all(METADATA[name] == [] for name in sources)
    rest = {"id", "title", "code_file", "language", "kernel_type", "machine_shape"}
    assert set(METADATA) == rest | set(sources) | {"is_private", "enable_gpu", "enable_internet"}


def test_kaggle_s_pages_name_the_kernel_of_the_metadata():
    page = (ROOT / "kaggle" / "README.md").read_text()
    assert f"kaggle kernels status {METADATA['id']}" in page
    assert f"--accelerator {METADATA['machine_shape']}" in page


def test_the_script_kernel_runs_a_notebook_in_kaggle_s_folders_and_sums_up(tmp_path):
    root = tmp_path / "root"
    code = f"""
import runpy, sys
from pathlib import Path
from accel_lib import machine
machine.project_root = lambda: Path({str(tmp_path)!r})
script = runpy.run_path({str(ROOT / "kaggle" / "run_course.py")!r}, run_name="kernel")
sys.exit(script["main"](sys.argv[1:]))
"""
    (tmp_path / "notebooks").mkdir()
    for name, source in (("good", "print(6 * 7)"), ("bad", "raise ValueError('no')")):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    status = {}
    for names in (["good"], ["good", "bad"]):
        environment = os.environ | {"ACCEL_ROOT": str(root)}
        done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
        summary = json.loads((root / "kaggle" / "working" / "summary.json").read_text())
        status[len(names)] = (done.returncode, summary["passed"])
        assert [row["name"] for row in summary["notebooks"]] == names
        assert (root / "kaggle" / "working" / "course" / "good.ipynb").is_file()
    assert status == {1: (0, True), 2: (1, False)}
    assert summary["notebooks"][1]["verdict"].startswith("cell 1")
    assert summary["versions"]["numpy"]


def test_its_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    environment = os.environ | {"ACCEL_ROOT": str(tmp_path), "ACCEL_SOURCE": str(ROOT)}
    command = [sys.executable, str(ROOT / "kaggle" / "run_course.py"), "--dry-run", "00_start_here"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "kaggle: would fetch" in said
    assert "would run 00_start_here on the first GPU" in said
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_that_runs_the_course_asks_for_a_t4_and_sets_itself_up():
    book = nbformat.read(ROOT / "colab" / "run_course.ipynb", as_version=4)
    assert (book.metadata.accelerator, book.metadata.colab.gpuType) == ("GPU", "T4")
    assert book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code[0].source == setup_cell()
    assert code[1].metadata.tags == ["parameters"]


def test_colab_s_index_has_every_notebook():
    page = (ROOT / "colab" / "README.md").read_text()
    assert all(f"/blob/main/notebooks/{name}.ipynb" in page for name in NOTEBOOKS)
    assert "/blob/main/colab/run_course.ipynb" in page


def test_the_client_s_needs_are_the_extra_s_without_its_own_limits(bootstrap):
    needs = bootstrap["client_needs"](ROOT)
    assert not [need for need in needs if need.startswith("tritonclient")]
    assert {need.partition(">")[0] for need in needs} >= {"grpcio", "protobuf", "prometheus-client"}
