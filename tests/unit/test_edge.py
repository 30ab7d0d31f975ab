"""What an HTTP client may send, hold open and leave unread, asked over real sockets of a gateway without a Triton."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import subprocess
import sys

import httpx
import psutil
import pytest

from accel_lib.service import connection
from accel_lib.service.gateway import Gateway
from accel_lib.service.settings import Settings

LIMIT = 100_000
CODE = """
import sys, time
from pathlib import Path
from accel_lib.service.gateway import Gateway
from accel_lib.service.settings import Settings
folder = Path(sys.argv[1])
where = {"triton_host": "127.0.0.1", "triton_grpc_port": 1, "triton_http_port": 1, "repository": folder}
gateway = Gateway(Settings(port=0, state_file=folder / "state", max_body_bytes=2**23, **where), None)
print(gateway.url, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge")
    where = {"triton_host": "127.0.0.1", "triton_grpc_port": 1, "triton_http_port": 1, "repository": folder}
    with Gateway(Settings(port=0, state_file=folder / "state", max_body_bytes=LIMIT, **where), None) as running:
        yield running


@contextlib.contextmanager
def connected(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as opened:
        yield opened


def answers(gateway, data):
    """Status lines and all that follows, until the gateway closes; what cannot be sent any more is left out."""
    with connected(gateway.url) as opened:
        with contextlib.suppress(ConnectionError):
            opened.sendall(data)
        return received(opened)


def received(opened):
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := opened.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def status(answer):
    return int(answer.split()[1])


def post(body, *fields, key="", path="/v1/embeddings"):
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", "connection: close", *fields]
    if key:
        head.append(f"authorization: Bearer {key}")
    return "\r\n".join([*head, "", ""]).encode() + body


CHUNKED = b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "wanted", "code"),
    [
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(500)), 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 600_000, 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 600_000, 431, "head_too_large"),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
        (b"GET /?" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
        (CHUNKED + b"0\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(500)), 431, "head_too_large"),
        (CHUNKED + b"1;" + b"a" * 600_000, 400, "invalid_chunks"),
        (CHUNKED + b"0" * 600_000, 400, "invalid_chunks"),
        (b"\r\n" * 300_000, 400, "invalid_chunks"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "invalid_http"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400, "invalid_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 405, "method_not_allowed"),
        (b"\x16\x03\x01\x02\x00", 400, "invalid_http"),
    ],
    ids=["fields", "a value", "a name", "a path", "a query", "trailers", "a chunk's extension", "a chunk's size",
         "nothing", "two lengths", "a length beyond counting", "HTTP/2", "a tunnel", "TLS"],
)  # fmt: skip
def test_what_is_no_request_or_too_long_for_one_is_refused_and_the_connection_closed(gateway, data, wanted, code):
    answer = answers(gateway, data)
    assert status(answer) == wanted
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code
    assert b"connection: close" in answer


@pytest.mark.parametrize("first", [b"", b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_a_head_has_a_time_also_the_second_on_a_connection(gateway, monkeypatch, first):
    monkeypatch.setattr(connection, "_HEAD_S", 0.2)
    monkeypatch.setattr(connection, "_LINGER_S", 0.1)
    answer = answers(gateway, first + b"GET /v1/health/live HTTP/1.1\r\nhost")
    assert answer.count(b"HTTP/1.1 200") == bool(first)
    assert b"HTTP/1.1 408" in answer


@pytest.mark.parametrize("data", [b"", b"\r\n"])
def test_a_connection_that_says_nothing_is_closed(gateway, monkeypatch, data):
    monkeypatch.setattr(connection, "_HEAD_S", 0.2)
    assert answers(gateway, data) == b""


def test_requests_behind_each_other_are_answered_in_order_and_bounded(gateway):
    one = b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = one.replace(b"host", b"connection: close\r\nhost")
    assert answers(gateway, one * 9 + last).count(b"HTTP/1.1 200") == 10
    assert answers(gateway, one * 5_000).count(b"HTTP/1.1 200") < 20


def test_an_answer_that_nobody_reads_is_given_up(gateway, monkeypatch):
    monkeypatch.setattr(connection, "_UNREAD_S", 0.2)
    with connected(gateway.url) as opened:
        open_before = len(gateway._server.server_state.connections)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):
            while True:
                opened.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        assert len(gateway._server.server_state.connections) <= open_before


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0", "HTTP/2.0, h2c"])
def test_an_upgrade_is_ignored_and_the_body_read(gateway, upgrade):
    fields = ("upgrade: " + upgrade, "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    data = post(b'{"input": 5}', *fields, key=gateway.key).replace(b"connection: close", b"connection: Upgrade, close")
    answer = answers(gateway, data)
    assert (status(answer), b"input is 5" in answer) == (400, True)


def test_an_upgrade_in_pieces_and_before_other_requests_is_ignored_too(gateway):
    upgrade = b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    last = b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with connected(gateway.url) as opened:
        for byte in upgrade:
            opened.sendall(bytes([byte]))
        opened.sendall(upgrade + upgrade + last)
        assert received(opened).count(b"HTTP/1.1 200") == 4


def test_older_and_odder_forms_of_a_request_are_understood(gateway):
    for head in (
        b"GET /v1/health/live HTTP/1.0\r\n\r\n",
        b"GET http://x/v1/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ):
        assert status(answers(gateway, head)) == 200
    with connected(gateway.url) as opened:
        opened.sendall(post(b"", "expect: 100-continue", key=gateway.key).replace(b"length: 0", b"length: 12"))
        assert opened.recv(4096).startswith(b"HTTP/1.1 100")
        opened.sendall(b'{"input": 5}')
        assert status(received(opened)) == 400


def test_head_is_answered_wherever_get_is_with_the_length_and_without_the_body(gateway):
    with gateway.client() as client:
        paths = ["/openapi.json", "/docs", *client.get("/openapi.json").json()["paths"]]
        for path in paths:
            shown = client.get(path)
            head = client.head(path)
            assert (head.status_code, head.content) == (shown.status_code, b""), path
        assert client.head("/openapi.json").headers["content-length"] == str(len(client.get("/openapi.json").content))


def zipped(text):
    return gzip.compress(text if isinstance(text, bytes) else text.encode(), mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "wanted", "words"),
    [
        (zipped('{"input": 5}'), "gzip", 400, "input is 5"),
        (zipped('{"inp') + zipped('ut": 5}'), "gzip", 400, "input is 5"),
        (zipped(b"0" * 50_000_000), "gzip", 413, "at most 100,000 bytes"),
        (zipped("{}")[:-3], "gzip", 400, "ends in the middle"),
        (b"{}", "gzip", 400, "no valid gzip"),
        (b"{}", "br", 415, "gzip"),
        (b'{"input": 5}', "identity", 400, "input is 5"),
    ],
)
def test_a_gzip_is_read_within_the_limit_and_other_encodings_are_named(gateway, body, encoding, wanted, words):
    with gateway.client() as client:
        answer = client.post("/v1/embeddings", content=body, headers={"content-encoding": encoding})
    assert answer.status_code == wanted
    assert words in answer.json()["message"]
    if wanted == 415:
        assert "gzip" in answer.headers["accept-encoding"]


@pytest.mark.parametrize(
    "body",
    [b"[" * 90_000, b'{"input": ' * 9_000, b'{"input": ' + b"9" * 90_000 + b"}", b'{"input": 1e999999}', b"\xff\xfe{\0",
     b'{"input": "\xff"}', b'{"input": "\\ud800"}', b'{"model": "a", ' * 2 + b'"input": "a"}}', b"NaN",
     b"[" + b"[]," * 30_000],
    ids=["depth", "objects", "a long number", "a large number", "UTF-16", "no UTF-8", "a surrogate", "twice", "NaN",
         "many lists"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/v1/classify",
        "/v1/ranking",
        "/v1/rerank",
        "/rerank",
        "/embed",
        "/predict",
        "/similarity",
        "/tokenize",
        "/",
    ],
)
def test_what_is_no_such_body_is_a_400_on_every_path_of_texts(gateway, path, body):
    answer = answers(gateway, post(body, key=gateway.key, path=path))
    assert status(answer) in (400, 503)
    assert b"error" in answer


def test_a_body_is_read_to_its_end_and_kept_only_for_a_caller_with_a_key(gateway):
    body = b"x" * (2 * LIMIT)
    assert status(answers(gateway, post(body))) == 413
    assert status(answers(gateway, post(body[:LIMIT]))) == 401
    assert status(answers(gateway, post(b"", path="/nothing"))) == 404


def test_a_caller_without_a_key_gets_no_more_time_than_usual(gateway, monkeypatch):
    settings = gateway.services.settings.model_copy(update={"deadline_s": 0.2})
    stack = gateway.app.middleware_stack
    while not hasattr(stack, "_settings"):
        stack = stack.app
    monkeypatch.setattr(stack, "_settings", settings)
    slow = post(b"", "x-request-timeout-ms: 600000").replace(b"length: 0", b"length: 100")
    assert status(answers(gateway, slow)) == 504


@pytest.mark.slow
def test_heads_and_bodies_of_strangers_take_no_memory(tmp_path):
    command = [sys.executable, "-c", CODE, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        memory = psutil.Process(process.pid).memory_info
        with httpx.Client(base_url=url, trust_env=False) as client:
            assert client.get("/openapi.json").status_code == 200
            before = memory().rss
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(connected(url)) for _ in range(40)]
                for each in opened[:20]:  # 160 MB, and one byte that is missing
                    each.sendall(post(b"x" * 2**23).replace(b"8388608", b"8388609"))
                for each in opened[20:]:
                    with contextlib.suppress(ConnectionError):
                        each.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(200_000)))
                assert client.get("/v1/health/live").status_code == 200
                grown = memory().rss - before
        process.stdin.close()
        process.terminate()
    assert grown < 50 * 2**20
