"""A lesson's frame: the reader commits to a guess, sees the answer beside it, and checks her own work.

Nothing here waits for input: a notebook that runs from top to bottom goes on without a guess.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from accel_lib.formatting import number
from accel_lib.progress import live_notebook

_CLOSE = 0.1  # a guess within 10% is right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
    """What the reader committed to; `value` is read when it is asked for, so she may still change her mind.

    Parameters
    ----------
    question, unit
        What was asked, and the unit of the answer.
    default
        A usual guess, taken when the reader gave none.
    widget
        The ipywidgets input, or None in a run without a reader.
    """

    question: str
    unit: str = ""
    default: float | str | None = None
    widget: Any = None

    @property
    def own(self) -> float | str | None:
        """What the reader herself said; None where she said nothing."""
        answer: float | str | None = getattr(self.widget, "value", None)
        return _parse(answer) if isinstance(answer, str) and self.widget.has_trait("placeholder") else answer

    @property
    def value(self) -> float | str | None:
        """The guess: a number, a word, or None where there is none."""
        return self.default if self.own is None else self.own


def guess(question: str, default: float | str | None = None, unit: str = "", *, choices: Sequence[str] = ()) -> Guess:
    """Ask for a prediction before an experiment.

    Parameters
    ----------
    question
        What to predict.
    default
        A guess that a sensible reader would make: taken when she makes none, or there is none (``ACCEL_HEADLESS=1``).
    unit
        Unit of a number, such as ``"ms"``.
    choices
        Answers to choose from; without them a number is typed in.

    Returns
    -------
    Guess
        For `reveal`; nothing waits for the answer.

    Examples
    --------
    >>> latency = guess("p95 at 32 clients", unit="ms")
    p95 at 32 clients (no guess given)
    >>> reveal(latency, 61.2)
    No guess given; it was 61 ms.
    """
    if not live_notebook() or importlib.util.find_spec("ipywidgets") is None:
        taken = f"a usual guess: {_say(default, unit)}" if default is not None else "no guess given"
        options = f" {' / '.join(choices)}" if choices else ""
        print(f"{question}{options} ({taken})")
        return Guess(question=question, unit=unit, default=default)
    import ipywidgets

    wide = ipywidgets.Layout(width="max-content")
    if choices:
        entry = ipywidgets.RadioButtons(options=list(choices), value=None, layout=wide)
    else:
        entry = ipywidgets.Text(placeholder=f"your guess{f', {unit}' if unit else ''}", continuous_update=True)
    import_module("IPython.display").display(
        ipywidgets.VBox([ipywidgets.HTML(f"<b>{question}</b>", layout=wide), entry])
    )
    return Guess(question=question, unit=unit, default=default, widget=entry)


def reveal(guess: Guess | float | str | None, actual: float | str) -> None:
    """Print the prediction beside the measurement, and how far apart they are.

    Parameters
    ----------
    guess
        What `guess` returned, or a plain number or word.
    actual
        The measured answer, in the unit of the question.
    """
    if isinstance(guess, Guess):
        print(_verdict(guess.value, actual, guess.unit, "The guess was" if guess.own is None else "You said"))
    else:
        print(_verdict(guess, actual, "", "You said"))


def _verdict(value: float | str | None, actual: float | str, unit: str, said: str) -> str:
    if actual != actual:
        return "It was not measured, so the guess stays open."
    truth = _say(actual, unit)
    if value is None:
        return f"No guess given; it was {truth}."
    if isinstance(value, str) or isinstance(actual, str):
        same = str(value).strip().casefold() == str(actual).strip().casefold()
        return f"{said} {_say(value, unit)}{', and so it was' if same else f'; it was {truth}'}."
    start = f"{said} {_say(value, unit)}, it was {truth}"
    if value == actual:
        return f"{start}: exactly right."
    if value <= 0 or actual <= 0:
        return f"{start}: off by {_say(abs(actual - value), unit)}."
    ratio = actual / value
    if abs(ratio - 1) <= _CLOSE:
        return f"{start}: well guessed."
    if ratio > 1:
        return f"{start}: {number(ratio)} times the guess."
    return f"{start}: the guess was {number(1 / ratio)} times too high."


def check(name: str, passed: bool, hint: str = "") -> bool:
    """Print ``✓ name``, or ``not yet: hint``; returns `passed`, so that checks can be combined."""
    print(f"✓ {name}" if passed else f"not yet: {hint or name}")
    return bool(passed)


def _say(value: float | str | None, unit: str) -> str:
    if value is None or isinstance(value, str):
        return str(value)
    said = f"{value:,.0f}" if value == int(value) else number(value)
    return f"{said}{unit}" if unit in ("%", "×", "") else f"{said} {unit}"


def _parse(answer: str) -> float | str | None:
    """The number in ``"40"``, ``"40 ms"``, ``"1,200"`` or ``"0,5"``; other words as they are; None for nothing."""
    answer = answer.strip()
    found = re.search(r"[-+]?\d[\d., ]*(?:e[-+]?\d+)?", answer, flags=re.IGNORECASE)
    if not found:
        return answer or None
    digits = re.sub(r"[ ,](?=\d{3}(\D|$))", "", found.group().strip(" ,.")).replace(",", ".").replace(" ", "")
    try:
        return float(digits)
    except ValueError:
        return answer
