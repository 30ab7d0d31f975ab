"""A proxy in front of Triton that does nothing but hand on: uvicorn, an ASGI app, one gRPC call; used by `gateway`.

python -m benchmarks.bare_proxy 127.0.0.1:8004
"""

from __future__ import annotations

import socket
import sys

import grpc
import uvicorn

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_HEADERS = [(b"content-type", b"application/octet-stream")]


class BareProxy:
    """The ASGI app: a body is Triton's message, and so is the response."""

    def __init__(self, address):
        self._address, self._call = address, None

    async def __call__(self, _, receive, send):
        """Handle one request."""
        if self._call is None:
            self._call = grpc.aio.insecure_channel(self._address).unary_unary(_METHOD)
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        answer = await self._call(body)
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": answer})


def main():
    """Listen on a free port, print the address, and serve until terminated."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(BareProxy(sys.argv[1]), http="httptools", lifespan="off", log_level="error")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
