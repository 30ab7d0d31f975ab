"""`make soak`: 80% of what the gateway can, for half an hour: no error, and memory and throughput that stay flat.

Then ten minutes of chats that are streamed, 500 of them a minute left in the middle (`tests.soak.streams`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time

import httpx
import numpy as np

from tests.rig import TEXTS, Rig, table
from tests.soak import streams
from tests.soak.footprint import growths, holds, together, watch

_FULL_S, _SHORT_S = 1_800, 20
_SHARE = 0.8
_CLIENTS, _SENDERS = 8, 32
_WINDOWS = 10
_DROP = 0.05  # so much of what is offered may be answered later than in its third


class Samples:
    """What the senders saw, from all threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.due_s, self.ended_s, self.latency_ms, self.errors = [], [], [], []

    def add(self, due_s, answer):
        ended = time.perf_counter()
        with self.lock:
            self.due_s.append(due_s)
            if isinstance(answer, httpx.Response) and answer.status_code == 200:
                self.ended_s.append(ended)
                self.latency_ms.append((ended - due_s) * 1e3)
            else:
                self.errors.append((ended, str(getattr(answer, "status_code", repr(answer)))))


def ask(client, model, text):
    """One request; an exception is an answer too."""
    try:
        return client.post("/v1/embeddings", json={"model": model, "input": text, "encoding_format": "base64"})
    except httpx.TransportError as error:
        return error


def closed_loop(rig, model, texts, seconds):
    """Requests a second that some clients get who always wait for their answer."""
    samples, over = Samples(), time.perf_counter() + seconds

    def work(number):
        with rig.client() as client:
            turn = number
            while time.perf_counter() < over:
                samples.add(time.perf_counter(), ask(client, model, texts[turn % len(texts)]))
                turn += _CLIENTS

    together(work, _CLIENTS)
    return len(samples.ended_s) / seconds


def open_loop(rig, model, texts, rate, seconds, samples):
    """Send at a rate, whatever becomes of the answers, arrivals as of many independent users."""
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    schedule = iter(enumerate(time.perf_counter() + 0.2 + np.cumsum(gaps)))
    lock = threading.Lock()

    def work(_):
        with rig.client() as client:
            while True:
                with lock:
                    index, due = next(schedule, (None, None))
                if index is None:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                samples.add(due, ask(client, model, texts[index % len(texts)]))

    together(work, _SENDERS)


def run(*, seconds, real):
    """Soak a gateway; returns the rows of the table and what is wrong with them."""
    with tempfile.TemporaryDirectory(prefix="accel-soak-") as folder:
        repository, texts, settings = None, TEXTS, {}
        if real:
            from accel_lib.course_models import ensure
            from accel_lib.texts import load_texts

            repository, texts, settings = ensure("embedding"), list(load_texts("mixed")), {"ACCEL_MODELS": "embedding"}
        with Rig(folder, repository=repository, **settings) as rig:
            rig.wait_until(True)
            closed_loop(rig, "embedding", texts, min(20, seconds / 10))
            rate = _SHARE * closed_loop(rig, "embedding", texts, min(30, seconds / 5))
            samples, footprints, over = Samples(), [], threading.Event()
            watcher = threading.Thread(target=watch, args=(rig, footprints, over, seconds / _WINDOWS / 5))
            began = time.perf_counter()
            watcher.start()
            open_loop(rig, "embedding", texts, rate, seconds, samples)
            over.set()
            watcher.join()
            return _rows(samples, footprints, began, seconds)


def _rows(samples, footprints, began, seconds):
    edges = began + np.linspace(0, seconds, _WINDOWS + 1)
    due, ended, latency = (np.array(each) for each in (samples.due_s, samples.ended_s, samples.latency_ms))
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (ended >= low) & (ended < high)
        held = [each for each in footprints if low <= each["at_s"] < high] or footprints[-1:]
        rows.append(
            {
                "minutes": f"{(high - began) / 60:.1f}",
                "offered/s": f"{((due >= low) & (due < high)).sum() / (high - low):.1f}",
                "answered/s": f"{inside.sum() / (high - low):.1f}",
                "p50 ms": f"{np.percentile(latency[inside], 50):.1f}" if inside.any() else "-",
                "p95 ms": f"{np.percentile(latency[inside], 95):.1f}" if inside.any() else "-",
                "errors": sum(low <= at < high for at, _ in samples.errors),
                **holds(held),
            }
        )
    return rows, _troubles(rows, samples)


def _troubles(rows, samples):
    troubles = growths(rows)
    if samples.errors:
        troubles.append(f"{len(samples.errors)} errors, such as {samples.errors[0][1]}")
    third = len(rows) // 3
    for part, name in ((rows[:third], "first"), (rows[-third:], "last")):
        offered, answered = (sum(float(row[name]) for row in part) for name in ("offered/s", "answered/s"))
        if answered < (1 - _DROP) * offered:
            troubles.append(f"in the {name} third only {answered / offered:.0%} of what was offered was answered")
    return troubles


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as in CI: 20 s, on a model that answers in a blink")
    parser.add_argument("--seconds", type=float, help="default: half an hour, and ten minutes of chats")
    parser.add_argument("--streams", action="store_true", help="only the chats")
    asked = parser.parse_args()
    failed = False
    if not asked.streams:
        lasted = asked.seconds or (_SHORT_S if asked.short else _FULL_S)
        results, wrong = run(seconds=lasted, real=not asked.short)
        table(results)
        rates = [float(row["answered/s"]) for row in results]
        done = f"{np.mean(rates) * lasted:,.0f} requests in {lasted / 60:.1f} minutes at 80% of capacity"
        print(f"FAILED: {'; '.join(wrong)}" if wrong else f"ok: {done}, no error, memory and throughput flat")
        failed = bool(wrong)
    results, wrong = streams.run(seconds=asked.seconds or (_SHORT_S if asked.short else streams.FULL_S))
    table(results)
    print(streams.verdict(results, wrong))
    sys.exit(failed or bool(wrong))
