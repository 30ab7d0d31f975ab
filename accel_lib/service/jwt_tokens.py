"""JSON web tokens of an identity provider, verified with its public key; this gateway signs none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from accel_lib.errors import AccelError
from accel_lib.service.keys import ROLES, Principal, all_roles

_LEEWAY_S = 30.0  # clocks of two machines differ
_CLAIMS = ["exp", "iss", "aud", "sub"]
# Algorithms by kind of key, so that no token can choose a weaker one than its key is for (RFC 8725, section 3.1).
_ALGORITHMS: Mapping[type, list[str]] = {
    rsa.RSAPublicKey: ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    ec.EllipticCurvePublicKey: ["ES256", "ES384", "ES512"],
    ed25519.Ed25519PublicKey: ["EdDSA"],
}


class TokenError(Exception):
    """A token that is not accepted; says why."""


class Tokens:
    """Verifies tokens of one issuer for one audience; the claim ``roles`` says what a token may do.

    Parameters
    ----------
    public_key_file
        PEM file of an RSA, EC or Ed25519 public key.
    issuer, audience
        What ``iss`` and ``aud`` must be.
    now
        Wall-clock seconds since 1970.

    Raises
    ------
    AccelError
        The file holds no such key, or issuer or audience is empty.
    """

    def __init__(
        self, public_key_file: Path, *, issuer: str, audience: str, now: Callable[[], float] = time.time
    ) -> None:
        if not (issuer and audience):
            raise AccelError(
                "A token is accepted from one issuer for one audience.",
                seen=f"issuer {issuer!r}, audience {audience!r}",
                fix="set ACCEL_JWT_ISSUER and ACCEL_JWT_AUDIENCE beside ACCEL_JWT_PUBLIC_KEY_FILE",
            )
        try:
            key = load_pem_public_key(public_key_file.read_bytes())
            self._algorithms = next(names for kind, names in _ALGORITHMS.items() if isinstance(key, kind))
        except (OSError, ValueError, StopIteration) as error:
            raise AccelError(
                "ACCEL_JWT_PUBLIC_KEY_FILE holds no public key.",
                seen=f"{public_key_file.name}: {error or 'a kind of key that signs no tokens here'}",
                fix="write one: openssl pkey -in private.pem -pubout -out public.pem",
            ) from error
        self._key, self._issuer, self._audience, self._now = key, issuer, audience, now

    def principal(self, token: str) -> Principal:
        """Whose token it is.

        Raises
        ------
        TokenError
            The signature, issuer, audience or time is wrong, or it grants no role of this service.
        """
        try:
            # PyJWT reads the clock by itself, so times are checked here, with ours.
            times = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": _CLAIMS}
            claims = jwt.decode(
                token,
                self._key,  # type: ignore[arg-type]
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                options=times,  # type: ignore[arg-type]
            )
            self._check_times(claims)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenError(f"The token is not accepted: {error}") from error
        granted = claims.get("roles")
        roles = [role for role in ROLES if isinstance(granted, list) and role in granted]
        if not roles:
            raise TokenError(f"The token grants no role of {', '.join(ROLES)} in its claim 'roles'.")
        subject = str(claims["sub"])
        return Principal(id=f"jwt:{subject}", name=subject, roles=all_roles(roles))

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._now()
        if float(claims["exp"]) + _LEEWAY_S <= now:
            raise ValueError("it has expired")
        if float(claims.get("nbf", now)) - _LEEWAY_S > now:
            raise ValueError("it is not valid yet")
