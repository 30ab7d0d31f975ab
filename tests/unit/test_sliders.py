"""The sliders' callbacks, without a browser, on a calibration made up for them; real widgets of whatever ipywidgets."""

from __future__ import annotations

import ast
import inspect
import io
import itertools

import numpy as np
import pandas as pd
import pytest

import accel_lib as accel
from accel_lib.errors import AccelError
from accel_lib.ragged import Ragged
from accel_lib.show import generation_sliders, slider_panel
from accel_lib.show import sliders as module
from accel_lib.show.sliders import FOR_P99, Measured, Sliders
from accel_lib.triton.config import ModelConfig
from tests.unit.test_simulate import calibration
from tests.unit.test_simulate_generation import simulator


class Served:
    """Stands for a served model where only its name, texts and configuration are asked for."""

    name = "embedding"

    def __init__(self, precision):
        self.precision = precision
        self.config = ModelConfig(name="embedding")

    def tokenize(self, texts):
        return Ragged.from_rows([np.ones(len(text.split()), dtype=np.int64) for text in texts])


TEXTS = ["a b c", "a b c d e", "a b c d e f g h"]


@pytest.fixture(autouse=True)
def _contenders(monkeypatch):
    monkeypatch.setattr(module, "_name", lambda served: ("minilm", "onnx", served.precision))
    monkeypatch.setattr(module, "fit_simulator", lambda *_, **__: calibration(noise=(0.9, 1.0, 1.1)))


@pytest.fixture
def sliders():
    models = [Served("fp32"), Served("int8")]
    return Sliders(models, TEXTS, p95_ms=40, calibrated=[calibration()], most_instances=3)


def drag(sliders, **moved):
    for name, value in ({"rate": 100, "max_batch_size": 64, "max_queue_delay_us": 0} | moved).items():
        sliders.knobs[name].value = value
    return sliders.simulate()


def test_the_answer_follows_every_knob(sliders):
    calm = drag(sliders)
    for moved in ({"rate": 300}, {"max_batch_size": 1, "rate": 190}, {"max_queue_delay_us": 20_000}):
        assert drag(sliders, **moved).p95_ms > calm.p95_ms
    assert set(drag(sliders, tokens=5).frame["tokens"]) == {3, 5, 8}
    assert drag(sliders, preferred_batch_size=4, max_queue_delay_us=50_000).batch_sizes.idxmax() == 4


def test_an_uncalibrated_choice_is_refused_until_it_is_calibrated(sliders):
    sliders.chosen["precision"].value = "int8"
    with pytest.raises(AccelError, match="not calibrated"):
        sliders.simulate()
    sliders.calibrate()
    assert sliders.simulate().throughput > 0


def test_a_combination_that_is_not_served_offers_nothing(sliders):
    sliders.models.pop(("minilm", "onnx", "int8"))
    sliders.chosen["precision"].value = "int8"
    assert "not served" in sliders.said.value
    assert sliders.buttons["calibrate"].disabled
    with pytest.raises(AccelError, match="minilm onnx fp32"):
        _ = sliders.config


def test_a_pin_stays_while_the_knobs_move_on(sliders):
    sliders.pin("A")
    now = drag(sliders, rate=300)
    assert now.p95_ms > sliders.pins["A"].p95_ms


def test_the_config_is_the_knobs_as_triton_reads_it(sliders):
    drag(sliders, max_queue_delay_us=2_000, preferred_batch_size=8, max_batch_size=16)
    read = ModelConfig.from_text(sliders.text.value)
    assert (read.max_queue_delay_us, read.preferred_batch_sizes, read.max_batch_size) == (2_000, (8,), 16)


def test_no_p99_is_said_of_few_samples_and_a_narrow_interval_suffices():
    random, sizes = np.random.default_rng(0), pd.Series({1: 5})
    few, many = (
        Measured(ms=random.normal(30, 3, count), batch_sizes=sizes, throughput=50.0) for count in (60, FOR_P99)
    )
    wide = Measured(ms=random.lognormal(3, 2, 60), batch_sizes=sizes, throughput=50.0)
    assert "p99" not in str(few)
    assert "p99" in str(many)
    assert many.suffices
    assert not wide.suffices


def test_the_title_names_the_target_and_the_bottleneck(sliders):
    assert "within the target of 40 ms" in sliders.title(drag(sliders))
    assert "over the target" in sliders.title(drag(sliders, max_batch_size=1, rate=300))


def test_dragging_redraws_an_image_and_the_config(sliders):
    before = sliders.image.value
    sliders.knobs["rate"].value = 250
    assert bytes(before).startswith(b"\x89PNG")
    assert bytes(sliders.image.value) != bytes(before)
    sliders.knobs["max_queue_delay_us"].value = 3_000
    assert "max_queue_delay_microseconds: 3000" in sliders.text.value


