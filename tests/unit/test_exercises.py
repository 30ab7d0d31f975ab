"""Every exercise that can be judged without a server is: its untouched cell does not pass, its solution does.

Those that measure are judged by a real run (`tools.notebooks` says what did not hold, and keeps no such outputs).
"""

from __future__ import annotations

import contextlib
import io

import pytest

from tests.unit.test_notebooks import Notebook
from tools.notebooks import exercise_faults

COMMON = """
import dataclasses
from types import SimpleNamespace
import numpy as np
import pandas as pd
import accel_lib as accel
"""
# What the notebook has made by then: real values where the check asks for them, small tables where it asks a server.
BEFORE = {
    ("00_start_here", 0): """
model = SimpleNamespace(lengths=lambda texts: np.array([len(text.split()) for text in texts]))
""",
    ("01_pytorch_to_onnx", 1): """
matrix = np.random.default_rng(0).normal(size=(384, 1536)) * np.geomspace(0.1, 2, 1536)
""",
    ("04_measuring_honestly", 0): "",
    ("04_measuring_honestly", 1): "starved = SimpleNamespace(generator_busy=0.9, lag_ms=9.0, p50_ms=20.0)",
    ("05_dynamic_batching", 0): """
short, run = [], SimpleNamespace(statistics=SimpleNamespace(mean_batch_size=9.6))
embedding = SimpleNamespace(config=SimpleNamespace(max_batch_size=64, replace=lambda **new: SimpleNamespace(**new)))
row = {"mean_batch_size": [9.6, 8.0], "speedup": [1.0, 0.98], "speedup_high": [1.0, 1.1]}
vary = lambda *_, **__: SimpleNamespace(frame=pd.DataFrame(row))
""",
    ("05_dynamic_batching", 1): """
table = pd.DataFrame({"setting": ["a", "b"], "load": 1, "speedup_low": 0.5, "p95_ratio_low": 2.0})
on_short = SimpleNamespace(frame=table)
""",
    ("06_queues_under_pressure", 0): """
short, embedding, how = [], None, {}
accel = SimpleNamespace(check=accel.check, load_test=lambda *_, **__: SimpleNamespace(throughput=100.0))
vary = lambda *_, **__: SimpleNamespace(frame=pd.DataFrame({"goodput_per_s": [160.0, 620.0]}))
""",
    ("06_queues_under_pressure", 1): """
short, embedding, how, every = [], None, {}, (1, 2)


def vary(served, texts, settings, **load):
    level = list(settings.values())[1].get("default_priority_level", 0)
    p50 = [50.0, 25.0 if level == 2 else 52.0]
    return SimpleNamespace(by_priority=pd.DataFrame({"priority": 1, "p50_ms": p50}))
""",
    ("07_predict_it", 0): """
from tests.unit.test_simulate import calibration
service = calibration()
curve = SimpleNamespace(capacity=500.0)
""",
    ("08_tune_and_control", 1): "",
    ("your_model", 0): "import tempfile\nelsewhere = tempfile.TemporaryDirectory()",
    ("more/memory", 0): "",
}


def said(source, space):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "cell", "exec"), space)
    return out.getvalue()


@pytest.mark.parametrize(("name", "index"), BEFORE, ids=lambda value: str(value))
def test_the_untouched_exercise_does_not_pass_and_its_solution_does(name, index):
    notebook = Notebook(name)
    exercise, check, solution = (notebook.tagged(tag)[index].source for tag in ("exercise", "check", "solution"))
    space = {}
    exec(compile(COMMON + BEFORE[name, index], "before", "exec"), space)
    said(exercise, space)
    untouched = said(check, space)
    assert "not yet" in untouched
    assert "✓" not in untouched
    solved = said(solution, space)
    assert "✓" in solved
    assert "not yet" not in solved


def cells(check, solution):
    return [
        {"metadata": {"tags": [tag]}, "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}
        for tag, text in (("check", check), ("solution", solution))
    ]


def test_a_run_says_which_exercise_does_not_hold():
    assert exercise_faults(cells("not yet: sort them\n", "✓ sorted\n")) == []
    assert exercise_faults(cells("✓ sorted\n", "✓ sorted\n")) == ["exercise 1 passes untouched"]
    (fault,) = exercise_faults(cells("not yet: sort them\n", "not yet: 3 left\n"))
    assert fault == "solution 1 does not pass: not yet: 3 left"
