"""A real Triton serves artifacts of OpenVINO: each version runs in the engine that its format names."""

from __future__ import annotations

import numpy as np
import pytest

import accel_lib
from accel_lib.tuning import grid
from tests.tiny import end_at_once

pytestmark = pytest.mark.triton
TEXTS = list(accel_lib.load_texts("mixed", limit=24))


@pytest.fixture(scope="module")
def artifacts(tiny_model, tmp_path_factory):
    """The tiny model in OpenVINO's FP32, without padding, and in its INT8."""
    place = tmp_path_factory.mktemp("artifacts")
    onnx = accel_lib.to_onnx(tiny_model, packed=True, output=place / "onnx", progress=False)
    made = {p: accel_lib.to_openvino(onnx, precision=p, output=place / p, progress=False) for p in ("fp32", "int8")}
    for artifact in made.values():
        accel_lib.validate(artifact, reference=tiny_model, texts=TEXTS)
    return made


@pytest.fixture(scope="module")
def server(artifacts, tmp_path_factory):
    repository = tmp_path_factory.mktemp("openvino") / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as running:
        running.add("tiny", artifacts["fp32"], version=1)
        running.add("tiny", artifacts["int8"], version=2)
        yield running
        end_at_once(running)


def test_triton_answers_with_the_references_vectors(server, tiny_model):
    served = server.model("tiny", 1)
    assert served.artifact.name == "openvino fp32 packed"
    np.testing.assert_allclose(served.encode(TEXTS), tiny_model.reference(TEXTS), atol=1e-4)


def test_a_sweep_lets_openvino_compile_before_it_measures(server, monkeypatch):
    asked = []

    def load_test(served, texts, **how):
        asked.append(how["warmup_s"])
        return accel_lib.load_test(served, texts, **how)

    monkeypatch.setattr(grid, "load_test", load_test)
    grid.sweep(
        server.model("tiny", 1), TEXTS, p95_ms=1_000, rate=20, seconds=0.5, repeats=1, grid={"instance_count": (1,)}
    )
    assert asked[-1] >= 3


def test_int8_is_served_as_it_runs_here(server, artifacts, tiny_model):
    engine = accel_lib.open_engine(artifacts["int8"])
    here = np.concatenate([engine.run(*tiny_model.tokenize([text]).padded(0)) for text in TEXTS])
    there = np.concatenate([server.model("tiny", 2).encode([text]) for text in TEXTS])
    np.testing.assert_allclose(there, here, atol=2e-2)
    assert np.abs(there - tiny_model.reference(TEXTS)).max() > 1e-5  # it is INT8 that answered
