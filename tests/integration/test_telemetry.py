"""Traces of a request, from its client through the gateway to Triton, at a collector of our own."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import accel_lib
from tests.tiny import TABLE, tiny_artifact

pytest.importorskip("opentelemetry.sdk.trace")
pytestmark = pytest.mark.triton
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPELLINGS = (TRACE.encode(), bytes.fromhex(TRACE), base64.b64encode(bytes.fromhex(TRACE)))


@contextlib.contextmanager
def collector():
    """Takes OTLP over HTTP: its address, and the bodies it got."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()


def sent_by(bodies, service):
    """Whether spans of the client's trace came from a service."""
    return any(service in body and any(spelling in body for spelling in SPELLINGS) for body in bodies)


def test_one_trace_runs_from_the_client_through_the_gateway_to_triton(tmp_path):
    repository = tmp_path / "model_repository"
    repository.mkdir()
    with accel_lib.serve(repository) as server:
        server.add("embedding", tiny_artifact(tmp_path / "one", TABLE))
    with collector() as (endpoint, bodies):
        settings = {"repository": repository, "otlp_endpoint": endpoint, "triton_http_port": 0}
        with accel_lib.serve_gateway(**settings, triton_grpc_port=0, triton_metrics_port=0) as gateway:
            with gateway.client(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}) as client:
                answer = client.post("/v1/embeddings", json={"model": "embedding", "input": "w1 secret"})
                assert answer.status_code == 200
            until = time.monotonic() + 60
            while not sent_by(bodies, b"triton") and time.monotonic() < until:
                time.sleep(0.1)
        assert sent_by(bodies, b"triton")
        assert sent_by(bodies, b"accel-gateway")
        assert not [body for body in bodies if b"secret" in body]
