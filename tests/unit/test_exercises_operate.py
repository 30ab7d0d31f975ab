"""Exercises of notebooks 09, 11 and 15 that need no server: the untouched cell does not pass, the solution does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot

import accel_lib as accel
from accel_lib import tuning
from accel_lib.measurement import to_frame
from accel_lib.show import manifests, plots
from accel_lib.simulation.service_time import Cost, ServiceTime
from accel_lib.triton.config import ModelConfig, TensorSpec
from tests.unit.test_notebooks import ROOT, Notebook

COSTS = {
    "a CPU's": {"execution": 2.0, "row": 8.0, "cores": 1.5},
    "a GPU's": {"execution": 5.0, "row": 0.05, "cores": 0.3},
}


def run(source, space):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "cell", "exec"), space)
    return out.getvalue()


def judge(name, index, space):
    """Run an exercise, its check and its solution, and hold what they say."""
    exercise, check, solution = (Notebook(name).tagged(tag)[index].source for tag in ("exercise", "check", "solution"))
    run(exercise, space)
    untouched, solved = run(check, space), run(solution, space)
    assert "not yet" in untouched
    assert "✓" not in untouched
    assert "✓" in solved, solved
    assert "not yet" not in solved


def test_stored_vectors_shrink():
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(200, 20)) @ random.normal(size=(20, 384))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    judge("09_an_embedding_service", 0, {"accel": accel, "np": np, "vectors": vectors})


def test_the_first_token_comes_sooner():
    def timed(_, candidates, kept):
        return np.array([8, 0, 4 * candidates, 50 * kept, 300.0])

    def rerank(_, found, kept):
        return [(passage, 0.9) for passage in found[:kept]]

    known = [SimpleNamespace(question="", passage=n) for n in range(10)]
    near = [[n, *range(100, 119)] for n in range(10)]
    space: dict[str, Any] = {"accel": accel, "np": np, "timed": timed, "rerank": rerank, "fresh": itertools.count()}
    best = [found[:4] for found in near]
    judge("15_retrieve_rerank_generate", 0, space | {"known": known, "near": near, "best": best, "asked": [""] * 10})


def test_a_question_without_an_answer_is_told_from_the_others():
    asked, unknown = [f"{n}" for n in range(40)], [f"-{n}" for n in range(20)]
    scores = {"a passage answers": [0.98] * 20, "none does": [0.3, 0.7] * 5}

    def best_passage(question):
        return 0, 0.3 + 0.4 * (int(question) % 4 == 1) if question.startswith("-") else 0.98

    judge("15_retrieve_rerank_generate", 1, {"accel": accel, "np": np} | locals())


@pytest.fixture(scope="module", params=COSTS)
def after_the_day(request):
    """What notebook 11 has made when its exercises come, with a replica whose costs are those of a CPU or a GPU."""
    ids, vector = (TensorSpec(name=name, data_type="INT64", dims=(-1,)) for name in ("input_ids", "vector"))
    config = ModelConfig(name="m", inputs=(ids,), outputs=(vector,), max_batch_size=64, dynamic_batching=True)
    cost = Cost(call=0.0, token=0.0, square=0.0, request_cpu=0.4, **COSTS[request.param])
    frame, noise = to_frame([{"rows": 1, "ms": 10.0}]), (0.9, 1.0, 1.1)
    rest: dict[str, Any] = {"lengths": (8,), "transport_ms": 0.0, "client_ms": 0.0, "config": config, "budget": 4096}
    service = ServiceTime(frame=frame, costs={1: cost}, noise=noise, **rest)
    space: dict[str, Any] = {name: getattr(tuning, name) for name in vars(tuning)["__all__"]} | {
        "START_S": 61,
        "PRICE_PER_HOUR": 1.0,
        "OFF": 1.5,
    }
    space |= {
        "check": SimpleNamespace(keeps_up=True, factor=1.5),
        "accel": accel,
        "dataclasses": dataclasses,
        "manifests": manifests,
        "plots": plots,
    }
    space |= {"FOLDER": ROOT / "deploy" / "k8s", "replica": tuning.simulate_replica(service)}
    for cell in Notebook("11_to_kubernetes").code:
        if cell.id in ("predict", "signals", "fit", "burst", "policies", "trust"):
            run(cell.source, space)
    yield space
    matplotlib.pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1], ids=["cheapest", "cold start"])
def test_an_autoscaler_keeps_the_target(after_the_day, index):
    judge("11_to_kubernetes", index, after_the_day)
