"""Simulating, tuning and measuring a tiny language model behind a real Triton."""

from __future__ import annotations

import pytest

import accel_lib as accel
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.errors import AccelError
from accel_lib.models import load_model
from accel_lib.triton.repository import default_config
from tests.tiny import end_at_once, llama_folder

pytestmark = pytest.mark.triton
LOAD = {"prompt_tokens": (4, 24), "output_tokens": "exponential:6:16"}
GRID = {"rows": (1, 4), "step_tokens": (32,), "threads": (1,)}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "model_repository").mkdir()
    model = load_model(str(llama_folder(folder / "llama")))
    artifact = generation_to_openvino(model, output=folder / "openvino", progress=False)
    with accel.serve(folder / "model_repository") as server:
        artifact = artifact.record_validation({"passed": True})
        config = default_config("generation", artifact).replace(rows=4, cache_tokens=2_048, threads=1)
        yield server.add("generation", artifact, config=config)
        end_at_once(server)


@pytest.fixture(scope="module")
def simulator(served):
    return accel.fit_generation_simulator(served, seconds=1)


def test_a_served_model_is_fitted_with_the_settings_that_it_has(simulator):
    settings = simulator.settings
    assert (settings.rows, settings.cache_tokens, settings.step_tokens) == (4, 2_048, 128)


def test_tuning_simulates_all_measures_some_and_puts_the_own_setting_back(served):
    before = served.config
    found = accel.tune(
        served, ttft_ms=2_000, itl_ms=500, rate=5, seconds=2, rounds=2, calibrate_s=0.5, grid=GRID, **LOAD
    )
    assert served.config == before
    assert found.predicted["rows"].tolist() == [1, 4]
    assert (found.frame["runs"] == 2).all()
    assert (found.frame["goodput"] > 0).all()
    assert found.best["rows"] in (1, 4)
    assert "ITL ≤ 500 ms, 5.0 offered" in found.headline
    assert "2 settings were simulated" in found.explanation
    with served.own_config():
        found.apply()
        assert (served.config.rows, served.config.step_tokens) == (found.best["rows"], 32)


def test_a_target_that_nothing_keeps_is_said(served):
    found = accel.tune(
        served, ttft_ms=1e-3, itl_ms=1e-3, rate=4, seconds=1, rounds=1, calibrate_s=0.2,
        grid=GRID | {"rows": (2,)}, **LOAD,
    )  # fmt: skip
    assert found.headline.startswith("No setting keeps TTFT")


@pytest.mark.parametrize("asked", [{"grid": {"rows": ()}}, {"grid": {"instances": (1,)}}, {"itl_ms": 0}])
def test_tuning_for_nothing_is_refused(served, asked):
    with pytest.raises(AccelError, match="targets above zero"):
        accel.tune(served, **{"ttft_ms": 100, "itl_ms": 10} | asked)


def test_the_sliders_measure_the_served_model_as_they_are_set(served, simulator):
    before = served.config
    sliders = accel.sliders(simulator, ttft_ms=1_000, itl_ms=200, rate=5, served=served)
    sliders.knobs["rows"].value = 2
    sliders.knobs["prompt_tokens"].value = 16
    sliders.measure(seconds=2)
    assert served.config == before
    assert not sliders.measured.errors
    assert set(sliders.measured.frame["prompt_tokens"]) == {16}
    assert "Measured:" in sliders.title(sliders.simulate())
