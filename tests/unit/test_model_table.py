"""The table of docs/models.md: complete, with reasons that are told, and true of three families up to a T4 engine."""

import pytest

from tests.families import FAMILIES
from tests.model_table import COLUMNS, NONE, YES, Trial, read_families, read_reasons


def test_each_family_has_a_row_and_each_refusal_a_reason():
    table, told = read_families(), {f"no ({letter})" for letter in read_reasons()}
    assert set(table) == set(FAMILIES)
    cells = {cell for row in table.values() for cell in row.values()}
    assert cells <= {YES, NONE} | told
    assert told <= cells
    assert all(tuple(row) == COLUMNS for row in table.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["modernbert", "qwen3", "t5"])
def test_a_family_becomes_a_file_in_half_precision_and_an_engine_for_a_t4_as_its_row_says(family, tmp_path):
    trial, said = Trial(family, tmp_path), read_families()[family]
    assert (said["FP16"], said["T4 engine"]) == (trial.cell("FP16"), trial.cell("T4 engine")) == (YES, YES)
