"""The short forms of `make faults`, `make fuzz` and `make soak`."""

from __future__ import annotations

import pytest

from tests.faults import __main__ as faults
from tests.fuzz import __main__ as fuzz
from tests.soak import __main__ as soak
from tests.soak import streams as chats

pytestmark = pytest.mark.triton


def test_under_every_fault_no_request_is_lost_and_nothing_is_left_behind():
    rows = faults.run_gateway(short=True)
    assert {row["fault"]: row["verdict"] for row in rows if row["verdict"] != "ok"} == {}


def test_under_every_fault_a_text_comes_to_its_end_or_says_why_not():
    rows = faults.run_streams(short=True)
    assert {row["fault"]: row["verdict"] for row in rows if row["verdict"] != "ok"} == {}


def test_requests_made_from_the_openapi_document_break_nothing_and_get_what_it_says():
    report, printed, alive = fuzz.run(short=True)
    well, line = fuzz.verdict(report, alive, fewest=fuzz.FEWEST_SHORT)
    assert well, f"{line}\n{printed}"


def test_a_gateway_near_its_capacity_makes_no_error_and_does_not_grow():
    rows, troubles = soak.run(seconds=15, real=False)
    assert len(rows) == 10
    assert [trouble for trouble in troubles if "offered" not in trouble] == []  # which depends on the neighbours


def test_chats_that_are_left_in_the_middle_mix_up_no_other_and_leave_nothing_behind():
    rows, troubles = chats.run(seconds=10)
    assert sum(row["left"] for row in rows) > 0 < sum(row["whole"] for row in rows)
    assert [trouble for trouble in troubles if "fewer than" not in trouble] == []  # which depends on the neighbours
