"""Write badges and set-up cells from one setting, ``[project.urls] Repository`` in pyproject.toml.

Change it, then run ``python -m tools.badges --write``: the badges in notebooks and pages, the set-up cells,
``colab/bootstrap.py`` and ``kaggle/run_course.py`` follow.
"""

from __future__ import annotations

import re
from pathlib import Path

import typer

from accel_lib.atomic import write_text
from accel_lib.errors import require
from accel_lib.machine import project_root, repository_url
from tools.notebooks import MORE, NOTEBOOKS

_BRANCH = "main"
_BADGE = re.compile(r"\[!\[Open in (Colab|Kaggle)\]\([^)]*\)\]\([^)]*/((?:notebooks|colab)/[\w/]+)\.ipynb\)")
_SOURCE = re.compile(r'^REPOSITORY = ".*"$', re.MULTILINE)
_INDEX = re.compile(r"(?:^\| \[.*\]\(\.\./notebooks/.*\n)+", re.MULTILINE)
_SCRIPTS = ("colab/bootstrap.py", "kaggle/run_course.py")
_PAGES = ("README.md", "colab/README.md", "kaggle/README.md")
_SETUP = """\
import importlib.util

if importlib.util.find_spec("accel_lib") is None:  # an empty Colab or Kaggle machine: fetch and install the project
    from urllib.request import urlopen

    exec(urlopen("https://raw.githubusercontent.com/{slug}/{branch}/colab/bootstrap.py").read())

import accel_lib as accel"""


def badges(notebook: str) -> str:
    """Two badges in a line: open a notebook, such as ``"00_start_here"``, on an empty Colab or Kaggle machine."""
    return f"{_badge('Colab', f'notebooks/{notebook}')} {_badge('Kaggle', f'notebooks/{notebook}')}"


def setup_cell() -> str:
    """Source of every notebook's first code cell: a no-op wherever the project is installed."""
    return _SETUP.format(slug=_slug(), branch=_BRANCH)


def outdated(*, write: bool = False) -> list[str]:
    """Compare each generated line in the checkout with the setting.

    Parameters
    ----------
    write
        Rewrite what differs.

    Returns
    -------
    list of str
        Files that differ, or that were rewritten, relative to the checkout.
    """
    root = project_root()
    wanted = {root / page: _pages_text(root / page) for page in _PAGES if (root / page).is_file()}
    for folder in ("notebooks", "colab"):
        wanted |= {path: _notebook_text(path) for path in sorted((root / folder).rglob("*.ipynb"))}
    wanted |= {root / script: _script_text(root / script) for script in _SCRIPTS if (root / script).is_file()}
    differing = {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}
    if write:
        for path, text in differing.items():
            write_text(path, text)
    return [str(path.relative_to(root)) for path in differing]


def _pages_text(path: Path) -> str:
    text = _INDEX.sub(lambda _: _index(path.parents[1] / "notebooks"), path.read_text(encoding="utf-8"))
    return _BADGE.sub(lambda found: _badge(*found.groups()), text)


def _index(folder: Path) -> str:
    """A row for each notebook: its title and its badges."""
    rows = []
    for name in (*NOTEBOOKS, *MORE):
        notebook = require("nbformat", extra="notebook").read(folder / f"{name}.ipynb", as_version=4)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        rows.append(f"| [{title}](../notebooks/{name}.ipynb) | {badges(name)} |\n")
    return "".join(rows)


def _script_text(path: Path) -> str:
    return _SOURCE.sub(f'REPOSITORY = "{repository_url()}"', path.read_text(encoding="utf-8"))


def _notebook_text(path: Path) -> str:
    nbformat = require("nbformat", extra="notebook")
    notebook = nbformat.read(path, as_version=4)
    before: str = nbformat.writes(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub(lambda found: _badge(*found.groups()), cell.source)
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if first is not None and "bootstrap.py" in first.source:
        first.source = setup_cell()
    after: str = nbformat.writes(notebook)
    return path.read_text(encoding="utf-8") if after == before else after + "\n"


def _badge(place: str, notebook: str) -> str:
    page = f"{_slug()}/blob/{_BRANCH}/{notebook}.ipynb"
    image, link = {
        "Colab": (
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{page}",
        ),
        "Kaggle": (
            "https://kaggle.com/static/images/open-in-kaggle.svg",
            f"https://kaggle.com/kernels/welcome?src=https://github.com/{page}",
        ),
    }[place]
    return f"[![Open in {place}]({image})]({link})"


def _slug() -> str:
    return "/".join(repository_url().rstrip("/").removesuffix(".git").split("/")[-2:])


def main(*, write: bool = False) -> None:
    """Compare badges and set-up cells with the setting; --write rewrites what differs."""
    differing = outdated(write=write)
    for name in differing:
        print(f"{'rewritten' if write else 'differs'}: {name}")
    raise typer.Exit(1 if differing and not write else 0)


if __name__ == "__main__":
    typer.run(main)
