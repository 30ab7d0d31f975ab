"""Imported first by a process whose wall clock then steps on signals: SIGUSR1 an hour on, SIGUSR2 an hour back."""

import signal
import time

_HOUR_S = 3600.0
_true_time = time.time
_step = [0.0]


def _forward(*_):
    _step[0] += _HOUR_S


def _back(*_):
    _step[0] -= _HOUR_S


time.time = lambda: _true_time() + _step[0]
signal.signal(signal.SIGUSR1, _forward)
signal.signal(signal.SIGUSR2, _back)
