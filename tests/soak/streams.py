"""Chats for minutes, 500 a minute left in the middle: none mixed up, none silent, and memory that stays flat."""

from __future__ import annotations

import collections
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from tests.chats import LONGEST, PATH, add_generation, asked, expected_texts, pieces
from tests.rig import Rig
from tests.soak.footprint import growths, holds, together, watch

FULL_S = 600
CANCELS_PER_S = 500 / 60
_CLIENTS = 16
_WINDOWS = 10
_CONTEXT, _CACHE = 1_024, 8_192
_COLUMNS = ("whole", "left", "wrong", "silent", "refused")


class Outcomes:
    """What became of each chat, from all threads: how, and when."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = []

    def add(self, kind):
        with self.lock:
            self.seen.append((time.perf_counter(), kind))

    def counts(self, low, high):
        """How many of each kind between two moments."""
        found = collections.Counter(kind for at, kind in self.seen if low <= at < high)
        return {kind: found[kind] for kind in _COLUMNS}


def one(client, question, expected, leave_after):
    """One chat; `leave_after` is the number of characters after which it is left, None where it is read to its end."""
    text = ""
    try:
        with client.stream("POST", PATH, json=asked(question)) as answer:
            if answer.status_code != 200:
                return "refused"
            for piece in pieces(answer.iter_lines()):
                if piece is None:
                    return "whole" if text == expected else "wrong"
                if isinstance(piece, dict):
                    return "refused"
                text += piece
                if leave_after is not None and len(text) > leave_after:
                    return "left" if expected.startswith(text) else "wrong"
    except (httpx.TransportError, EOFError):
        return "silent"
    return "silent"


def run(*, seconds):
    """Soak a gateway; returns the rows of the table and what is wrong with them."""
    with tempfile.TemporaryDirectory(prefix="accel-soak-") as folder:
        repository = Path(folder) / "model_repository"
        repository.mkdir()
        texts = list(expected_texts(add_generation(folder, repository, context=_CONTEXT, cache=_CACHE)).items())
        with Rig(folder) as rig:
            rig.wait_until(True)
            outcomes, footprints, over = Outcomes(), [], threading.Event()
            watcher = threading.Thread(target=watch, args=(rig, footprints, over, seconds / _WINDOWS / 5))
            began = time.perf_counter()
            watcher.start()
            together(lambda number: _work(rig, texts, began, seconds, number, outcomes), _CLIENTS)
            over.set()
            watcher.join()
            troubles = _left_behind(rig)
        return _rows(outcomes, footprints, began, seconds, troubles)


def _work(rig, texts, began, seconds, number, outcomes):
    """One client: it leaves every second chat, at its share of the rate of all, and reads the others to their end."""
    chance = random.Random(number)
    due = began + chance.random() * _CLIENTS / CANCELS_PER_S
    with rig.client() as client:
        while due < began + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            due += _CLIENTS / CANCELS_PER_S
            for leave in (True, False):
                question, expected = chance.choice(texts)
                outcomes.add(one(client, question, expected, chance.randrange(len(expected) - 20) if leave else None))


def _left_behind(rig):
    """Rows that are still taken once everybody has gone."""
    until = time.monotonic() + 10
    while rig.metric("vllm:num_requests_running") or rig.metric("accel_requests_in_flight"):
        if time.monotonic() > until:
            return ["requests run on after their clients have gone"]
        time.sleep(0.1)
    return []


def _rows(outcomes, footprints, began, seconds, troubles):
    edges = began + np.linspace(0, seconds, _WINDOWS + 1)
    edges[-1] = np.inf
    rows = []
    for place in range(_WINDOWS):
        low, high = edges[place : place + 2]
        held = [each for each in footprints if low <= each["at_s"] < high] or footprints[-1:]
        minutes = f"{seconds * (place + 1) / _WINDOWS / 60:.1f}"
        rows.append({"minutes": minutes, **outcomes.counts(low, high), **holds(held)})
    for kind in ("wrong", "silent", "refused"):
        count = sum(row[kind] for row in rows)
        troubles += [f"{count} {kind}"] if count else []
    wanted = 0.9 * CANCELS_PER_S * seconds
    if sum(row["left"] for row in rows) < wanted:
        troubles.append(f"fewer than {wanted:,.0f} were left in the middle")
    return rows, troubles + growths(rows)


def verdict(rows, troubles):
    """One line."""
    if troubles:
        return f"FAILED: {'; '.join(troubles)}"
    whole, left = (sum(row[kind] for row in rows) for kind in ("whole", "left"))
    texts = (
        f"{whole:,} chats of {LONGEST} tokens whole and {left:,} left in the middle in {rows[-1]['minutes']} minutes"
    )
    return f"ok: {texts}, each as transformers generates it, none silent, memory flat"
