"""API keys: made once, shown once, stored as a hash, revoked at once."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from accel_lib.errors import StateError
from accel_lib.service.database import Database

Role = Literal["viewer", "inference", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
# What a role may do beside what it is named after. Operating a service is no reason to read its users' texts.
_INCLUDES: dict[Role, frozenset[Role]] = {
    "viewer": frozenset({"viewer"}),
    "inference": frozenset({"inference", "viewer"}),
    "operator": frozenset({"operator", "viewer"}),
    "admin": frozenset(ROLES),
}
_PREFIX = "accel"
_ID_BYTES = 6
_SECRET_BYTES = 32
_NO_DIGEST = hashlib.sha256(secrets.token_bytes(_SECRET_BYTES)).digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A key as it is stored: everything but the secret; `revoked_s` is None while it may be used."""

    id: str
    name: str
    roles: frozenset[Role]
    created_s: float
    revoked_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Principal:
    """Who a request comes from, by an id such as ``"key:<id>"`` or ``"jwt:<subject>"``, with all roles included."""

    id: str
    name: str
    roles: frozenset[Role]


def all_roles(roles: Iterable[str]) -> frozenset[Role]:
    """The roles with all that they include; raises `StateError` for a name that is none."""
    given = set(roles)
    if not given or not given <= set(ROLES):
        raise StateError("That is no role.", seen=", ".join(sorted(given)) or "none", fix=f"take of {', '.join(ROLES)}")
    return frozenset().union(*(_INCLUDES[role] for role in ROLES if role in given))


class Keys:
    """The keys of one gateway.

    A key is ``accel_<id>_<secret>`` with 256 random bits, so that a plain SHA-256 of it is as good as a slow hash:
    there is no dictionary to try. A revocation counts from the next request on, also when another process made it.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now
        self._known: dict[bytes, Principal] = {}
        self._seen = database.changes()

    def create(self, name: str, roles: Iterable[str]) -> str:
        """Make a key and return it; it cannot be shown again. Raises `StateError` if a role does not exist."""
        given = sorted(set(roles))
        all_roles(given)
        identity, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
        key = f"{_PREFIX}_{identity}_{secret}"
        self._database.write(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)",
            (identity, name, " ".join(given), _digest(key), self._now()),
        )
        return key

    def all(self) -> list[Key]:
        """Every key ever made, oldest first."""
        return [
            Key(**{**row, "roles": frozenset(role for role in ROLES if role in row["roles"].split())})
            for row in self._database.read(
                "SELECT id, name, roles, created_s, revoked_s FROM keys ORDER BY created_s, id"
            )
        ]

    def revoke(self, identity: str) -> None:
        """End a key, by its id; raises `StateError` when there is none in use with that id."""
        changed = self._database.write(
            "UPDATE keys SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL", (self._now(), identity)
        )
        if not changed:
            raise StateError("No key in use has that id.", seen=identity, fix="accel keys list shows the ids")

    def principal(self, key: str) -> Principal | None:
        """Whose key it is; None for a key that is none or was revoked."""
        changes = self._database.changes()
        if changes != self._seen:
            self._known.clear()
            self._seen = changes
        digest = _digest(key)
        if digest not in self._known:
            found = self._look_up(key, digest)
            if found is None:
                return None
            self._known[digest] = found
        return self._known[digest]

    def _look_up(self, key: str, digest: bytes) -> Principal | None:
        _, _, rest = key.partition("_")
        identity = rest.partition("_")[0]
        rows = self._database.read("SELECT * FROM keys WHERE id = ? AND revoked_s IS NULL", (identity,))
        stored = bytes(rows[0]["digest"]) if rows else _NO_DIGEST
        if not hmac.compare_digest(stored, digest) or not rows:
            return None
        return Principal(id=f"key:{identity}", name=rows[0]["name"], roles=all_roles(rows[0]["roles"].split()))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest()
