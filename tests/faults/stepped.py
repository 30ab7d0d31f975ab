"""Imported first by a gateway whose wall clock then steps on signals: SIGUSR1 an hour on, SIGUSR2 an hour back."""

import datetime
import functools
import signal
import time

import jwt.api_jwt

from accel_lib.service import __main__ as command

_HOUR_S = 3600.0
_step = [0.0]


def _forward(*_):
    _step[0] += _HOUR_S


def _back(*_):
    _step[0] -= _HOUR_S


class _SteppedTime(datetime.datetime):
    """What PyJWT reads a token's end by."""

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=_step[0])


jwt.api_jwt.datetime = _SteppedTime  # type: ignore[misc]
signal.signal(signal.SIGUSR1, _forward)
signal.signal(signal.SIGUSR2, _back)
command.create_app = functools.partial(command.create_app, now=lambda: time.time() + _step[0])
