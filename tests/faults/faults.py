"""Faults, each driven under load: what is done to a running gateway, and how long until all is well again."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import struct
import time

import jwt
import psutil
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.rig import TEXTS

ISSUER, AUDIENCE = "https://issuer.example", "accel"
PRIVATE = ed25519.Ed25519PrivateKey.generate()
_EXPERIMENT = {"model": "sentiment", "weights": {"2": 1}, "shadow": "1"}
_FILES_OF_OUR_OWN = 300


def public_key():
    """What the gateway verifies tokens with."""
    return PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def kill_triton(rig, short):  # noqa: ARG001
    """SIGKILL; the supervisor starts it again."""
    began = time.monotonic()
    rig.triton.kill()
    rig.wait_until(False)
    rig.wait_until(True)
    return time.monotonic() - began


def kill_model(rig, short):  # noqa: ARG001
    """SIGKILL to the Python process of a model, which Triton goes on to call ready; the supervisor loads it again."""
    stubs = [child for child in rig.triton.children(recursive=True) if "/embedding/2/" in " ".join(child.cmdline())]
    began = time.monotonic()
    stubs[0].kill()
    body = {"model": "embedding", "input": TEXTS[0]}
    while rig.ask("POST", "/v1/embeddings", json=body).status_code == 200:
        assert time.monotonic() - began < 60, "it was not hurt"
    while rig.ask("POST", "/v1/embeddings", json=body).status_code != 200:
        assert time.monotonic() - began < 90, "it does not come back"
    return time.monotonic() - began


def unload(rig, short):
    """A model is taken away under load and brought back."""
    assert rig.ask("POST", "/v1/models/embedding/unload").status_code == 200
    assert not rig.ready
    time.sleep(0.5 if short else 2)
    began = time.monotonic()
    assert rig.ask("POST", "/v1/models/embedding/load").status_code == 200
    rig.wait_until(True)
    return time.monotonic() - began


def corrupt_artifact(rig, short):  # noqa: ARG001
    """A model is loaded anew from a damaged file: refused, and the old one goes on."""
    file = rig.repository / "embedding" / "2" / "artifact" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    try:
        answer = rig.ask("POST", "/v1/models/embedding/load")
        assert answer.status_code == 409, answer.text
        assert rig.ready
    finally:
        file.write_bytes(whole)
    began = time.monotonic()
    assert rig.ask("POST", "/v1/models/embedding/load").status_code == 200
    return time.monotonic() - began


def slow_clients(rig, short):
    """Clients that send their request, or read their answer, a byte at a time; and some that stop halfway."""
    head, body = _request(rig, ["w1"] * 4)
    with contextlib.ExitStack() as stack:
        half = [_connect(rig, stack) for _ in range(40)]
        for each in half:
            each.sendall(head[: len(head) // 2])
        stalled = [_connect(rig, stack) for _ in range(40)]
        for each in stalled:
            each.sendall(head + body[:-5])
        readers = [_connect(rig, stack) for _ in range(20)]
        for each in readers:
            each.sendall(head + body)
        until = time.monotonic() + (2 if short else 15)
        for byte in bytes(head[len(head) // 2 :]):
            if time.monotonic() > until:
                break
            for each in half:
                with contextlib.suppress(OSError):  # the gateway has lost patience
                    each.sendall(bytes([byte]))
            for each in readers:
                each.recv(1)
            time.sleep(0.1)
    return 0.0


def vanishing_clients(rig, short):
    """Clients that are gone, without a goodbye, as soon as they have asked for much."""
    head, body = _request(rig, TEXTS * 8)
    for _ in range(50 if short else 400):
        with socket.create_connection(_address(rig)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at close
            client.sendall(head + body)
    began = time.monotonic()
    while rig.metric("accel_requests_in_flight") > 8:
        assert time.monotonic() - began < 90, "the work of clients that are gone goes on"
        time.sleep(0.05)
    return time.monotonic() - began


def full_disk(rig, short):  # noqa: ARG001
    """Nothing can be written to the state: changes are refused with 503, all else goes on; then there is room again."""
    assert rig.ask("PUT", "/v1/experiments/disk", json=_EXPERIMENT).status_code == 200
    _, hard = resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        refused = rig.ask("PUT", "/v1/experiments/disk", json=_EXPERIMENT | {"weights": {"1": 1}, "shadow": None})
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "state_unavailable"
        assert rig.ask("POST", "/v1/models/embedding/unload").status_code == 503
        kept = rig.ask("GET", "/v1/experiments/disk").json()
        assert (kept["weights"], kept["status"]) == ({"2": 1.0}, "running")
        assert rig.ready
        time.sleep(1.5)  # what experiments see waits meanwhile
    finally:
        resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    began = time.monotonic()
    assert rig.ask("PUT", "/v1/experiments/disk", json={"action": "rollback"}).status_code == 200
    return time.monotonic() - began


def clock_steps(rig, short):
    """The wall clock jumps an hour on, two back, and one on: a token expires by it, no deadline and no key does."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "roles": ["viewer"]}
    bearer = {"Authorization": f"Bearer {jwt.encode(claims, PRIVATE, 'EdDSA')}"}
    seen = []
    for step in (None, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGUSR1):
        if step:
            rig.process.send_signal(step)
        time.sleep(0.2 if short else 1)
        seen.append(rig.ask("GET", "/v1/version", headers=bearer).status_code)
        assert rig.ask("GET", "/v1/version").status_code == 200
        assert rig.ready
    assert seen == [200, 401, 200, 200, 200], seen
    return 0.0


