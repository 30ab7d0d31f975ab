"""Every notebook of the course has the frame that CONTRIBUTING.md describes."""

import re
import tempfile
from pathlib import Path

import nbformat
import pytest

from tools.badges import badges, setup_cell
from tools.notebooks import MORE, NOTEBOOKS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
MAX_CELLS, MAX_LINES = 60, 14
EXPERIMENT = re.compile(r"accel\.(compare|load_test|tune)\(")
MACHINE_PATHS = (
    str(ROOT),
    str(Path.home()) + "/",
    tempfile.gettempdir() + "/",
    "site-packages/",
    "/content/",
    "/kaggle/",
)


class Notebook:
    """A notebook on disk, by kinds of cells."""

    def __init__(self, name):
        path = FOLDER / f"{name}.ipynb"
        self.name, self.folder = name, path.parent
        self.book = nbformat.read(path, as_version=4)
        self.cells = self.book.cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.markdown = [cell.source for cell in self.cells if cell.cell_type == "markdown"]
        self.opening = self.cells[0].source

    def tagged(self, tag):
        return [cell for cell in self.code if tag in cell.metadata.get("tags", [])]

    def position(self, test):
        """Index of the first code cell whose source passes the test, or None."""
        return next((n for n, cell in enumerate(self.code) if test(cell.source)), None)


def shown(cell):
    """All text that a cell's outputs show."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(parts)


def bullets(text):
    return [line for line in text.splitlines() if line.startswith(("- ", "* ")) or re.match(r"\d\. ", line)]


@pytest.fixture(params=(*NOTEBOOKS, *MORE), scope="module")
def notebook(request):
    return Notebook(request.param)


def test_the_course_is_exactly_the_notebooks_on_disk():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
    assert sorted(f"more/{path.stem}" for path in FOLDER.glob("more/*.ipynb")) == sorted(MORE)


def test_the_opening_names_result_objectives_minutes_and_hardware(notebook):
    lines = notebook.opening.splitlines()
    own = {"your_model": r"# Your model"} | dict.fromkeys(MORE, r"# More · \S")
    title = own.get(notebook.name, rf"# {notebook.name[:2]} · \S")
    assert re.match(title, lines[0]), lines[0]
    assert badges(notebook.name) in lines
    assert len([line for line in lines if line.startswith("**Result:** ")]) == 1
    assert 3 <= len(bullets(notebook.opening)) <= 5
    assert re.search(r"\b\d+ minutes\b", notebook.opening)
    assert re.search(r"\bCPU\b", notebook.opening)
    assert re.search(r"\bT4\b", notebook.opening)


def test_the_first_code_cell_sets_up_any_machine(notebook):
    assert notebook.code[0].source == setup_cell()


def test_it_has_one_parameters_cell_near_the_top(notebook):
    (cell,) = notebook.tagged("parameters")
    assert notebook.code.index(cell) <= 2
    assert all("=" in line or line.startswith("#") for line in cell.source.splitlines() if line.strip())


def test_the_reader_predicts_before_the_first_experiment(notebook):
    predicted = notebook.position(lambda source: "accel.guess(" in source)
    measured = notebook.position(EXPERIMENT.search)
    assert predicted is not None
    assert measured is None or predicted < measured


def test_it_stays_thin(notebook):
    assert len(notebook.cells) <= MAX_CELLS
    long = [cell.source.splitlines()[0] for cell in notebook.code if len(cell.source.splitlines()) > MAX_LINES]
    assert not long


def test_it_runs_no_shell_lines_and_no_magics(notebook):
    lines = [line for cell in notebook.code for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("!", "%"))]


def test_each_exercise_has_a_check_that_the_untouched_exercise_does_not_pass(notebook):
    exercises, checks = notebook.tagged("exercise"), notebook.tagged("check")
    assert exercises
    assert len(exercises) == len(checks)
    for exercise, check in zip(exercises, checks, strict=True):
        assert notebook.code.index(exercise) < notebook.code.index(check)
        assert "accel.check(" in check.source
        assert "not yet" in shown(check)


def test_each_exercise_has_a_solution_that_passes(notebook):
    solutions = notebook.tagged("solution")
    assert len(solutions) >= len(notebook.tagged("exercise"))
    assert any(re.match(r"#+ Solutions", text) for text in notebook.markdown)
    passed = [cell for cell in solutions if "✓" in shown(cell)]
    assert len(passed) >= len(notebook.tagged("exercise"))
    assert not [cell for cell in solutions if "not yet" in shown(cell)]
    first_solution = notebook.code.index(solutions[0])
    assert all(notebook.code.index(cell) < first_solution for cell in notebook.tagged("check"))


def test_what_was_learned_is_said_once_and_is_no_copy_of_the_objectives(notebook):
    learned = [text for text in notebook.markdown if re.search(r"^#+ What you learned", text, re.MULTILINE)]
    assert len(learned) <= 1
    assert not set(bullets("".join(learned))) & set(bullets(notebook.opening))


def test_it_is_committed_as_it_ran_from_top_to_bottom(notebook):
    assert [cell.execution_count for cell in notebook.code] == list(range(1, len(notebook.code) + 1))
    assert not [cell for cell in notebook.code for output in cell.outputs if output.output_type == "error"]
    assert [cell for cell in notebook.code for output in cell.outputs if "image/png" in output.get("data", {})]


def test_its_outputs_show_no_machine_paths_and_no_warnings(notebook):
    for cell in notebook.code:
        text = shown(cell)
        assert not [place for place in MACHINE_PATHS if place in text], cell.source
        assert not re.search(r"\w+Warning: ", text), cell.source


def test_its_metadata_asks_colab_for_a_t4(notebook):
    metadata = notebook.book.metadata
    assert notebook.book.nbformat == 4
    assert notebook.book.nbformat_minor >= 5
    assert metadata.accelerator == "GPU"
    assert metadata.colab.gpuType == "T4"
    assert metadata.kernelspec.name == "python3"
    assert "papermill" not in metadata
    assert not [cell for cell in notebook.cells if "papermill" in cell.metadata]


def test_every_badge_and_relative_link_points_to_a_file(notebook):
    for text in notebook.markdown:
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            local = target.partition("/blob/main/")[2] if "/blob/main/" in target else target
            if not local.startswith(("http", "attachment:")):
                base = ROOT if "/blob/main/" in target else notebook.folder
                assert (base / local).is_file(), target
