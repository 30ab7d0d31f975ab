"""Keys, tokens, roles, and the state file behind them."""

from __future__ import annotations

import sqlite3
import stat
import time
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from accel_lib.errors import AccelError, StateError
from accel_lib.service import errors
from accel_lib.service.audit import Audit
from accel_lib.service.auth import Authenticator, require_role
from accel_lib.service.database import Database
from accel_lib.service.jwt_tokens import TokenError, Tokens
from accel_lib.service.keys import ROLES, Keys, Principal, all_roles

ISSUER, AUDIENCE = "https://issuer.example", "accel"
PRIVATE = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def state(tmp_path):
    with Database(tmp_path / "state.sqlite3") as opened:
        yield opened


@pytest.mark.parametrize("version", [0, 1, 7])
def test_another_program_s_database_is_refused_and_not_touched(tmp_path, version):
    path = tmp_path / "theirs.sqlite3"
    connection = sqlite3.connect(path)
    connection.executescript(f"CREATE TABLE songs (name TEXT); PRAGMA user_version = {version}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match=r"another program's database[\s\S]*tables songs"):
        Database(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def keys(state):
    return Keys(state)


def fill(state):
    """Leave SQLite no page to write to: what it says on a full disk, it says now."""
    (pages,) = state.read("PRAGMA page_count")[0]
    state.write(f"PRAGMA max_page_count = {pages}")
    while True:
        state.write("INSERT INTO audit VALUES (NULL, 0, '', '', '', '', ?, '')", ("x" * 500,))


def pem(tmp_path, private=PRIVATE):
    file = tmp_path / "public.pem"
    file.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


def token(private=PRIVATE, algorithm="ES256", **changes):
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + 600, "roles": ["inference"]} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, private, algorithm)


def test_a_key_is_known_by_its_hash_only(state, keys):
    key = keys.create("search page", ["inference"])
    assert keys.principal(key) == Principal(
        id=f"key:{keys.all()[0].id}", name="search page", roles=frozenset({"inference", "viewer"})
    )
    state.read("PRAGMA wal_checkpoint(TRUNCATE)")
    secret = key.split("_", 2)[2].encode()
    assert secret not in state.path.read_bytes()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["", "accel", "accel__", "accel_0_0", "\ud800", "a.b.c"])
def test_what_is_no_key_is_nobody(keys, wrong):
    key = keys.create("one", ["viewer"])
    assert keys.principal(wrong) is None
    assert keys.principal(key[:-1]) is None
    assert keys.principal(key + "A") is None
    assert keys.principal(key) is not None


def test_a_revoked_key_is_nobody_at_once_also_when_another_process_revoked_it(state, keys):
    key = keys.create("one", ["viewer"])
    assert keys.principal(key)
    with Database(state.path) as elsewhere:
        Keys(elsewhere).revoke(keys.all()[0].id)
    assert keys.principal(key) is None
    assert keys.all()[0].revoked_s is not None
    with pytest.raises(StateError, match="accel keys list"):
        keys.revoke(keys.all()[0].id)


def test_roles_include_what_they_are_named_for_and_operating_reads_no_texts():
    assert all_roles(["operator"]) == {"operator", "viewer"}
    assert all_roles(["operator", "inference"]) == {"operator", "inference", "viewer"}
    assert all_roles(["admin"]) == set(ROLES)
    for wrong in ([], ["root"], ["viewer", "root"]):
        with pytest.raises(StateError, match="no role"):
            all_roles(wrong)


def test_keys_survive_a_restart(state, keys):
    key = keys.create("one", ["admin"])
    state.close()
    with Database(state.path) as again:
        assert Keys(again).principal(key).roles == set(ROLES)
    with pytest.raises(StateError, match="fix:  open it again"):
        state.read("SELECT 1")


def test_a_full_disk_refuses_a_change_loses_nothing_and_keeps_reading(state, keys):
    first = keys.create("first", ["viewer"])
    with pytest.raises(StateError, match=r"could not be written[\s\S]*full[\s\S]*make room"):
        fill(state)
    with pytest.raises(StateError, match="full"):
        for _ in range(100):
            keys.create("one too many" * 50, ["viewer"])
    assert keys.principal(first)
    before = len(keys.all())
    state.write("PRAGMA max_page_count = 100000")
    assert keys.principal(keys.create("room again", ["viewer"]))
    assert len(keys.all()) == before + 1
    assert state.read("PRAGMA integrity_check")[0][0] == "ok"


def test_who_reads_does_not_wait_for_who_writes_and_sees_whole_changes_only(state, keys):
    key = keys.create("one", ["viewer"])
    with state.changing() as change:
        change.execute("DELETE FROM keys")
        assert keys.principal(key)
        assert len(keys.all()) == 1
    assert keys.principal(key) is None


def test_a_change_that_fails_halfway_changes_nothing(state, keys):
    def half():
        with state.changing() as change:
            change.execute("DELETE FROM keys")
            raise KeyError

    keys.create("one", ["viewer"])
    with pytest.raises(KeyError):
        half()
    assert len(keys.all()) == 1


def test_a_state_of_another_version_is_refused(state):
    state.write("PRAGMA user_version = 99")
    state.close()
    with pytest.raises(StateError, match=r"schema 99[\s\S]*mv state\.sqlite3"):
        Database(state.path)


