"""A stand-in for an OpenAI-compatible server such as vLLM, on loopback: what it is asked, and what it answers by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["Paris", " is", " the", " capital\u2028", " of", " \N{GRINNING FACE}", "."]
USAGE = {"prompt_tokens": 11, "completion_tokens": len(WORDS), "total_tokens": 11 + len(WORDS)}
KEY = "sk-stand-in"


class StandIn:
    """A context manager; the last message of a chat says how it is answered: ``status 400``, ``hang``, ``break`` …

    ``hold`` sends the first word and waits for `go_on`; `left` is set once a client has left a stream.
    """

    def __init__(self):
        self.asked, self.headers = [], []
        self.go_on, self.left = threading.Event(), threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        paths = [Route(f"/v1/{path}", self._answer, methods=["POST"]) for path in ("chat/completions", "completions")]
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=paths), log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    async def _answer(self, request):
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        way = str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])
        if way.startswith("status "):
            error = {"message": "said there", "type": "x", "param": "temperature", "code": "there"}
            return JSONResponse({"error": error}, int(way.split()[1]), headers={"retry-after": "7"})
        if way == "no json":
            return Response("<html>", media_type="text/html")
        if way == "hang":
            await asyncio.sleep(60)
        if body.get("stream"):
            return StreamingResponse(self._events(body, way), media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "there", "model": body["model"], "choices": [choice], "usage": USAGE})

    async def _events(self, body, way):
        def event(choices, **fields):
            head = {"id": "there", "object": "chat.completion.chunk", "model": body["model"]}
            return f"data: {json.dumps(head | {'choices': choices} | fields, ensure_ascii=False)}\r\n\r\n"

        with self._told_when_left():
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
            for place, word in enumerate(WORDS):
                yield event([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
                while place == 0 and way == "hold" and not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                if way == "break":
                    return
                if way == "error inside":
                    yield 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
                    return
            yield event([{"index": 0, "delta": {}, "finish_reason": "length" if way == "cut" else "stop"}])
            if (body.get("stream_options") or {}).get("include_usage"):
                yield event([], usage=USAGE)
            yield "data: [DONE]\n\n"

    @contextlib.contextmanager
    def _told_when_left(self):
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
