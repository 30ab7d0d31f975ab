"""The whole course as a Kaggle script kernel: fetch, install, run every notebook by papermill, sum up, pass or fail.

Kaggle uploads this one file, so it fetches the rest: from an attached dataset, else from ACCEL_SOURCE, else from the
repository. Executed notebooks and summary.json go to the working folder; a failed notebook ends the kernel with 1.

The course runs on the first T4. Where there are two, both run afterwards: one instance on each, and one model split
over the two (kaggle/two_gpus.py).

    python kaggle/run_course.py [--dry-run] [notebook ...]
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

REPOSITORY = "https://github.com/yourusername/genai-accelerator"
ROOT = Path(os.environ.get("ACCEL_ROOT", "/"))  # of Kaggle's folders; tests have one of their own
WORKING, DATASETS = ROOT / "kaggle" / "working", ROOT / "kaggle" / "input"


def bootstrap_text():
    """The set-up of every notebook, from wherever the project is."""
    given = Path(os.environ.get("ACCEL_SOURCE", ""), "colab", "bootstrap.py")
    for path in (*sorted(DATASETS.glob("**/colab/bootstrap.py")), given):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    address = REPOSITORY.replace("https://github.com", "https://raw.githubusercontent.com")
    with urlopen(f"{address}/main/colab/bootstrap.py") as answer:
        return answer.read().decode("utf-8")


def set_up(dry_run):
    """Fetch and install the project, unless it is there."""
    if find_spec("accel_lib") and not dry_run:
        return
    os.environ.setdefault("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    here = {"__name__": "bootstrap"}
    exec(compile(bootstrap_text(), "bootstrap.py", "exec"), here)
    here["bootstrap"](dry_run=dry_run)
    if not dry_run:
        here["install"]("papermill>=2.6", "nbformat>=5.9", "ipywidgets", "matplotlib")


def run_course(names):
    """Run notebooks on the first GPU, then use both; returns the exit status."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    from accel_lib.machine import inspect_machine, project_root

    sys.path.insert(0, str(Path(find_spec("accel_lib").origin).parents[1]))
    from tools.notebooks import NOTEBOOKS, run_notebooks, summarize

    folder = project_root() / "notebooks"
    output = WORKING / "course"
    runs = run_notebooks([folder / f"{name}.ipynb" for name in names or NOTEBOOKS], output=output)
    status = 0 if all(run.verdict == "passed" for run in runs) else 1
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    gpus = inspect_machine().gpus
    parallel = WORKING / "two_gpus.json"
    if len(gpus) > 1:
        script = project_root() / "kaggle" / "two_gpus.py"
        status |= subprocess.run([sys.executable, script, parallel], check=False).returncode
    else:
        print(f"two GPUs: left out, as there {'is one' if gpus else 'is none'}", flush=True)
    summarize(runs, WORKING / "summary.json", status=status, files=[parallel] if parallel.is_file() else [])
    print(f"{'passed' if status == 0 else 'failed'}: {WORKING / 'summary.json'}", flush=True)
    return status


def main(words):
    """Run it all, or with --dry-run say what would be done."""
    dry_run = "--dry-run" in words
    names = [word for word in words if not word.startswith("-")]
    set_up(dry_run)
    if dry_run:
        print(f"would run {', '.join(names) or 'every notebook'} on the first GPU, into {WORKING / 'course'}")
        return 0
    return run_course(names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] if sys.argv[0].endswith("run_course.py") else []))