def test_an_action_is_recorded_before_it_is_done_and_its_outcome_after(state):
    audit = Audit(state, now=lambda: 5.0)
    with audit.action("key:1", "unload", "sentiment", request_id="r1", why="test"):
        assert audit.entries()[0].outcome == "begun"

    def fail():
        with audit.action("key:1", "load", "sentiment"):
            raise AccelError("It did not load.", fix="mend it")

    with pytest.raises(AccelError):
        fail()
    last, first = audit.entries()
    assert (first.at, first.request_id, first.who, first.action, first.outcome) == (
        5,
        "r1",
        "key:1",
        "unload",
        "done",
    )
    assert first.detail == {"why": "test"}
    assert last.outcome == "It did not load."


def test_what_cannot_be_recorded_is_not_done(state):
    with pytest.raises(StateError):
        fill(state)
    done = []

    def act():
        with Audit(state).action("key:1", "unload", "sentiment", why="x" * 5_000):
            done.append(1)

    with pytest.raises(StateError, match="full"):
        act()
    assert not done


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (PRIVATE, "ES256"),
        (rsa.generate_private_key(public_exponent=65_537, key_size=2048), "RS256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["EC", "RSA", "Ed25519"],
)
def test_a_token_of_the_issuer_for_this_audience_is_accepted(tmp_path, private, algorithm):
    tokens = Tokens(pem(tmp_path, private), issuer=ISSUER, audience=AUDIENCE)
    who = tokens.principal(token(private, algorithm))
    assert who == Principal(id="jwt:ada", name="ada", roles=frozenset({"inference", "viewer"}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://other.example"}, "issuer"),
        ({"aud": "other"}, "[Aa]udience"),
        ({"exp": 1}, "expired"),
        ({"exp": "soon"}, "convert|integer|exp"),
        ({"exp": None}, '"exp"'),
        ({"sub": None}, '"sub"'),
        ({"nbf": time.time() + 900}, "not yet valid"),
        ({"roles": ["root"]}, "no role"),
        ({"roles": "admin"}, "no role"),
        ({"roles": None}, "no role"),
    ],
)
def test_any_other_token_is_refused_with_the_reason(tmp_path, changes, why):
    tokens = Tokens(pem(tmp_path), issuer=ISSUER, audience=AUDIENCE)
    with pytest.raises(TokenError, match=why):
        tokens.principal(token(**changes))


def test_a_token_signed_by_another_or_by_the_public_key_or_by_nobody_is_refused(tmp_path):
    file = pem(tmp_path)
    tokens = Tokens(file, issuer=ISSUER, audience=AUDIENCE)
    stranger = token(ec.generate_private_key(ec.SECP256R1()))
    unsigned = token(None, "none")
    parts = token().split(".")
    for forged in (stranger, unsigned, ".".join([*parts[:2], "AAAA"]), "a.b.c", ".."):
        with pytest.raises(TokenError):
            tokens.principal(forged)
    public = file.read_bytes().replace(b"-----", b"")  # PyJWT does not sign with a PEM file, an attacker would
    with pytest.raises(TokenError, match="alg"):
        tokens.principal(token(public, "HS256"))


def test_a_token_counts_for_as_long_after_its_end_as_two_clocks_may_differ(tmp_path):
    tokens = Tokens(pem(tmp_path), issuer=ISSUER, audience=AUDIENCE)
    assert tokens.principal(token(exp=time.time() - 20))
    with pytest.raises(TokenError, match="expired"):
        tokens.principal(token(exp=time.time() - 40))


def test_a_file_that_holds_no_public_key_is_refused_at_the_start(tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for file in (tmp_path / "empty.pem", tmp_path / "nowhere.pem"):
        with pytest.raises(AccelError, match=r"no public key[\s\S]*openssl pkey"):
            Tokens(file, issuer=ISSUER, audience=AUDIENCE)
    with pytest.raises(AccelError, match="ACCEL_JWT_AUDIENCE"):
        Tokens(pem(tmp_path), issuer=ISSUER, audience="")


def test_a_request_without_a_key_is_401_with_the_wrong_role_403_else_answered(keys, tmp_path):
    app = FastAPI()
    errors.install(app)
    auth = Authenticator(keys, Tokens(pem(tmp_path), issuer=ISSUER, audience=AUDIENCE))
    app.state.services = SimpleNamespace(auth=auth)
    for role in ROLES:
        app.get(f"/{role}", dependencies=[Depends(require_role(role))])(lambda: "answered")
    client = TestClient(app)
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer nobody"}):
        answer = client.get("/viewer", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    seen = {}
    for given in ROLES:
        headers = {"Authorization": f"Bearer {keys.create(given, [given])}"}
        seen[given] = {role for role in ROLES if client.get(f"/{role}", headers=headers).status_code == 200}
    assert seen == {role: set(all_roles([role])) for role in ROLES}
    answer = client.get("/operator", headers={"Authorization": f"Bearer {token()}"})
    assert answer.status_code == 403
    assert "needs the role operator; ada has inference, viewer" in answer.json()["message"]
    assert client.get("/inference", headers={"Authorization": f"Bearer {token()}"}).status_code == 200
