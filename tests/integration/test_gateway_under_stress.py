"""What the gateway does when there is too much, too late, or nobody left: on a real Triton that answers slowly."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import accel_lib
from accel_lib.service import server as gateway_server
from accel_lib.service.gateway import Gateway
from accel_lib.service.settings import Settings
from accel_lib.triton.repository import write_config
from tests.gateways import gateway_on
from tests.tiny import TABLE, WIDTH, end_at_once, tiny_artifact

pytestmark = pytest.mark.triton
# A model that sleeps 100 ms an execution, one request each, and answers what the first id asks for.
SLOW = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils
from accel_lib.triton.backend import read_tensor, write_tensor

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            ids = read_tensor(request, "input_ids")
            vectors = np.ones((len(ids), {WIDTH}), dtype=np.float32)
            vectors[ids[:, 0] == 1] = np.nan
            vectors[ids[:, 0] == 2] = 0
            time.sleep(0.1)
            answers.append(pb_utils.InferenceResponse([write_tensor("sentence_embedding", vectors)]))
        return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    repository = folder / "model_repository"
    with accel_lib.serve(_empty(repository)) as running:
        running.add("slow", tiny_artifact(folder / "slow", TABLE))
        running.add("fast", tiny_artifact(folder / "fast", TABLE))
        (repository / "slow" / "1" / "model.py").write_text(SLOW)
        write_config(repository / "slow", running.config("slow").replace(dynamic_batching=False))
        running.load("slow")
        yield running
        end_at_once(running)


def _empty(folder):
    folder.mkdir()
    return folder


@pytest.fixture
def gateway(server, tmp_path):
    with gateway_on(server, tmp_path) as running:
        yield running


def ask(client, text="w9", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/embeddings", json={"model": "slow", "input": text}, headers=names)


def codes(answers):
    return sorted({answer.status_code for answer in answers})


@pytest.mark.parametrize(("word", "reason"), [("w1", "not_finite"), ("w2", "zero")])
def test_a_vector_that_is_no_use_is_a_500_and_counted(gateway, word, reason):
    with gateway.client() as client:
        answer = ask(client, ["w9", word])
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "invalid_output"
        assert f'accel_guard_rejections_total{{model="slow",reason="{reason}"}} 1.0' in client.get("/metrics").text


def test_more_than_may_be_under_way_get_a_429_at_once(server, tmp_path):
    with gateway_on(server, tmp_path, max_in_flight=3) as own, own.client() as client:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: ask(client), range(10)))
        assert codes(answers) == [200, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.headers["retry-after"]


def test_what_would_be_late_is_refused_early_and_what_is_late_gets_a_504(gateway):
    with gateway.client() as client:
        for _ in range(4):  # so that the rate is known
            assert ask(client).status_code == 200
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: ask(client, x_request_timeout_ms="700"), range(24)))
        assert set(codes(answers)) <= {200, 429, 504}
        early = [answer for answer in answers if answer.status_code == 429]
        assert early
        assert all(answer.json()["error"]["code"] == "queue_full" for answer in early)
        assert 'reason="estimated_wait"' in client.get("/metrics").text
        assert gateway.services.limits.in_flight == 0


def test_the_openai_clients_own_timeout_is_a_deadline_too(gateway):
    with gateway.client() as client:
        assert ask(client, x_stainless_read_timeout="0.02").status_code == 504
        assert ask(client, x_stainless_read_timeout="none").status_code == 200


def test_deadlines_and_clients_that_go_as_responses_come_do_no_harm_to_triton(server, gateway):
    """Triton 24.10 ended by itself after 600 of them, as gRPC's cancellations met its responses."""
    headers = {"Authorization": f"Bearer {gateway.key}"}

    async def ask_often(client, number):
        seen = collections.Counter()
        for turn in range(100):
            wait_ms = 1 + (number * 37 + turn * 11) % 40
            body = {"model": "fast", "input": ["w1 w2"]}
            if turn % 2:
                sent = asyncio.create_task(client.post("/v1/embeddings", json=body))
                await asyncio.wait({sent}, timeout=wait_ms / 1e3)
                seen["left" if sent.cancel() else sent.result().status_code] += 1
            else:
                late = {"x-request-timeout-ms": str(wait_ms)}
                seen[(await client.post("/v1/embeddings", json=body, headers=late)).status_code] += 1
        return seen

    async def ask_together():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, limits=limits) as client:
            return sum(
                await asyncio.gather(*(ask_often(client, number) for number in range(12))), collections.Counter()
            )

    seen = asyncio.run(ask_together())
    assert set(seen) <= {200, 429, 504, "left"}
    assert min(seen[504], seen["left"]) > 50
    assert server.running
    assert gateway.services.limits.in_flight == 0
    with gateway.client() as client:
        assert client.post("/v1/embeddings", json={"model": "fast", "input": "w1"}).status_code == 200