def many_connections(rig, short):
    """10,000 connections are opened and say nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(1_000 if short else 10_000, hard - _FILES_OF_OUR_OWN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = rig.process.num_fds()
    with contextlib.ExitStack() as stack:
        for _ in range(wanted):
            with contextlib.suppress(OSError):
                client = stack.enter_context(socket.socket())
                client.settimeout(5)
                client.connect(_address(rig))
        held = []
        for _ in range(10):
            time.sleep(0.2)
            held.append(rig.process.num_fds() - before)
        most = max(held)
    began = time.monotonic()
    while rig.process.num_fds() > before + 20:
        assert time.monotonic() - began < 90, "connections stay open"
        time.sleep(0.05)
    many_connections.held = f"{wanted:,} attempted, {most:,} held"  # type: ignore[attr-defined]
    return time.monotonic() - began


def end_gently(rig, short):  # noqa: ARG001
    """SIGTERM: what was accepted is answered, what is new is refused, and nothing of it is left."""
    processes = [rig.process, *rig.process.children(recursive=True)]
    began = time.monotonic()
    assert rig.stop() == 0
    took = time.monotonic() - began
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left, left
    return took


# Name, what is done, and the refusals that it may cause, of which model.
FAULTS = (
    ("Triton killed with -9", kill_triton, {(503, "embedding"), (503, "sentiment")}),
    ("a model's process killed with -9", kill_model, {(503, "embedding")}),
    ("a model unloaded and loaded", unload, {(404, "embedding"), (503, "embedding")}),
    ("a corrupt artifact at reload", corrupt_artifact, set()),
    ("slow clients", slow_clients, set()),
    ("vanishing clients", vanishing_clients, set()),
    ("a full disk for the state", full_disk, set()),
    ("the wall clock steps", clock_steps, set()),
    ("10,000 connections", many_connections, set()),
    ("SIGTERM", end_gently, {(503, "embedding"), (503, "sentiment")}),
)


def _address(rig):
    host, _, port = rig.url.removeprefix("http://").partition(":")
    return host, int(port)


def _connect(rig, stack):
    client = stack.enter_context(socket.create_connection(_address(rig)))
    client.settimeout(90)
    return client


def _request(rig, texts):
    body = json.dumps({"model": "sentiment", "input": texts}).encode()
    head = (
        f"POST /v1/classify HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {rig.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body
