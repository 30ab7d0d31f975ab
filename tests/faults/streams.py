"""Faults while texts are streamed: each comes to its end or says inside why not, and the next chat is answered."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time

import psutil

from tests.chats import CACHE, CONTEXT, LONGEST, PATH, asked, opened, pieces, rest

DRAIN_S = 5
_OPEN = CACHE // CONTEXT
_QUESTION = "w20 w30 w40"


def kill_engine(rig, short):  # noqa: ARG001
    """SIGKILL to the process of the engine: every stream says so, and it is loaded again; Triton may die of it, too."""
    stubs = [child for child in rig.triton.children(recursive=True) if "/generation/1/" in " ".join(child.cmdline())]
    with contextlib.ExitStack() as stack:
        streams = [opened(rig, stack, _QUESTION)[1] for _ in range(_OPEN)]
        began = time.monotonic()
        stubs[0].kill()
        assert {rest(stream)[1] for stream in streams} <= {"engine_failed", "not_ready"}
    return _answered_again(rig, began)


def kill_triton(rig, short):  # noqa: ARG001
    """SIGKILL to Triton: every stream says so, and the supervisor starts it again."""
    with contextlib.ExitStack() as stack:
        streams = [opened(rig, stack, _QUESTION)[1] for _ in range(_OPEN)]
        began = time.monotonic()
        rig.triton.kill()
        assert {rest(stream)[1] for stream in streams} <= {"not_ready", "engine_failed"}
    return _answered_again(rig, began)


def vanishing_readers(rig, short):
    """Clients that are gone in the middle of a text: their rows and all of their cache are free again."""
    for _ in range(20 if short else 200):
        with _raw(rig, asked(_QUESTION, CONTEXT // 4)) as client:
            client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at close
    began = time.monotonic()
    with contextlib.ExitStack() as stack:  # each takes half of the cache: there is room only in an empty one
        assert len([opened(rig, stack, _QUESTION) for _ in range(_OPEN)]) == _OPEN
    return time.monotonic() - began


def slow_readers(rig, short):
    """Clients that do not read for a while get all of their text."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_raw(rig, asked(_QUESTION, 500))) for _ in range(10)]
        time.sleep(1 if short else 10)
        texts = {rest(pieces(_lines(client))) for client in clients}
    assert len(texts) == 1, "they got different texts"
    assert next(iter(texts))[1] is None
    return 0.0


def full_cache(rig, short):  # noqa: ARG001
    """The cache is full: who comes waits, until a deadline or until somebody leaves."""
    with contextlib.ExitStack() as stack:
        streams = [opened(rig, stack, _QUESTION)[1] for _ in range(_OPEN)]  # one that is forgotten is closed
        late = rig.ask("POST", PATH, json=asked(_QUESTION, 1_000), headers={"x-request-timeout-ms": "500"})
        assert late.status_code == 504, late.text[:300]
        assert all(next(stream) for stream in streams)
        began = time.monotonic()
    return _answered_again(rig, began)


def end_gently(rig, short):  # noqa: ARG001
    """SIGTERM: a text that ends within the drain is whole, another one ends with an error inside."""
    processes = [rig.process, *rig.process.children(recursive=True)]
    expected = rig.ask("POST", PATH, json=asked(_QUESTION, stream=False)).json()["choices"][0]["message"]["content"]
    with contextlib.ExitStack() as stack:
        first, short_one = opened(rig, stack, _QUESTION, LONGEST)
        _, endless = opened(rig, stack, _QUESTION)
        began = time.monotonic()
        rig.process.terminate()
        text, code = rest(short_one)
        assert (first + text, code) == (expected, None), f"{code}: {first + text}"
        code = rest(endless)[1]
        assert code == "draining", code
    ended = rig.stop()
    assert ended == 0, f"exit code {ended}"
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left, left
    return time.monotonic() - began - DRAIN_S


_GONE = {(503, "generation"), ("engine_failed", "generation"), ("not_ready", "generation")}
# As `tests.faults.faults.FAULTS`; a code is that of an error inside a stream.
FAULTS = (
    ("the engine killed with -9, texts half sent", kill_engine, _GONE),
    ("Triton killed with -9, texts half sent", kill_triton, _GONE | {(404, "generation")}),
    ("readers vanish in mid-text", vanishing_readers, set()),
    ("readers that do not read", slow_readers, set()),
    ("the cache is full", full_cache, set()),
    ("SIGTERM, texts half sent", end_gently, {(503, "generation"), ("draining", "generation")}),
)


def _answered_again(rig, began):
    """Seconds until a chat is answered whole."""
    while True:
        answer = rig.ask("POST", PATH, json=asked(_QUESTION, stream=False))
        if answer.status_code == 200:
            return time.monotonic() - began
        assert time.monotonic() - began < 90, f"it does not come back: {answer.text}"
        time.sleep(0.05)


@contextlib.contextmanager
def _raw(rig, body):
    """A connection with a small buffer, over which a request was sent."""
    host, _, port = rig.url.removeprefix("http://").partition(":")
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {rig.key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        client.settimeout(90)
        client.connect((host, int(port)))
        client.sendall(head.encode() + content)
        yield client


def _lines(client):
    """What a connection gives to its end, in lines; the sizes of chunks among them are passed over."""
    with client.makefile("rb") as file:
        for line in file:
            yield line.decode().strip()
