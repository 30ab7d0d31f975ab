"""Run the course's notebooks headless: ``python -m tools.notebooks --help``."""

from __future__ import annotations

import ast
import base64
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from accel_lib.atomic import atomic_file, write_text
from accel_lib.errors import OutputError, require
from accel_lib.machine import cache_dir, inspect_machine, project_root

NOTEBOOKS = (
    "00_start_here",
    "01_pytorch_to_onnx",
    "02_onnx_to_tensorrt",
    "03_triton_in_a_notebook",
    "04_measuring_honestly",
    "05_dynamic_batching",
    "06_queues_under_pressure",
    "07_predict_it",
    "08_tune_and_control",
    "09_an_embedding_service",
    "10_versions_and_experiments",
    "11_to_kubernetes",
    "12_a_token_at_a_time",
    "13_batches_that_breathe",
    "14_a_chat_service_under_load",
    "15_retrieve_rerank_generate",
    "your_model",
)
MORE = ("more/response_cache", "more/rate_limiter", "more/split_model", "more/memory")

BRIEFLY: dict[str, dict[str, Any]] = {
    "00_start_here": {"TEXTS": 32, "SECONDS": 2},
    "01_pytorch_to_onnx": {"TEXTS": 64, "SECONDS": 2},
    "02_onnx_to_tensorrt": {"SECONDS": 2},
    "03_triton_in_a_notebook": {"SECONDS": 2},
    "12_a_token_at_a_time": {"NEW_TOKENS": 40, "ROWS": [1, 2, 4, 8], "PROMPTS": [16, 64, 256]},
    "13_batches_that_breathe": {"REQUESTS": 17},
    "14_a_chat_service_under_load": {"REQUESTS": 8},
    "15_retrieve_rerank_generate": {"EVERY": 8},
    "rate_limiter": {"SECONDS": 1, "ROUNDS": 1},
    "response_cache": {"SECONDS": 1, "ROUNDS": 1},
    "split_model": {"SECONDS": 1, "ROUNDS": 1},
}  # parameters with which a run shows that the cells work, and little else


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotebookRun:
    """One executed notebook: its name, cells, duration, and the cell that failed, if one did."""

    name: str
    cells: int
    seconds: float
    failure: str = ""

    @property
    def verdict(self) -> str:
        """``"passed"``, or the failing cell."""
        return self.failure or "passed"


