"""Verifies JSON web tokens of an identity provider with its public key; the gateway signs none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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

    `public_key_file` is the PEM file of an RSA, EC or Ed25519 public key.
    """

    def __init__(self, public_key_file: Path, *, issuer: str, audience: str) -> None:
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
        self._key, self._issuer, self._audience = key, issuer, audience

    def principal(self, token: str) -> Principal:
        """Whose token it is; raises `TokenError` if its signature, issuer, audience, time or roles are wrong."""
        try:
            claims = jwt.decode(
                token,
                self._key,  # type: ignore[arg-type]
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_S,
                options={"verify_iat": False, "require": _CLAIMS},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise TokenError(f"The token is not accepted: {error}") from error
        granted = claims.get("roles")
        roles = [role for role in ROLES if isinstance(granted, list) and role in granted]
        if not roles:
            raise TokenError(f"The token grants no role of {', '.join(ROLES)} in its claim 'roles'.")
        subject = str(claims["sub"])
        return Principal(id=f"jwt:{subject}", name=subject, roles=all_roles(roles))
