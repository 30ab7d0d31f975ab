"""Running the service over HTTP: who may do what, models and their batching, experiments, and what is kept of it."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest

import accel_lib
from accel_lib.errors import AccelError
from accel_lib.load.version_trial import run_trial
from accel_lib.service.gateway import Gateway, wait_until_ready
from accel_lib.service.keys import ROLES, all_roles
from accel_lib.service.settings import Settings
from accel_lib.texts import Texts
from tests.rig import LABELS, TEXTS, VECTORS, build_repository
from tests.tiny import end_at_once

pytestmark = pytest.mark.triton
# Every endpoint, and the role that it needs; None: anybody.
ENDPOINTS = {
    ("POST", "/v1/embeddings"): "inference",
    ("POST", "/v1/classify"): "inference",
    ("POST", "/v1/chat/completions"): "inference",
    ("POST", "/v1/completions"): "inference",
    ("POST", "/v1/ranking"): "inference",
    ("POST", "/v1/rerank"): "inference",
    ("POST", "/rerank"): "inference",
    ("POST", "/embed"): "inference",
    ("POST", "/predict"): "inference",
    ("POST", "/similarity"): "inference",
    ("POST", "/tokenize"): "inference",
    ("POST", "/decode"): "inference",
    ("POST", "/embeddings"): "inference",
    ("POST", "/"): "inference",
    ("GET", "/info"): "viewer",
    ("GET", "/v1/models"): "viewer",
    ("GET", "/v1/models/{model}"): "viewer",
    ("GET", "/v1/models/{model}/statistics"): "viewer",
    ("GET", "/v1/models/{model}/batching"): "viewer",
    ("GET", "/v1/status"): "viewer",
    ("GET", "/v1/metadata"): "viewer",
    ("GET", "/v1/version"): "viewer",
    ("POST", "/v1/models/{model}/load"): "operator",
    ("POST", "/v1/models/{model}/unload"): "operator",
    ("PUT", "/v1/models/{model}/batching"): "operator",
    ("GET", "/v1/experiments/{name}"): "operator",
    ("PUT", "/v1/experiments/{name}"): "operator",
    ("GET", "/v1/audit"): "admin",
    ("GET", "/"): None,
    ("GET", "/health"): None,
    ("GET", "/v1/health/live"): None,
    ("GET", "/v1/health/ready"): None,
    ("GET", "/v1/metrics"): None,
    ("GET", "/metrics"): None,
}

TOO_LARGE = {"dynamic_batching": {"preferred_batch_sizes": [999]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operate")
    with accel_lib.serve(build_repository(folder)) as running:
        yield running
        end_at_once(running)


@contextlib.contextmanager
def gateway_on(server, state_file):
    with Gateway(Settings(port=0, state_file=state_file), server) as made:
        wait_until_ready(made)
        yield made


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with gateway_on(server, tmp_path_factory.mktemp("state") / "state.sqlite3") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway):
    with gateway.client() as made:
        yield made


@pytest.fixture(scope="module")
def keys(gateway):
    return {role: gateway.services.auth.keys.create(role, [role]) for role in ROLES}


def classify(client, texts=TEXTS[:1], user=None, **headers):
    body = {"model": "sentiment", "input": texts} | ({"user": user} if user else {})
    return client.post("/v1/classify", json=body, headers=headers)


def right(answer, expected=VECTORS[:1]):
    labels = [item["label"] for item in answer.json()["data"]]
    return answer.status_code == 200 and labels == [LABELS[row.argmax()] for row in expected]


def begin(client, name, **plan):
    return client.put(f"/v1/experiments/{name}", json={"model": "sentiment", "weights": {"2": 1}} | plan)


def end(client, name, action="rollback", **more):
    return client.put(f"/v1/experiments/{name}", json={"action": action} | more)


def test_every_endpoint_is_in_the_table_of_roles(gateway):
    paths = gateway.app.openapi()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(ENDPOINTS)


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_an_endpoint_is_open_to_its_role_and_to_no_other(gateway, keys, method, path):
    needed, url = ENDPOINTS[method, path], path.format(model="nothing", name="nothing")
    with gateway.client(headers={"Authorization": ""}) as client:
        assert (client.request(method, url, json={}).status_code == 401) == (needed is not None)
    seen = set()
    for role, key in keys.items():
        with gateway.client(headers={"Authorization": f"Bearer {key}"}) as client:
            status = client.request(method, url, json={}).status_code
            assert status not in (401, 500)
            if status != 403:
                seen.add(role)
    assert seen == {role for role in ROLES if needed is None or needed in all_roles([role])}


def test_models_are_listed_with_their_versions_and_the_live_one(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    embedding, sentiment = listed["data"]
    assert (embedding["id"], embedding["object"], embedding["live_version"]) == ("embedding", "model", "2")
    assert [version["state"] for version in embedding["versions"]] == ["READY", "READY"]
    spaces = [version["vector_space_id"] for version in embedding["versions"]]
    assert len(set(spaces)) == 2
    assert [version["vector_space_id"] for version in sentiment["versions"]] == [None, None]
    assert client.get("/v1/models/embedding").json() == embedding
    assert client.get("/v1/models/nothing").status_code == 404
    assert client.get("/v1/models/..%2f..%2fetc").status_code in (400, 404)


def test_a_model_is_unloaded_which_makes_the_service_unready_and_loaded_again(client):
    assert client.post("/v1/models/embedding/unload").status_code == 200
    assert client.get("/v1/health/ready").status_code == 503
    assert not client.get("/v1/status").json()["ready"]
    assert client.post("/v1/models/embedding/unload").status_code == 409
    refused = client.post("/v1/embeddings", json={"model": "embedding", "input": "w1"})
    assert refused.status_code == 404
    assert right(classify(client))
    assert client.post("/v1/models/embedding/load").json()["versions"][0]["state"] == "READY"
    assert client.get("/v1/health/ready").status_code == 200
    assert client.post("/v1/embeddings", json={"model": "embedding", "input": "w1"}).status_code == 200
    assert client.post("/v1/models/nothing/load").status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "python"},
        {"file:1/model.py": "import os"},
        {"parameters": {"a": "b"}},
        {"dynamic_batching": {"default_queue_policy": {}}},
        {"dynamic_batching": {"queue_timeout_us": 5}},
        {"instance_group": {"count": 1, "kind": "KIND_CPU", "profile": ["x"]}},
        {"instance_group": {"count": 1_000}},
        {"instance_group": [{"count": 1}]},
        {"max_batch_size": 8},
        {"config": "{}"},
        {"version_policy": "some"},
        [],
    ],
)
def test_what_is_not_on_the_list_of_batching_is_refused(client, change):
    answer = client.put("/v1/models/sentiment/batching", json=change)
    assert answer.status_code == 400, answer.text
    assert right(classify(client))


def test_batching_is_changed_counts_from_then_on_and_survives_a_restart_of_the_gateway(server, tmp_path):
    change = {"dynamic_batching": {"max_queue_delay_us": 300, "preferred_batch_sizes": [4]}, "version_policy": [2]}
    with gateway_on(server, tmp_path / "state.sqlite3") as first, first.client() as client:
        answer = client.put("/v1/models/sentiment/batching", json=change).json()
        assert answer["dynamic_batching"]["max_queue_delay_us"] == 300
        assert client.get("/v1/models/sentiment/batching").json() == answer
        assert right(classify(client))
        refused = client.put("/v1/models/sentiment/batching", json=TOO_LARGE)
        assert refused.status_code == 409, refused.text
        assert right(classify(client))
    server.load("sentiment")
    with gateway_on(server, tmp_path / "state.sqlite3") as again, again.client() as client:
        assert server.model("sentiment").config.preferred_batch_sizes == (4,)
        client.put("/v1/models/sentiment/batching", json={"version_policy": "all"})
        counted = client.get("/v1/models/sentiment/statistics").json()
        assert counted["requests"] == 0
        for _ in range(3):
            classify(client, TEXTS[:2])
        server.model("sentiment").wait_for_stable_statistics()
        counted = client.get("/v1/models/sentiment/statistics").json()
        assert (counted["requests"], counted["inferences"]) == (3, 6)
        assert sum(int(size) * count for size, count in counted["batch_sizes"].items()) == 6
        assert counted["batch_ms"].keys() == counted["batch_sizes"].keys()
        assert all(ms > 0 for ms in counted["batch_ms"].values())
    server.load("sentiment")


def test_status_says_what_the_key_that_asks_may_do(gateway, keys):
    for role, key in keys.items():
        with gateway.client(headers={"Authorization": f"Bearer {key}"}) as client:
            assert client.get("/v1/status").json()["roles"] == [each for each in ROLES if each in all_roles([role])]


def test_status_metadata_and_version_say_what_runs(client):
    status = client.get("/v1/status").json()
    assert status["ready"]
    assert [part["name"] for part in status["components"]] == ["triton", "models", "state"]
    assert all(part["ok"] for part in status["components"])
    assert {check["state"] for check in status["doctor"]} <= {"ok", "warn", "fail"}
    metadata = client.get("/v1/metadata").json()
    assert metadata["modelInfo"][0]["shortName"] == "embedding:1"
    assert client.get("/v1/version").json() == {"release": accel_lib.__version__, "api": "1"}


def test_a_split_gives_each_user_one_version_and_a_pin_gets_round_it(client):
    assert begin(client, "split", weights={"1": 1, "2": 1}).status_code == 200
    try:
        users = [f"user {number}" for number in range(40)]
        first = [classify(client, user=user).headers["x-model-version"] for user in users]
        assert set(first) == {"1", "2"}
        assert first == [classify(client, user=user).headers["x-model-version"] for user in users]
        pinned = classify(client, user=users[0], **{"x-model-version": "1"})
        assert pinned.headers["x-model-version"] == "1"
        report = client.get("/v1/experiments/split").json()
        assert {each["version"]: each["requests"] for each in report["versions"]} == {
            version: 2 * first.count(version) for version in ("1", "2")
        }
        assert {verdict["measure"] for verdict in report["verdicts"]} == {"latency", "compute", "failures"}
        text = client.get("/metrics").text
        assert f'accel_experiment_exposures_total{{experiment="split",version="1"}} {2.0 * first.count("1")}' in text
    finally:
        assert end(client, "split").json()["status"] == "rolled_back"
    assert right(classify(client))


def test_a_shadow_is_compared_and_never_answers(client):
    assert begin(client, "shadow", shadow="1").status_code == 200
    try:
        answers = [classify(client, [text]) for text in TEXTS[:12]]
        assert {answer.headers["x-model-version"] for answer in answers} == {"2"}
        until = time.monotonic() + 60
        seen = {}
        while seen.get("1", {}).get("requests", 0) < 12 and time.monotonic() < until:
            report = client.get("/v1/experiments/shadow").json()
            seen = {each["version"]: each for each in report["versions"]}
        assert seen["1"]["latency_ms"] is None
        assert seen["1"]["agreement"]["texts"] == 12
        assert seen["1"]["agreement"]["high"] < 0.9  # of two unrelated tables
    finally:
        end(client, "shadow")


def test_versions_are_promoted_and_rolled_back_under_load_and_no_request_is_lost(client, gateway):
    answers, over = [], threading.Event()

    def ask():
        with gateway.client() as own:
            while not over.is_set():
                answers.append(classify(own))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            assert begin(client, f"turn{number}", weights={"1": 1, "2": 1}).status_code == 200
            time.sleep(0.1)
            assert end(client, f"turn{number}", "promote", version="1").json()["live_version"] == "1"
            assert classify(client).headers["x-model-version"] == "1"
            time.sleep(0.1)
            assert end(client, f"turn{number}").json()["live_version"] == "2"
            assert classify(client).headers["x-model-version"] == "2"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-model-version"] for answer in answers} == {"1", "2"}
    assert all(right(answer) for answer in answers if answer.headers["x-model-version"] == "2")


def test_embeddings_are_never_split_and_change_their_space_only_when_it_is_said(client):
    split = {"model": "embedding", "weights": {"1": 1, "2": 1}}
    refused = client.put("/v1/experiments/spaces", json=split)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_spaces_differ")
    shadow = {"model": "embedding", "weights": {"2": 1}, "shadow": "1"}
    assert client.put("/v1/experiments/spaces", json=shadow).status_code == 200
    try:
        vectors = client.post("/v1/embeddings", json={"model": "embedding", "input": TEXTS[:4]}).json()
        assert np.allclose([item["embedding"] for item in vectors["data"]], VECTORS[:4], atol=1e-4)
        refused = end(client, "spaces", "promote", version="1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "vector_space_changes")
        versions = client.get("/v1/models/embedding").json()["versions"]
        space = next(each["vector_space_id"] for each in versions if each["version"] == "1")
        assert end(client, "spaces", "promote", version="1", vector_space_id=space).status_code == 200
        other = client.post("/v1/embeddings", json={"model": "embedding", "input": TEXTS[:4]})
        assert other.headers["x-model-version"] == "1"
        assert other.json()["vector_space_id"] == space != vectors["vector_space_id"]
    finally:
        assert end(client, "spaces").status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"action": "delete"},
        {"action": "promote"},
        {"action": "rollback", "version": "1"},
        {"model": "sentiment", "weights": {}},
        {"model": "sentiment", "weights": {"1": 0}},
        {"model": "sentiment", "weights": {"1": -1}},
        {"model": "sentiment", "weights": {"one": 1}},
        {"model": "sentiment", "weights": {"1": 1}, "shadow": "1"},
        {"model": "sentiment", "weights": {"1": 1}, "shadow_share": 0},
        {"model": "sentiment", "weights": {"1": 1}, "sticky": "cookie"},
        {"model": "sentiment", "weights": {"1": 1}, "secret": 1},
    ],
)
def test_a_plan_that_is_none_is_refused(client, change):
    assert client.put("/v1/experiments/none", json=change).status_code == 400
    assert client.get("/v1/experiments/none").status_code == 404


def test_what_operators_did_is_in_the_audit_log_with_who_and_what_came_of_it(gateway, client, keys):
    with gateway.client(headers={"Authorization": f"Bearer {keys['operator']}"}) as operator:
        answer = operator.post("/v1/models/nothing/unload")
        assert answer.status_code == 404
        answer = operator.put(
            "/v1/models/sentiment/batching",
            json=TOO_LARGE,
            headers={"x-request-id": "mine"},
        )
        assert answer.status_code == 409
    entry = client.get("/v1/audit", params={"limit": 1}).json()["data"][0]
    assert (entry["action"], entry["target"], entry["request_id"]) == ("batching", "sentiment", "mine")
    assert entry["who"].startswith("key:")
    assert entry["detail"] == {"preferred_batch_sizes": [999]}
    assert "did not load" in entry["outcome"]
    for wrong, words in ((0, "limit must be at least 1"), ("many", "limit is a text; a whole number")):
        refused = client.get("/v1/audit", params={"limit": wrong})
        assert refused.status_code == 400
        assert words in refused.json()["message"]


def test_a_trial_finds_the_better_version_and_stops_when_it_is_sure(gateway, client):
    labels = tuple(LABELS[row.argmax()] for row in VECTORS)
    trial = run_trial(
        gateway, "trial", Texts(TEXTS, labels=labels), {"1": 1, "2": 1}, requests=2_000, until_significant=True
    )
    assert end(client, "trial").status_code == 200
    assert trial.lost == 0
    assert trial.difference.significant
    assert len(trial.answers) % 50 == 0  # what came in after the decision is not counted
    assert len(trial.answers) < 400
    assert trial.frame.loc[1, "right"] == 1
    assert trial.headline.startswith("version 2 has more right answers than version 1: ")
    assert trial.course["requests"].iloc[-1] == len(trial.answers)
    with pytest.raises(AccelError, match="no version 9 that answers"):
        run_trial(gateway, "trial", Texts(TEXTS, labels=labels), {"1": 1, "9": 1}, requests=10)
    with pytest.raises(AccelError, match="labelled texts and two versions"):
        run_trial(gateway, "trial", Texts(TEXTS), {"1": 1, "2": 1}, requests=10)
