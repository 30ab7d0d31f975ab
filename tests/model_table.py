"""The table of families in docs/models.md, read as data; run as a program, all of it is tried and written again.

    python -m tests.model_table [family ...]

A cell is ``yes``, ``–`` (nothing to try) or ``no (a)``: refused, with an error that holds the words of reason ``a`` in
the page's second table. The program ends with 1 if a cell changed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.errors import AccelError
from accel_lib.models import Model
from accel_lib.models.attention import difference
from accel_lib.models.packed import pack
from accel_lib.models.varlen import flatten, to_varlen
from accel_lib.ragged import Ragged
from tests.families import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS = ("Embeds", "Classifies", "Packed", "Packed classifier", "ONNX", "FP16", "T4 engine")
YES, NONE = "yes", "–"
LONGEST = 96  # tokens: beyond every window of the tiny folders
FORMS = (pack, to_varlen)
_CLOSE = 1e-5


def _table(heading: str) -> Iterator[list[str]]:
    """The rows of the page's table whose first column has that heading."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    for line in lines:
        if not line.startswith("| "):
            return
        yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def read_families() -> dict[str, dict[str, str]]:
    """What the page says of each family, by column."""
    return {name.strip("`"): dict(zip(COLUMNS, cells, strict=False)) for name, *cells in _table("Family")}


def read_reasons() -> dict[str, str]:
    """Words of a refusal by the letter that stands for them."""
    return {letter: words.strip("`") for letter, words, _ in _table("Reason")}


def refusals(column: str) -> dict[str, str]:
    """Families that are refused in a column, with the words of the refusal."""
    reasons = read_reasons()
    return {
        family: reasons[cells[column][4:-1]]
        for family, cells in read_families().items()
        if cells[column].startswith("no")
    }


def works(column: str) -> list[str]:
    """Families that work in a column."""
    return [family for family, cells in read_families().items() if cells[column] == YES]


def without_padding(form: Callable[..., Any], module: Any, longest: int = LONGEST) -> Any:
    """A network without padding, for a CPU (`pack`) or a GPU (`segment`), as a module ``(ids, mask) -> numbers``."""
    made = form(module, longest=longest)
    return made if form is pack else _Flattened(made)


class _Flattened(torch.nn.Module):
    def __init__(self, made: torch.nn.Module) -> None:
        super().__init__()
        self.made = made

    def forward(self, *inputs: torch.Tensor) -> Any:
        rows = Ragged.from_padded(*(each.numpy() for each in inputs))
        return self.made(*map(torch.from_numpy, flatten(rows, segments=len(inputs) > 2)))


class NothingToTryError(Exception):
    """transformers has no such head for a family."""


class Trial:
    """One family's tiny folders, and what each column of the table tries of them.

    Parameters
    ----------
    family
        A name of `tests.families.FAMILIES`.
    folder
        Where everything is written.
    """

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.texts = accel.load_texts("mixed", limit=24)

    def cell(self, column: str) -> str:
        """``yes``, ``–``, or the message of the refusal."""
        try:
            getattr(self, column.lower().replace(" ", "_"))()
        except AccelError as error:
            return str(error)
        except NothingToTryError:
            return NONE
        return YES

    def embeds(self) -> None:
        self._equals_its_original(self._model("sentence"))

    def classifies(self) -> None:
        model = self._model("SequenceClassification")
        self._equals_its_original(model)
        self._validated(accel.to_onnx(model, output=self.folder / "classifier", progress=False))

    def packed(self) -> None:
        self._is_packed(self._model("sentence"))

    def packed_classifier(self) -> None:
        self._is_packed(self._model("SequenceClassification"))

    def onnx(self) -> None:
        self._converted("fp32")

    def fp16(self) -> None:
        self._converted("fp16")

    def t4_engine(self) -> None:
        self.folder.joinpath("plan").mkdir()
        accel.to_tensorrt(self._converted("fp16"), target="t4", output=self.folder / "plan" / "t4", progress=False)

    def _model(self, kind: str) -> Model:
        folder = self.folder / kind
        if not folder.is_dir():
            head = {"num_labels": 3} if kind == "SequenceClassification" else {}
            try:
                FAMILIES[self.family](folder, kind=kind, **head)
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
                raise NothingToTryError(f"transformers has no {kind} of {self.family}") from error
        return accel.load_model(folder, max_length=LONGEST)

    def _equals_its_original(self, model: Model) -> None:
        texts = list(self.texts)
        far = np.abs(model.encode(texts) - model.reference(texts)).max()
        assert far < _CLOSE, f"{self.family}: {far:.2g} from its original"

    def _is_packed(self, model: Model) -> None:
        for form in FORMS:
            far = difference(model.module, without_padding(form, model.module), (LONGEST, 3, 17, 2 * LONGEST // 3))
            assert far < _CLOSE, f"{self.family}: {far:.2g} from its padded form"
        self._validated(accel.to_onnx(model, packed=True, output=self.folder / f"packed-{model.task}", progress=False))

    def _converted(self, precision: str) -> Artifact:
        model, folder = self._model("sentence"), self.folder / precision
        if not folder.is_dir():
            self._validated(accel.to_onnx(model, precision=precision, output=folder, progress=False))
        return Artifact.load(folder)

    def _validated(self, artifact: Artifact) -> None:
        kind = "sentence" if artifact.manifest.task == "embedding" else "SequenceClassification"
        accel.validate(artifact, reference=self._model(kind), texts=self.texts, device="cpu")


def main(families: list[str]) -> int:
    """Try families, all of them by default, and write what changed into the page."""
    reasons, said = read_reasons(), read_families()
    changed = 0
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            seen = _try(Trial(family, Path(folder)))
        row = {column: _short(cell, reasons) for column, cell in seen.items()}
        if row != said.get(family):
            changed += 1
            _write(family, row)
            print(f"{family}: was {said.get(family)}")
        print(f"{family}: " + ", ".join(f"{column} {cell}" for column, cell in row.items()), flush=True)
        for column, cell in seen.items():
            if "?" in row[column]:
                print(f"  {column}: {cell}")
    print(f"{changed} rows changed")
    return int(changed > 0)


def _try(trial: Trial) -> dict[str, str]:
    seen: dict[str, str] = {}
    for column in COLUMNS:
        before = {"Packed classifier": "Classifies", "T4 engine": "FP16", "Classifies": ""}.get(column, "Embeds")
        if column != "Embeds" and seen.get(before, YES) != YES:
            seen[column] = NONE
            continue
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            seen[column] = trial.cell(column)
    return seen


def _short(cell: str, reasons: dict[str, str]) -> str:
    if cell in (YES, NONE):
        return cell
    return f"no ({next((letter for letter, words in reasons.items() if words in cell), '?')})"


def _write(family: str, row: dict[str, str]) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(f"| `{family}` |"))
    examples = lines[place].strip("| ").split(" | ")[-1]
    lines[place] = f"| `{family}` | {' | '.join(row.values())} | {examples} |"
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
