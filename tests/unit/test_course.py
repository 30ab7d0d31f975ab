"""Notebooks run headless and name the cell that fails; badges and set-up cells follow from one setting."""

import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from accel_lib import machine
from accel_lib.course_models import ensure
from accel_lib.errors import AccelError, MachineError, OutputError
from tools import badges
from tools import notebooks as course

ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of code cells, each a source or a pair of tag and source."""

    def write(name, *cells):
        book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        book.cells.append(nbformat.v4.new_markdown_cell(f"# {name}"))
        for cell in cells:
            tag, source = cell if isinstance(cell, tuple) else (None, cell)
            book.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag]} if tag else {}))
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    return write


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )


def test_a_run_reports_every_notebook_and_goes_on_after_a_failure(notebook, tmp_path, capsys):
    bad = notebook("bad", "x = 1", ("check", "# the question\nraise ValueError('seven is not eight\\nmore')"))
    good = notebook("good", ("parameters", "limit = 1"), "print('limit', limit)")
    runs = course.run_notebooks([bad, good], output=tmp_path / "out", parameters={"limit": 5})
    assert [run.name for run in runs] == ["bad", "good"]
    assert runs[0].failure == "cell 3 [check] `# the question` ValueError: seven is not eight"
    assert runs[1].verdict == "passed"
    assert "limit 5" in printed(tmp_path / "out" / "good.ipynb")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✗ bad: 3 cells")
    assert lines[1].startswith("✓ good: 3 cells")


def test_a_killed_kernel_and_a_slow_cell_are_named_like_any_failure(notebook, tmp_path):
    killed = notebook("killed", "import os", "os._exit(1)", "print('never')")
    slow = notebook("slow", "import time\ntime.sleep(60)")
    runs = course.run_notebooks([killed, slow], output=tmp_path / "out", cell_timeout_s=3)
    assert runs[0].failure.startswith("cell 3 `os._exit(1)` DeadKernelError")
    assert runs[1].failure.startswith("cell 2 `import time` CellTimeoutError")


def test_kernels_are_headless_and_a_fresh_one_has_its_own_empty_cache(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACCEL_REPOSITORY", raising=False)
    (tmp_path / "home" / "triton" / "2.51.0").mkdir(parents=True)
    (tmp_path / "home" / "artifacts").mkdir()
    look = notebook(
        "look",
        "import os\nfrom accel_lib.machine import cache_dir\nprint('headless', os.environ['ACCEL_HEADLESS'])",
        "print([f.name for f in cache_dir().iterdir()], [f.name for f in cache_dir('triton').iterdir()])",
        "print(os.listdir(os.environ.get('ACCEL_REPOSITORY', '.')))",
    )
    course.run_notebooks([look], output=tmp_path / "warm")
    course.run_notebooks([look], output=tmp_path / "fresh", fresh=True)
    assert "headless 1" in printed(tmp_path / "warm" / "look.ipynb")
    assert "artifacts" in printed(tmp_path / "warm" / "look.ipynb")
    assert printed(tmp_path / "fresh" / "look.ipynb").splitlines()[1:] == ["['triton'] ['2.51.0']", "[]"]
    assert os.environ["ACCEL_HOME"] == str(tmp_path / "home")
    assert "ACCEL_REPOSITORY" not in os.environ


def test_those_that_run_first_leave_their_caches_to_the_others(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_HOME", str(tmp_path / "home"))
    listed = "from accel_lib.machine import cache_dir\nprint(sorted(f.name for f in cache_dir().iterdir()))"
    made = "made = cache_dir('artifacts') / 'made'\nmade.mkdir(parents=True)\n(made / 'model').write_text('whole')"
    changed = "(cache_dir('artifacts') / 'made' / 'model').rename(cache_dir('artifacts') / 'gone')"
    makers = [notebook("maker", listed, made), notebook("another", listed, made)]
    paths = [notebook("one", listed, changed), notebook("two", listed), *makers]
    runs = course.run_notebooks(paths, output=tmp_path / "out", fresh=True, first=["maker", "another"])
    assert [run.verdict for run in runs] == ["passed"] * 4
    said = [printed(tmp_path / "out" / path.name).strip() for path in paths]
    assert said == ["['artifacts', 'triton']", "['artifacts', 'triton']", "['triton']", "['triton']"]


def test_nbval_runs_a_notebook_with_its_parameters_and_says_what_failed(notebook, tmp_path):
    good = notebook("good", ("parameters", "limit = 1"), "assert limit == 5")
    bad = notebook("bad", "from ipywidgets import Output\nwith Output():\n    raise ValueError('swallowed')")
    runs = course.run_notebooks(
        [good, bad], output=tmp_path / "out", parameters={"limit": 5}, nbval=("good", "bad"), jobs=2
    )
    assert runs[0].verdict == "passed"
    assert "swallowed" in runs[1].failure


def test_kept_outputs_are_all_that_changes_in_a_notebook(notebook, tmp_path):
    path = notebook("kept", "print('measured')")
    before = nbformat.read(path, as_version=4)
    course.run_notebooks([path], output=tmp_path / "out")
    course.keep_outputs(path, tmp_path / "out" / "kept.ipynb")
    after = nbformat.read(path, as_version=4)
    assert "measured" in printed(path)
    assert after.metadata == before.metadata
    assert [(c.id, c.source, c.metadata) for c in after.cells] == [(c.id, c.source, c.metadata) for c in before.cells]


@pytest.mark.parametrize("where", [".", "mine"])
def test_a_notebook_that_is_no_executed_copy_is_not_replaced(notebook, tmp_path, where):
    path = notebook("book", "print('measured')")
    (tmp_path / "mine").mkdir()
    shutil.copy(path, tmp_path / "mine" / "book.ipynb")
    before = path.read_text()
    with pytest.raises(
        OutputError, match=r"no executed copy, so it stays\.\n  fix:  name another folder: --output out"
    ):
        course.run_notebooks([path], output=tmp_path / where)
    assert path.read_text() == (tmp_path / "mine" / "book.ipynb").read_text() == before


def test_the_figure_for_the_readme_is_written_beside_the_notebook(notebook, tmp_path):
    drawing = "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])"
    path = notebook("drawn", "%matplotlib inline", ("readme", drawing))
    course.run_notebooks([path], output=tmp_path / "out")
    course.keep_outputs(path, tmp_path / "out" / "drawn.ipynb")
    assert (tmp_path / "images" / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_model_of_the_course_is_refused_with_the_known_ones():
    with pytest.raises(AccelError, match="embedding, sentiment"):
        ensure("translation")


def test_badges_and_set_up_cell_come_from_the_setting():
    setting = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert badges.repository_url() == setting, "pyproject.toml changed: run `make setup`"
    slug = setting.removeprefix("https://github.com/")
    line = badges.badges("00_start_here")
    assert f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/00_start_here.ipynb" in line
    assert f"https://kaggle.com/kernels/welcome?src={setting}/blob/main/notebooks/00_start_here.ipynb" in line
    assert f"https://raw.githubusercontent.com/{slug}/main/colab/bootstrap.py" in badges.setup_cell()


def test_every_generated_line_of_the_checkout_agrees_with_the_setting():
    assert badges.outdated() == [], "run python -m tools.badges --write"


def test_a_new_setting_reaches_badges_set_up_cells_and_bootstrap(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "colab").mkdir()
    (tmp_path / "README.md").write_text(f"# A project\n\n| 00 | {badges.badges('00_start_here')} |\n")
    (tmp_path / "colab" / "bootstrap.py").write_text((ROOT / "colab" / "bootstrap.py").read_text())
    cells = [
        nbformat.v4.new_markdown_cell(f"# 00\n\n{badges.badges('00_start_here')}\n\nkept"),
        nbformat.v4.new_code_cell(badges.setup_cell()),
        nbformat.v4.new_code_cell("kept = 'bootstrap.py'"),
    ]
    book = tmp_path / "notebooks" / "00_start_here.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book)
    monkeypatch.setattr(badges, "project_root", lambda: tmp_path)
    assert badges.outdated() == []

    monkeypatch.setattr(badges, "repository_url", lambda: "https://github.com/someone/faster")
    changed = ["README.md", "colab/bootstrap.py", "notebooks/00_start_here.ipynb"]
    assert sorted(badges.outdated()) == changed
    assert sorted(badges.outdated(write=True)) == changed
    assert badges.outdated() == []
    markdown, setup, rest = nbformat.read(book, as_version=4).cells
    assert markdown.source == f"# 00\n\n{badges.badges('00_start_here')}\n\nkept"
    assert setup.source == badges.setup_cell()
    assert rest.source == "kept = 'bootstrap.py'"
    assert badges.badges("00_start_here") in (tmp_path / "README.md").read_text()
    assert 'REPOSITORY = "https://github.com/someone/faster"' in (tmp_path / "colab" / "bootstrap.py").read_text()


def test_an_installation_without_notebooks_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "accel_lib" / "machine.py"))
    with pytest.raises(MachineError, match=r"git clone .* && make course"):
        machine.project_root()


def test_bootstrap_pins_what_is_already_there():
    bootstrap = runpy.run_path(str(ROOT / "colab" / "bootstrap.py"), run_name="bootstrap")
    pins = dict(line.split("==") for line in bootstrap["constraints"]().splitlines())
    for package in ("torch", "numpy", "protobuf", "ipywidgets", "ipykernel"):
        assert pins[package] == importlib.metadata.version(package)


@pytest.mark.parametrize(
    ("variable", "where"), [("COLAB_RELEASE_TAG", "colab"), ("KAGGLE_KERNEL_RUN_TYPE", "kaggle"), ("X", "elsewhere")]
)
def test_bootstrap_knows_the_place_and_its_source(variable, where, tmp_path):
    environment = {"PATH": os.environ["PATH"], "ACCEL_SOURCE": "a/checkout", variable: "1"}
    command = [sys.executable, "-S", str(ROOT / "colab" / "bootstrap.py"), "--dry-run"]
    text = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert text.startswith(f"{where}: would fetch a/checkout into ")
    assert list(tmp_path.iterdir()) == []


def test_bootstrap_says_which_step_failed(tmp_path):
    bootstrap = runpy.run_path(str(ROOT / "colab" / "bootstrap.py"), run_name="bootstrap")
    with pytest.raises(RuntimeError, match="git clone"):
        bootstrap["run"]("git", "clone", str(tmp_path / "nowhere"), str(tmp_path / "copy"))


@pytest.mark.parametrize("name", course.BRIEFLY)
def test_what_a_brief_run_sets_are_parameters_of_that_notebook(name):
    paths = {Path(each).name: Path("notebooks", f"{each}.ipynb") for each in (*course.NOTEBOOKS, *course.MORE)}
    cells = nbformat.read(paths[name], as_version=4).cells
    (parameters,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert all(f"{setting} = " in parameters for setting in course.BRIEFLY[name])
