"""The one JSON body of every error response, readable to OpenAI's and to text-embeddings-inference's clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from accel_lib.errors import StateError
from accel_lib.texts.files import short

_DATABASE_RETRY_S = 5.0
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class Problem(Exception):  # noqa: N818  (the word of RFC 9457)
    """Raise it anywhere under a request: the client gets this status with the one error body.

    Parameters
    ----------
    status, message
        HTTP status, and one sentence that says what was wrong and what to do.
    param, code
        The field at fault, and a word that programs can act on, such as ``"queue_full"``.
    retry_after_s
        Sets ``Retry-After`` and ``retry-after-ms``.
    headers
        Further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after_s + 0.499)))
            self.headers["retry-after-ms"] = str(max(1, round(retry_after_s * 1e3)))
        if status == 504:
            self.headers.setdefault("x-should-retry", "false")
        if status == 401:
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    def body(self) -> dict[str, Any]:
        """The JSON body: OpenAI reads ``error``, others the top level; ``detail`` is never null."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "object": "error", "message": self.message, "detail": {}, "type": kind}

    def response(self) -> JSONResponse:
        """The response that the client gets."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def install(app: FastAPI) -> None:
    """Give every error of an app the one body, Starlette's own too."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path = short(request.url.path)
        known = {404: f"There is no endpoint {path}; /docs lists them.", 405: f"{path} takes no {request.method}."}
        message = known.get(error.status_code, str(error.detail))
        return Problem(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(StateError)
    async def _database(_: Request, error: StateError) -> JSONResponse:
        return unavailable(error).response()


def unavailable(error: StateError) -> Problem:
    """What a client gets while the state file cannot be used."""
    message = f"{error.cause} Nothing was changed."
    return Problem(503, message, code="state_unavailable", retry_after_s=_DATABASE_RETRY_S)
