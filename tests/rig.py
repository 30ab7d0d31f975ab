"""A gateway in a process of its own, as `accel serve` starts it, on models that answer in a blink; and clients."""

from __future__ import annotations

import base64
import collections
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

from accel_lib.service.database import Database
from accel_lib.service.keys import Keys
from accel_lib.triton.repository import write_model
from tests.tiny import NOISE, TABLE, tiny_artifact, tiny_model, tiny_texts

LABELS = tuple(f"label {number}" for number in range(TABLE.shape[1]))
TEXTS = tiny_texts(48)
VECTORS = tiny_model().reference(TEXTS)
_WORKERS = 6
_PAUSE_S = 0.01


def build_repository(folder):
    """Two models of two versions each: ``embedding`` and ``sentiment``; of both, version 2 answers as `VECTORS` say."""
    for name, facts in (("embedding", {}), ("sentiment", {"task": "classification", "labels": LABELS})):
        for version, table in ((1, NOISE), (2, TABLE)):
            artifact = tiny_artifact(folder / "artifacts" / f"{name}{version}", table, **facts)
            write_model(folder / "model_repository", name, artifact, version=version)
    return folder / "model_repository"


class Rig:
    """A running gateway; a context manager.

    Parameters
    ----------
    folder
        For the model repository and the state file; both stay when it ends.
    before
        Module that the process imports first.
    repository
        What to serve; none makes that of `build_repository`.
    settings
        Environment variables beside those that choose free ports.
    """

    def __init__(self, folder, *, before="sys", repository=None, **settings):
        self.folder = Path(folder)
        self.state_file = self.folder / "state.sqlite3"
        self.repository = Path(repository or self.folder / "model_repository")
        if not self.repository.is_dir():
            build_repository(self.folder)
        with Database(self.state_file) as state:
            self.key = Keys(state).create("rig", ["admin"])
        ports = {
            f"ACCEL_{name}PORT": "0" for name in ("", "METRICS_", "TRITON_HTTP_", "TRITON_GRPC_", "TRITON_METRICS_")
        }
        places = {"ACCEL_REPOSITORY": str(self.repository), "ACCEL_STATE_FILE": str(self.state_file)}
        self.log = self.folder / "gateway.log"
        code = f"import {before}; from accel_lib.service.__main__ import Settings, run_gateway; run_gateway(Settings())"
        with self.log.open("ab") as log:
            self._command = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **ports, **places, **settings},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.process = psutil.Process(self._command.pid)
        self.url = self._address()

    def client(self, **options):
        """An HTTP client with the key of an admin."""
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=60, **options
        )

    def ask(self, method, path, **options):
        """One request on a connection of its own."""
        with self.client() as client:
            return client.request(method, path, **options)

    @property
    def ready(self):
        """Whether it says so."""
        return self.ask("GET", "/v1/health/ready").status_code == 200

    @property
    def triton(self):
        """The process of Triton, or None."""
        children = self.process.children(recursive=True)
        return next((child for child in children if child.name() == "tritonserver"), None)

    def wait_until(self, wanted, seconds=90):
        """Wait until it is ready, or not any more; returns the seconds that took."""
        began = time.monotonic()
        while self.ready != wanted:
            if time.monotonic() - began > seconds:
                raise AssertionError(f"ready is not {wanted} after {seconds} s: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        return time.monotonic() - began

    def metric(self, name):
        """Sum of a metric's samples."""
        lines = self.ask("GET", "/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def footprint(self):
        """What could leak: threads, open files, processes, and memory in MB."""
        children = [child for child in self.process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
        return {
            "threads": self.process.num_threads(),
            "files": self.process.num_fds(),
            "processes": len(children),
            "memory_mb": self.process.memory_info().rss / 1e6,
        }

    def stop(self):
        """SIGTERM; the exit code."""
        self._command.send_signal(signal.SIGTERM)
        return self._command.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._command.poll() is None:
            self._command.kill()
        self._command.wait()
        self._command.stdout.close()

    def _address(self):
        for line in self._command.stdout:
            found = re.search(r"gateway\s+(http://[^\s,]+)", line)
            if found:
                threading.Thread(target=self._command.stdout.read, daemon=True).start()
                return found[1]
        raise AssertionError(f"The gateway did not start: {self.log.read_text()[-3000:]}")


@dataclasses.dataclass
class Tally:
    """What became of the requests."""

    answered: int = 0
    wrong: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lost: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unreached: int = 0
    last_refusal_s: float = 0.0

    @property
    def sent(self):
        """Requests that a gateway accepted."""
        return self.answered + self.wrong + self.refused.total() + self.lost.total()


class Load:
    """Clients that ask in turn for both models and check each answer against the text that they sent."""

    def __init__(self, rig, workers=_WORKERS, models=("embedding", "sentiment")):
        self.tally = Tally()
        self._rig, self._models = rig, models
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(workers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number):
        with self._rig.client() as client:
            for turn in itertools.count(number):
                if self._over.wait(_PAUSE_S):
                    return
                self._one(client, turn)

    def _one(self, client, turn):
        model = self._models[turn % len(self._models)]
        chosen = [(7 * turn + step) % len(TEXTS) for step in range(1 + turn % 3)]
        path = "/v1/classify" if model == "sentiment" else "/v1/embeddings"
        body = {"model": model, "input": [TEXTS[i] for i in chosen]}
        if model == "embedding":
            body["encoding_format"] = "base64"
        try:
            answer = client.post(path, json=body)
        except httpx.ConnectError:
            with self._lock:
                self.tally.unreached += 1
            return
        except httpx.TransportError as error:
            with self._lock:
                self.tally.lost[type(error).__name__] += 1
            return
        with self._lock:
            self._judge(answer, model, VECTORS[chosen])

    def _judge(self, answer, model, expected):
        try:
            body = answer.json()
            if answer.status_code != 200:
                check_error(answer)
                self.tally.refused[answer.status_code, model] += 1
                self.tally.last_refusal_s = time.monotonic()
                return
            right = (_right_class if model == "sentiment" else _right_vector)(body["data"], expected)
        except (ValueError, KeyError, AssertionError) as error:
            self.tally.lost[f"malformed {answer.status_code}: {error!r}"] += 1
            return
        self.tally.answered += right
        self.tally.wrong += not right


def check_error(answer):
    """Whether an error has the one body and the headers that its code promises."""
    body = answer.json()
    assert set(body) == {"error", "object", "message", "detail", "type"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["detail"] == {}
    if answer.status_code in (429, 503):
        assert int(answer.headers["Retry-After"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1


def _right_vector(data, expected):
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in data]
    return len(vectors) == len(expected) and bool(np.allclose(vectors, expected, atol=1e-4))


def _right_class(data, expected):
    return [item["label"] for item in data] == [LABELS[row.argmax()] for row in expected]


def table(rows):
    """Print dictionaries with the same keys as a table."""
    names = list(rows[0])
    cells = [[str(row[name]) for name in names] for row in rows]
    wide = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    for row in [names, ["-" * width for width in wide], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip(), flush=True)
