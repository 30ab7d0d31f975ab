"""Every error says cause, what was seen and the fix."""

import pytest

from accel_lib import errors


def test_an_error_reads_as_cause_then_seen_then_fix():
    error = errors.ServerError("Port 8000 is taken.", seen="pid 12", fix="serve(..., http_port=0)")
    assert str(error).splitlines() == ["Port 8000 is taken.", "  seen: pid 12", "  fix:  serve(..., http_port=0)"]


def test_a_missing_package_names_the_extra_that_installs_it():
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'accel_lib\[rtx\]'"):
        errors.require("no_such_package_anywhere", extra="rtx")


def test_every_error_of_the_tree_is_an_accel_error():
    children = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(children) == 13
    assert all(issubclass(child, errors.AccelError) for child in children)
