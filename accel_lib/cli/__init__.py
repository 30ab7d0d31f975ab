"""The ``accel`` command."""

from accel_lib.cli.main import app

__all__ = ["app"]
