"""The one body that every error answer has, readable to OpenAI's and to text-embeddings-inference's clients."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from accel_lib.errors import StateError
from accel_lib.texts.files import short

_STATE_RETRY_S = 5.0
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    414: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class Problem(Exception):  # noqa: N818  (the word of RFC 9457)
    """Raise it anywhere under a request: the client gets this status with the one error body.

    Parameters
    ----------
    status
        HTTP status; gives the error's type.
    message
        One sentence that says what was wrong and what to do.
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
            self.headers |= {
                "Retry-After": str(max(1, round(retry_after_s + 0.499))),
                "retry-after-ms": str(max(1, round(retry_after_s * 1e3))),
            }
        if status == HTTPStatus.GATEWAY_TIMEOUT:
            self.headers.setdefault("x-should-retry", "false")
        if status == HTTPStatus.UNAUTHORIZED:
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    @property
    def type(self) -> str:
        """The error's type in OpenAI's words."""
        return _TYPES.get(self.status, "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON body: OpenAI reads ``error``, others the top level; ``detail`` is never null."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error, "object": "error", "message": self.message, "detail": {}, "type": self.type}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def install(app: FastAPI) -> None:
    """Give every error of an app the one body, FastAPI's and Starlette's too; 422 becomes 400."""

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
    async def _state(_: Request, error: StateError) -> JSONResponse:
        message = f"{error.cause} Nothing was changed."
        return Problem(503, message, code="state_unavailable", retry_after_s=_STATE_RETRY_S).response()

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
        return Problem(500, "The gateway failed on this request; its log has the cause.", code="internal").response()