def run_notebooks(
    paths: Sequence[Path],
    *,
    output: Path,
    parameters: dict[str, Any] | None = None,
    fresh: bool = False,
    first: Collection[str] = (),
    nbval: Collection[str] = (),
    cell_timeout_s: int = 600,
    jobs: int = 1,
    brief: bool = False,
) -> list[NotebookRun]:
    """Execute notebooks, each in its own kernel, with a line of progress each.

    Parameters
    ----------
    paths
        Notebook files.
    output
        Folder for the executed copies.
    parameters
        Values for the cell tagged ``parameters``.
    fresh
        Give each notebook an empty cache and an empty model repository; only the downloaded Triton is shared.
    first
        With `fresh`: names of those that begin before the others, which find what these have left in their caches.
    nbval
        Names of those that nbval executes, which sees what papermill does not: a cell whose widget swallowed an error.
    cell_timeout_s
        Longest time one cell may take.
    jobs
        Notebooks at a time. What several measure beside each other says nothing: more than 1 shows that cells run.
    brief
        Take the parameters of `BRIEFLY` where `parameters` has none.

    Returns
    -------
    list of NotebookRun
        One for each notebook in their order, also for those that failed.

    Raises
    ------
    OutputError
        In `output` is a notebook of that name that is no executed copy, such as the notebook itself.
    """
    for path in paths:
        _check_copy(output / path.name)
    output.mkdir(parents=True, exist_ok=True)
    resolved = [path.resolve() for path in paths]
    order = sorted(resolved, key=lambda path: path.stem not in first)  # otherwise as they were named
    with tempfile.TemporaryDirectory(prefix="accel-") as left:
        one = functools.partial(
            _run_alone,
            output=output.resolve(),
            parameters=parameters or {},
            brief=brief,
            fresh=fresh,
            left=Path(left),
            first=first,
            nbval=nbval,
            limit_s=cell_timeout_s,
            threads=max(1, inspect_machine().cores // jobs) if jobs > 1 else None,
        )
        if jobs == 1:
            runs = [one(path) for path in order]
        else:
            with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
                runs = list(pool.map(one, order))
    return [runs[order.index(path)] for path in resolved]


def _run_alone(
    path: Path,
    *,
    output: Path,
    parameters: dict[str, Any],
    brief: bool,
    fresh: bool,
    left: Path,
    first: Collection[str],
    nbval: Collection[str],
    limit_s: int,
    threads: int | None,
) -> NotebookRun:
    by_nbval = path.stem in nbval
    values = (BRIEFLY.get(path.stem, {}) if brief else {}) | parameters
    with _surroundings(fresh, threads, left, path.stem if path.stem in first else ""):
        run = _run(path, output / path.name, values, limit_s, nbval=by_nbval)
    mark = "✗" if run.failure else "✓"
    print(f"{mark} {run.name}: {run.cells} cells, {run.seconds:.0f} s  {run.failure}".rstrip(), flush=True)
    for fault in [] if run.failure or by_nbval else exercise_faults(_read(output / path.name).cells):
        print(f"  {fault}", flush=True)
    return run


def summarize(runs: Sequence[NotebookRun], path: Path, *, status: int = 0, files: Sequence[Path] = ()) -> None:
    """Write a headless run as JSON: where it ran, each notebook's seconds and verdict, and what else was measured.

    Parameters
    ----------
    runs
        What `run_notebooks` returned.
    path
        File to write.
    status
        Exit status of the whole.
    files
        JSON files of further experiments, taken in under their names.
    """
    machine = inspect_machine()
    summary = {
        "passed": status == 0,
        "machine": str(machine),
        "gpus": [str(gpu) for gpu in machine.gpus],
        "place": machine.place,
        "versions": machine.versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "notebooks": [dataclasses.asdict(run) | {"verdict": run.verdict} for run in runs],
        **{file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files},
    }
    write_text(path, json.dumps(summary, indent=2) + "\n")


def exercise_faults(cells: Sequence[Any]) -> list[str]:
    """What does not hold in executed cells: an exercise that passes untouched, or a solution that does not pass."""
    faults = []
    for tag in ("check", "solution"):
        tagged = [cell for cell in cells if tag in cell["metadata"].get("tags", [])]
        for number, cell in enumerate(tagged, 1):
            said = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            if tag == "check" and "not yet" not in said:
                faults.append(f"exercise {number} passes untouched")
            if tag == "solution" and "not yet" in said:
                faults.append(f"solution {number} does not pass: {said.strip()}")
    return faults


def keep_outputs(path: Path, copy: Path) -> None:
    """Write the outputs of an executed copy into the notebook itself, and nothing else of the copy.

    The figure of a cell tagged ``readme`` also goes to ``images/`` beside the notebook, for the README.
    """
    notebook, executed = _read(path), {cell.id: cell for cell in _read(copy).cells}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = executed[cell.id].outputs
            cell.execution_count = executed[cell.id].execution_count
        if "readme" in cell.metadata.get("tags", []):
            _keep_figure(cell, path.parent / "images" / f"{path.stem}.png")
    write_text(path, require("nbformat", extra="notebook").writes(notebook) + "\n")


def _keep_figure(cell: Any, file: Path) -> None:
    figures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    with atomic_file(file) as draft:
        draft.write_bytes(base64.b64decode(figures[-1]))


def _check_copy(copy: Path) -> None:
    try:
        executed = not copy.exists() or "papermill" in json.loads(copy.read_text(encoding="utf-8"))["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        executed = False
    if not executed:
        raise OutputError(
            f"{copy.name} in {copy.parent.name} is no executed copy, so it stays.",
            fix="name another folder: --output out",
        )


def _run(path: Path, copy: Path, parameters: dict[str, Any], cell_timeout_s: int, *, nbval: bool) -> NotebookRun:
    papermill = require("papermill", extra="notebook")
    bar = {"desc": path.stem, "leave": False, "disable": not sys.stderr.isatty(), "mininterval": 0}
    bar["bar_format"] = "{desc}: cell {n_fmt} of {total_fmt}, {elapsed}"
    source = _read(path)
    copy.unlink(missing_ok=True)
    started, failure = time.monotonic(), ""
    try:
        papermill.execute_notebook(
            input_path=path,
            output_path=copy,
            parameters=parameters,
            cwd=path.parent,
            kernel_name="python3",
            language="python",
            progress_bar=bar,
            execution_timeout=cell_timeout_s,
            coalesce_streams=True,  # else a line printed in two parts is stored as two
            extra_arguments=["--log-level=ERROR"],
            prepare_only=nbval,
        )
        if nbval:
            failure = _nbval(copy, cell_timeout_s)
    except Exception as error:  # a cell raised, ran out of time or killed its kernel: each has its own type
        failure = _failure(source, copy, error)
    return NotebookRun(name=path.stem, cells=len(source.cells), seconds=time.monotonic() - started, failure=failure)


def _nbval(copy: Path, cell_timeout_s: int) -> str:
    """Execute a notebook by nbval; what failed, or nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", f"--nbval-cell-timeout={cell_timeout_s}", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"nbval: {done.stdout[-2_000:]}{done.stderr[-1_000:]}" if done.returncode else ""


def _failure(source: Any, copy: Path, error: Exception) -> str:
    """Name the last cell that was started: its number, tags and first line, and the error."""
    reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}".splitlines()[0]
    executed = _read(copy).cells if copy.is_file() else []
    started = [cell for cell in executed if cell.metadata.get("papermill", {}).get("start_time")]
    if not started:
        return f"before the first cell: {reason}"
    last = started[-1]
    number = next((str(n) for n, cell in enumerate(source.cells, 1) if cell.id == last.id), "of injected parameters")
    tags = "".join(f" [{tag}]" for tag in last.metadata.get("tags", []))
    return f"cell {number}{tags} `{last.source.strip().splitlines()[0]}` {reason}"


@contextlib.contextmanager
def _surroundings(fresh: bool, threads: int | None, left: Path, leave: str) -> Iterator[None]:
    """Environment of the kernels: headless, and with `fresh` an empty repository, and a cache with what lies in `left`.

    Both vanish afterwards; with `leave` the cache is empty, and moves into `left` under that name.
    With `threads` PyTorch takes no more: kernels beside each other that each take all cores wait for one another.
    """
    with tempfile.TemporaryDirectory(prefix="accel-") as folder:
        changed = {"ACCEL_HEADLESS": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        if fresh:
            triton = cache_dir("triton")
            triton.mkdir(parents=True, exist_ok=True)
            home = Path(folder, "cache")
            home.mkdir()
            for cache in [] if leave else sorted(left.iterdir()):
                shutil.copytree(cache, home, copy_function=_link, dirs_exist_ok=True)
            (home / "triton").symlink_to(triton.resolve(), target_is_directory=True)
            repository = Path(folder, "model_repository")
            repository.mkdir()
            changed |= {"ACCEL_HOME": str(home), "ACCEL_REPOSITORY": str(repository)}
        before = dict(os.environ)
        os.environ.update(changed)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            if leave and fresh:
                (home / "triton").unlink()
                home.rename(left / leave)


def _link(file: str, name: str) -> None:
    """A file of one cache in another; of two that are there under this name the first stays."""
    with contextlib.suppress(FileExistsError):
        os.link(file, name)


def _read(path: Path) -> Any:
    return require("nbformat", extra="notebook").read(path, as_version=4)


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Notebooks, such as 00_start_here; course names those of the course, more those of more/."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the executed copies.")] = Path("out"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Empty cache and repository for each; the downloaded Triton is shared.")
    ] = False,
    first: Annotated[
        list[str] | None,
        typer.Option("--first", help="With --fresh: one to begin before the others, which find what it converted."),
    ] = None,
    nbval: Annotated[
        list[str] | None, typer.Option("--nbval", help="One to execute by nbval instead of papermill; may be repeated.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Keep the outputs in the notebooks themselves.")] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE for the parameters cell.")
    ] = None,
    cell_timeout: Annotated[int, typer.Option(help="Longest time a cell may take, in seconds.")] = 600,
    brief: Annotated[bool, typer.Option("--brief", help="Measure as briefly as shows that the cells work.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks at a time; only 1 measures anything true.")] = 1,
) -> None:
    """Run notebooks headless, by default the course; print a table, and exit with 1 if one fails."""
    if write and (nbval or brief or jobs > 1):
        raise typer.BadParameter("outputs are kept of papermill's whole runs, one at a time: --write alone")
    groups = {"course": NOTEBOOKS, "more": MORE}
    asked = dict.fromkeys(one for name in names or ["course"] for one in groups.get(name, (name,)))
    paths = [_notebook(project_root() / "notebooks" / f"{name.removesuffix('.ipynb')}.ipynb") for name in asked]
    values = dict(_value(text) for text in parameter or [])
    started = time.monotonic()
    how: dict[str, Any] = {
        "fresh": fresh,
        "first": first or (),
        "nbval": nbval or (),
        "cell_timeout_s": cell_timeout,
        "jobs": jobs,
        "brief": brief,
    }
    runs = run_notebooks(paths, output=output, parameters=values, **how)
    passed = sum(not run.failure for run in runs)
    print(f"{passed} of {len(runs)} notebooks passed in {time.monotonic() - started:.0f} s")
    if write:
        for path, run in zip(paths, runs, strict=True):
            if not run.failure and not exercise_faults(_read(output / path.name).cells):
                keep_outputs(path, output / path.name)
    raise typer.Exit(0 if passed == len(runs) else 1)


def _notebook(path: Path) -> Path:
    if path.is_file():
        return path
    known = ", ".join(file.stem for file in sorted(path.parent.glob("*.ipynb")))
    raise typer.BadParameter(f"the course has no notebook {path.stem}; it has {known}")


def _value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise typer.BadParameter(f"a parameter is NAME=VALUE, such as -p QUICK=False: {text}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    typer.run(main)
