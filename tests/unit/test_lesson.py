from __future__ import annotations

import ipywidgets
import pytest

from accel_lib.show import quiz as lesson
from accel_lib.show.quiz import check, guess, reveal


@pytest.fixture
def _reader(monkeypatch):
    """A notebook with somebody in front of it; what it displays is swallowed."""
    monkeypatch.setattr(lesson, "live_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda *_: None)


def said(capsys, given, actual):
    reveal(given, actual)
    return capsys.readouterr().out.strip()


def test_without_a_reader_the_default_is_taken_and_said(capsys, monkeypatch):
    monkeypatch.setenv("ACCEL_HEADLESS", "1")
    given = guess("p95 at 32 clients?", 40, unit="ms")
    assert capsys.readouterr().out == "p95 at 32 clients? (a usual guess: 40 ms)\n"
    assert given.value == 40
    assert given.own is None


def test_without_reader_and_default_there_is_no_guess(capsys, monkeypatch):
    monkeypatch.setenv("ACCEL_HEADLESS", "1")
    given = guess("Which is faster?", choices=["one by one", "32 at once"])
    assert "one by one / 32 at once (no guess given)" in capsys.readouterr().out
    assert said(capsys, given, "32 at once") == "No guess given; it was 32 at once."


@pytest.mark.parametrize("given", [2.0, None])
def test_a_measurement_that_ended_before_its_answer_leaves_the_guess_open(capsys, given):
    assert said(capsys, given, float("nan")) == "It was not measured, so the guess stays open."


def test_outside_a_notebook_nothing_is_asked(capsys, monkeypatch):
    monkeypatch.delenv("ACCEL_HEADLESS", raising=False)
    assert guess("p95?", unit="ms").widget is None
    assert "no guess given" in capsys.readouterr().out


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(
    ("typed", "value"),
    [("40", 40), (" 40 ms", 40), ("1,200", 1200), ("0,5", 0.5), ("-3.5", -3.5), ("1e3", 1000), ("about 40.", 40)],
)
def test_a_typed_number_is_read_at_the_reveal(typed, value):
    given = guess("p95?", unit="ms")
    given.widget.value = typed
    assert given.value == value


@pytest.mark.usefixtures("_reader")
def test_an_empty_box_is_no_guess_and_not_zero():
    assert guess("p95?", unit="ms").value is None


@pytest.mark.usefixtures("_reader")
def test_an_empty_box_falls_back_to_the_default():
    assert guess("p95?", 7, unit="ms").value == 7


@pytest.mark.usefixtures("_reader")
def test_nothing_is_chosen_before_the_reader_chooses():
    given = guess("Which?", choices=["32 at once", "one by one"])
    assert isinstance(given.widget, ipywidgets.RadioButtons)
    assert given.value is None
    given.widget.value = "32 at once"
    assert given.value == "32 at once"


def test_a_low_guess_hears_how_many_times_as_much_it_was(capsys):
    given = lesson.Guess(question="p95?", unit="ms", default=40)
    assert said(capsys, given, 61.2) == "The guess was 40 ms, it was 61 ms: 1.5 times the guess."


@pytest.mark.usefixtures("_reader")
def test_a_reader_who_answered_hears_what_she_said(capsys):
    given = guess("Which?", "32 at once", choices=["32 at once", "one by one"])
    assert said(capsys, given, "one by one") == "The guess was 32 at once; it was one by one."
    given.widget.value = "one by one"
    assert said(capsys, given, "one by one") == "You said one by one, and so it was."


def test_a_high_guess_hears_how_far_too_high_it_was(capsys):
    assert said(capsys, 80, 40) == "You said 80, it was 40: the guess was 2.0 times too high."


def test_a_close_guess_is_well_guessed(capsys):
    assert said(capsys, 60, 61) == "You said 60, it was 61: well guessed."


@pytest.mark.parametrize(
    ("given", "actual", "end"), [(0, 61, "off by 61."), (5, 0, "off by 5."), (0, 0, "exactly right.")]
)
def test_zero_has_no_ratio(capsys, given, actual, end):
    assert said(capsys, given, actual).endswith(end)


def test_words_are_compared_without_case(capsys):
    assert said(capsys, "one by one", "One by one") == "You said one by one, and so it was."
    assert said(capsys, "one by one", "32 at once") == "You said one by one; it was 32 at once."


def test_a_number_against_a_word_is_still_a_sentence(capsys):
    assert said(capsys, 3, "batching loses") == "You said 3; it was batching loses."


def test_a_check_prints_its_name_or_its_hint(capsys):
    assert check("padding halved", True) is True
    assert check("padding halved", False, "sort by length first") is False
    assert capsys.readouterr().out == "✓ padding halved\nnot yet: sort by length first\n"