def test_nothing_more_is_sent_for_a_client_that_has_gone(server, gateway):
    body = json.dumps({"model": "slow", "input": ["w9 " * 60] * 160}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
    before = server.connection.answered("slow")
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while server.connection.answered("slow") == before:
            time.sleep(0.005)
    while gateway.services.limits.in_flight:
        time.sleep(0.01)
    time.sleep(1.5)
    computed = server.connection.answered("slow") - before
    assert 1 <= computed <= 10  # one or two, and the eight that were with Triton by then
    with gateway.client() as client:
        assert client.post("/v1/embeddings", content=body).status_code == 200
    assert server.connection.answered("slow") - before - computed > 16


def test_a_client_that_is_slow_to_send_gets_a_504_and_holds_no_place(gateway):
    port = int(gateway.url.rpartition(":")[2])
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}x-request-timeout-ms: 200\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 504")
        assert gateway.services.limits.in_flight == 0


def test_what_nobody_foresaw_is_a_500_with_the_request_id(gateway, monkeypatch):
    monkeypatch.setattr(type(gateway.services.catalog), "find", lambda *_: 1 / 0)
    with gateway.client() as client:
        answer = ask(client, x_request_id="odd")
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "odd")
    assert answer.json()["error"]["code"] == "internal"


def test_a_drain_finishes_what_is_under_way_and_refuses_what_is_new(server, tmp_path):
    with gateway_on(server, tmp_path) as own, own.client() as client, ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(ask, client, ["w9 " * 60] * 60) for _ in range(2)]
        while own.services.limits.in_flight < 2:
            time.sleep(0.005)
        own.services.limits.drain()
        late = ask(client)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert late.headers["retry-after"]
        assert late.headers["connection"] == "close"
        assert client.get("/v1/health/ready").status_code == 503
        assert client.get("/v1/health/live").status_code == 200
        own.stop()
        assert codes([future.result() for future in under_way]) == [200]
    assert not own.running


def test_a_connection_that_is_open_at_the_end_is_told_so_by_an_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(gateway_server, "_LAST_TICKS", 600)
    with gateway_on(server, tmp_path) as own, own.client() as client:
        assert client.get("/v1/health/live").status_code == 200
        own._server.drain()
        while not own._server._closed_ticks:
            time.sleep(0.01)
        with pytest.raises(httpx.ConnectError), own.client() as late:
            late.get("/v1/health/live")
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert answer.headers["connection"] == "close"
        own._thread.join(60)
        assert not own.running


def test_a_gateway_in_front_of_somebody_elses_triton_leaves_it_alone(server, tmp_path):
    where = {"triton_host": "127.0.0.1", "triton_grpc_port": server.ports.grpc, "triton_http_port": server.ports.http}
    where |= {"repository": server.repository, "models": ("slow",)}
    with gateway_on(None, tmp_path, **where) as own, own.client() as client:
        assert ask(client).status_code == 200
    assert server.running


def test_while_triton_is_away_requests_get_a_503_with_the_time_to_come_back(tmp_path, server):
    where = {"triton_host": "127.0.0.1", "triton_grpc_port": 1, "triton_http_port": 1}
    own = Gateway(
        Settings(port=0, state_file=tmp_path / "s", repository=server.repository, models=("slow",), **where), None
    )
    with own, own.client() as client:
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        assert client.get("/v1/health/ready").status_code == 503
        assert client.get("/v1/health/live").status_code == 200


def test_accel_serve_prints_a_key_that_works_and_a_sigterm_ends_it_well(server, tmp_path):
    settings = {
        "ACCEL_PORT": "0", "ACCEL_METRICS_PORT": "0", "ACCEL_STATE_FILE": str(tmp_path / "state.sqlite3"),
        "ACCEL_TRITON_HOST": "127.0.0.1", "ACCEL_TRITON_GRPC_PORT": str(server.ports.grpc),
        "ACCEL_REPOSITORY": str(server.repository),
    }  # fmt: skip
    command = [sys.executable, "-c", "from accel_lib.cli import app; app()", "serve", "--model", "slow"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        lines = []
        while not (lines and lines[-1].startswith("  -H 'Authorization")):
            lines.append(process.stdout.readline())
            assert lines[-1], (tmp_path / "log").read_text()
        shown = "".join(lines)
        url = next(word for word in shown.split() if word.startswith("http://")).rstrip(",")
        metrics = next(line.split()[1] for line in lines if line.startswith("metrics"))
        key = next(line.split()[1] for line in lines if line.startswith("key"))
        answer = httpx.post(
            f"{url}/v1/embeddings", json={"model": "slow", "input": "w9"}, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 200
        assert "accel_requests_total" in httpx.get(metrics).text
        assert httpx.get(metrics.replace("/metrics", "/v1/models")).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    written = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    entries = [line for line in lines if line["event"] == "request"]
    assert entries[0]["request_id"] == answer.headers["x-request-id"]
    assert (entries[0]["status"], entries[0]["tokens"], entries[0]["principal"][:4]) == (200, 1, "key:")
    assert key not in written
    assert key.encode() not in (tmp_path / "state.sqlite3").read_bytes()
