"""Who calls, and whether they may: each endpoint declares ``Depends(require_role("inference"))``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from accel_lib.service.errors import Problem
from accel_lib.service.jwt_tokens import TokenError, Tokens
from accel_lib.service.keys import Keys, Principal, Role

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of `accel keys create`, or a JSON web token of the configured issuer.",
)
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]  # for the OpenAPI document


class Authenticator:
    """Turns ``Authorization: Bearer`` into a principal."""

    def __init__(self, keys: Keys, tokens: Tokens | None = None) -> None:
        self.keys, self._tokens = keys, tokens

    def identify(self, headers: Headers) -> Principal:
        """Whose key or token a request's headers show; raises the `Problem` 401."""
        scheme, credential = get_authorization_scheme_param(headers.get("authorization"))
        if scheme.lower() != "bearer" or not credential:
            raise _unknown("Send a key: Authorization: Bearer <key>.")
        found = self.keys.principal(credential)
        if found is not None:
            return found
        if self._tokens is None or credential.count(".") != 2:
            raise _unknown("That key is not known, or was revoked.")
        try:
            return self._tokens.principal(credential)
        except TokenError as error:
            raise _unknown(str(error)) from error


def authorize(request: Request, role: Role) -> Principal:
    """The `Principal` of a request if it has a role, else the `Problem` 401 or 403."""
    found: Principal = request.scope["state"].get("caller") or request.app.state.services.auth.identify(request.headers)
    if role not in found.roles:
        message = f"This needs the role {role}; {found.name or found.id} has {', '.join(sorted(found.roles))}."
        raise Problem(403, message, code="insufficient_role")
    request.state.principal = found
    return found


def require_role(role: Role) -> Callable[..., Awaitable[Principal]]:
    """`authorize` as a dependency."""

    async def principal(request: Request, _: _Credentials) -> Principal:
        return authorize(request, role)

    return principal


class InferenceRoute(APIRoute):
    """The route of an endpoint ``(request, caller)`` that takes texts; its caller needs the role ``inference``.

    FastAPI describes it like any other; its search for dependencies, which took a sixth of the gateway's time for a
    short text, is left out.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that matches the path; FastAPI refuses one of another method."""
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        response = await self.endpoint(request, authorize(request, "inference"))
        await response(scope, receive, send)


def _unknown(message: str) -> Problem:
    return Problem(401, message, code="invalid_api_key")
