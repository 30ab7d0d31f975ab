"""``python -m accel_lib.cli``."""

from accel_lib.cli.main import app

app()