def test_uncalibrated_choices_are_disabled_behind_the_button(sliders):
    sliders.chosen["precision"].value = "int8"
    assert sliders.knobs["rate"].disabled
    assert sliders.buttons["measure"].disabled
    assert not sliders.buttons["calibrate"].disabled
    assert "Calibrate" in sliders.said.value
    sliders.buttons["calibrate"].click()
    assert not sliders.knobs["rate"].disabled
    assert sliders.buttons["calibrate"].disabled


def test_buttons_pin_clear_and_show_the_config(sliders):
    sliders.buttons["pin_a"].click()
    sliders.knobs["rate"].value = 300
    sliders.buttons["pin_b"].click()
    assert set(sliders.pins) == {"A", "B"}
    sliders.buttons["clear"].click()
    assert not sliders.pins


def test_the_config_is_shown_as_text_to_select_and_copy_and_hidden_again(sliders):
    sliders.buttons["copy"].click()
    assert sliders.text.layout.display == ""
    assert "Ctrl+C" in sliders.said.value
    assert "max_batch_size" in sliders.text.value
    sliders.buttons["copy"].click()
    assert sliders.text.layout.display == "none"
    assert not sliders.said.value


SHARED_BY_7_AND_8 = {  # these tests passed with ipywidgets 7.7.1 of Colab and 8.1 alike
    "Button": {"description", "layout"},
    "Dropdown": {"description", "layout", "options", "value"},
    "HBox": set(),
    "HTML": set(),
    "Image": {"format"},
    "IntSlider": {"continuous_update", "description", "layout", "max", "min", "step", "style", "value"},
    "Layout": {"display", "height", "width"},
    "Textarea": {"layout"},
    "VBox": set(),
}


def test_only_widgets_and_traits_that_ipywidgets_7_has_too_are_used():
    used = {}
    trees = [ast.parse(inspect.getsource(each)) for each in (module, slider_panel, generation_sliders)]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="widgets"), attr=name), keywords=words):
                used.setdefault(name, set()).update(word.arg for word in words)
    assert used == SHARED_BY_7_AND_8


def test_a_failed_measurement_says_so_in_the_widget(sliders, monkeypatch):
    def fail(*_, **__):
        raise AccelError("Triton cannot be reached.", fix="serve again")

    monkeypatch.setattr(sliders, "measure", fail)
    sliders.buttons["measure"].click()
    assert "Triton cannot be reached." in sliders.said.value
    assert sliders.buttons["measure"].description == "Measure"


def test_without_a_reader_the_answer_is_a_figure(sliders, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    sliders._ipython_display_()
    assert shown[0].data == bytes(sliders.image.value)


def test_the_figure_is_drawn_with_pins_and_a_measurement(sliders):
    from matplotlib.image import imread

    sliders.buttons["pin_a"].click()
    sliders.measured = Measured(ms=np.full(50, 30.0), batch_sizes=pd.Series({1: 10, 2: 20}), throughput=50.0)
    sliders.refresh()
    assert imread(io.BytesIO(sliders.image.value)).shape[1] == 640


@pytest.mark.parametrize("asked", [{"models": []}, {"texts": []}, {"p95_ms": 0}])
def test_sliders_over_nothing_are_refused(asked):
    with pytest.raises(AccelError, match="p95_ms=50"):
        Sliders(**{"models": [Served("fp32")], "texts": TEXTS, "p95_ms": 40} | asked)


@pytest.fixture
def generation():
    return accel.sliders(simulator(), ttft_ms=1_000, itl_ms=60, rate=1)


def test_rates_lengths_and_rows_of_a_model_that_generates_move_its_answer(generation):
    calm = generation.simulate()
    assert calm.settings.rows == 4
    assert calm.offered == pytest.approx(1, rel=0.2)
    generation.knobs["rate"].value = 180
    busy = generation.simulate()
    assert busy.percentile("ttft_ms", 95) > 2 * calm.percentile("ttft_ms", 95)
    assert "keep both targets. The limit is rows" in generation.title(busy)
    generation.knobs["rows"].value = 1
    assert generation.simulate().goodput < busy.goodput
    generation.chosen["answers"].value = "equal"
    assert generation.simulate().frame["output_tokens"].nunique() == 1


def test_a_cache_that_holds_no_request_is_said_below_the_buttons(generation):
    generation.knobs["cache_tokens"].value = 32
    assert "could never finish" in generation.said.value
    generation.knobs["cache_tokens"].value = 2_048
    assert not generation.said.value


def test_what_was_measured_is_drawn_beside_the_prediction_until_a_knob_moves(generation):
    before = bytes(generation.image.value)
    generation.measured = generation.simulate()
    generation.refresh()
    assert bytes(generation.image.value) != before
    assert "Measured:" in generation.title(generation.simulate())
    generation.knobs["rate"].value = 30
    assert generation.measured is None


def test_without_a_served_model_there_is_nothing_to_measure(generation):
    assert "measure" not in generation.buttons
    with pytest.raises(AccelError, match="served=model"):
        generation.measure()
    with pytest.raises(AccelError, match="above zero"):
        accel.sliders(simulator(), ttft_ms=0, itl_ms=1)
