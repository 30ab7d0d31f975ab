"""Who gets which version, what is kept, and what an experiment may not do."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from accel_lib.artifact import Manifest
from accel_lib.errors import StateError
from accel_lib.service.abtest.experiments import Experiments
from accel_lib.service.abtest.routing import Plan, choose, shadowed
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.database import Database
from accel_lib.service.errors import Problem
from accel_lib.triton.config import ModelConfig

USERS = [f"user {number}" for number in range(10_000)]
SPLIT = Plan(model="sentiment", weights={"1": 1, "2": 1})
SHADOW = Plan(model="embedding", weights={"2": 1}, shadow="1")


def served(name, version, task):
    manifest = Manifest(
        model=name, source=f"{name} {version}", task=task, format="onnx", precision="fp32", output_name="logits",
        dimension=2, max_length=64, files={"model.onnx": {"sha256": f"{name} {version}", "size": 1}},
    )  # fmt: skip
    return ServedVersion(
        name=name, version=version, manifest=manifest, config=ModelConfig(name=name), tokenizers={}, created_s=0
    )


VERSIONS = [
    *(served("sentiment", version, "classification") for version in ("1", "2", "3")),
    *(served("embedding", version, "embedding") for version in ("1", "2")),
]


@pytest.fixture
def state(tmp_path):
    with Database(tmp_path / "state.sqlite3") as opened:
        yield opened


@pytest.fixture
def experiments(state):
    made = Experiments(state, lambda: VERSIONS)
    yield made
    made.close()


def shares(experiments, model="sentiment"):
    return collections.Counter(experiments.route(model, user=user).version for user in USERS)


def refused(status, code):
    return pytest.raises(Problem, check=lambda problem: (problem.status, problem.code) == (status, code))


def test_users_are_split_by_weight_and_each_keeps_her_version():
    plan = Plan(model="sentiment", weights={"1": 9, "2": 1, "3": 0})
    first = [choose("trial", plan, user) for user in USERS]
    assert first == [choose("trial", plan, user) for user in USERS]
    assert collections.Counter(first)["2"] == pytest.approx(1_000, abs=120)
    assert "3" not in first
    assert first != [choose("another trial", plan, user) for user in USERS]


def test_when_a_weight_grows_users_only_move_to_that_version():
    before = [choose("trial", Plan(model="m", weights={"1": 8, "2": 1, "3": 1}), user) for user in USERS]
    after = [choose("trial", Plan(model="m", weights={"1": 8, "2": 3, "3": 1}), user) for user in USERS]
    moved = {new for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {"2"}


def test_a_share_of_the_requests_is_shadowed():
    plan = Plan(model="m", weights={"1": 1}, shadow="2", shadow_share=0.25)
    assert sum(shadowed("trial", plan, user) for user in USERS) == pytest.approx(2_500, abs=200)


def test_a_version_that_is_loaded_later_gets_no_traffic(state):
    there = VERSIONS[:2]
    experiments = Experiments(state, lambda: there)
    assert experiments.route("sentiment", user="a").version == "2"
    there = VERSIONS
    assert experiments.route("sentiment", user="a").version == "2"
    assert experiments.route("sentiment", user="a", pinned="3").version == "3"
    experiments.close()


def test_a_split_runs_is_promoted_and_rolled_back(experiments):
    assert shares(experiments) == {"3": 10_000}
    experiments.begin("trial", SPLIT)
    assert shares(experiments)["1"] == pytest.approx(5_000, abs=250)
    assert experiments.route("sentiment", user="a", pinned="3").experiment == ""
    assert experiments.promote("trial", "1").status == "promoted"
    assert shares(experiments) == {"1": 10_000}
    assert experiments.roll_back("trial").status == "rolled_back"
    assert shares(experiments) == {"3": 10_000}
    with refused(409, "not_running"):
        experiments.roll_back("trial")
    with refused(409, "not_running"):
        experiments.promote("trial", "1")


def test_requests_without_a_user_or_of_a_plan_that_is_not_sticky_are_drawn_one_by_one(experiments):
    experiments.begin("trial", SPLIT)
    assert len({experiments.route("sentiment").version for _ in range(100)}) == 2
    assert len({experiments.route("sentiment", user="a").version for _ in range(100)}) == 1
    experiments.begin("trial", SPLIT.model_copy(update={"sticky": "request"}))
    assert len({experiments.route("sentiment", user="a").version for _ in range(100)}) == 2


def test_rolling_back_a_running_split_sends_everybody_to_the_live_version(experiments):
    experiments.begin("trial", SPLIT)
    experiments.roll_back("trial")
    assert shares(experiments) == {"3": 10_000}


def test_it_all_survives_a_restart(state, experiments):
    experiments.begin("trial", SPLIT)
    experiments.begin("spaces", SHADOW)
    for user in USERS[:50]:
        route = experiments.route("sentiment", user=user)
        experiments.answered(route, latency_ms=5, compute_ms=3, texts=1)
    before = shares(experiments)
    experiments.close()
    again = Experiments(state, lambda: [])
    assert shares(again) == before
    assert again.live("embedding") == "2"
    assert sum(version.requests for version in again.report("trial").versions) == 50
    again.close()


def test_embeddings_are_compared_in_the_shadow_only(experiments):
    for weights in ({"1": 1, "2": 1}, {"1": 1}):
        with refused(409, "vector_spaces_differ"):
            experiments.begin("spaces", Plan(model="embedding", weights=weights))
    experiments.begin("spaces", SHADOW)
    route = experiments.route("embedding", user="a")
    assert (route.version, route.shadow) == ("2", "1")


def test_an_embedding_in_another_space_is_promoted_only_by_its_name(experiments):
    experiments.begin("spaces", SHADOW)
    space = VERSIONS[-2].vector_space_id
    for wrong in (None, VERSIONS[-1].vector_space_id):
        with pytest.raises(Problem, match=f'indexes have to be built again. .*"{space}"'):
            experiments.promote("spaces", "1", vector_space_id=wrong)
    experiments.promote("spaces", "1", vector_space_id=space)
    assert shares(experiments, "embedding") == {"1": 10_000}


def test_what_cannot_be_is_refused(experiments):
    with refused(409, "version_not_ready"):
        experiments.begin("trial", Plan(model="sentiment", weights={"1": 1, "9": 1}))
    with refused(409, "version_not_ready"):
        experiments.begin("trial", Plan(model="nothing", weights={"1": 1}))
    with refused(404, "experiment_not_found"):
        experiments.get("trial")
    experiments.begin("trial", SPLIT)
    with refused(409, "experiment_runs"):
        experiments.begin("second", SPLIT)
    with refused(409, "experiment_runs"):
        experiments.begin("trial", SHADOW)
    with refused(409, "version_not_in_experiment"):
        experiments.promote("trial", "3")


def test_a_full_disk_changes_nothing_and_what_was_seen_waits(state, experiments):
    experiments.begin("trial", SPLIT)
    (pages,) = state.read("PRAGMA page_count")[0]
    state.write(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError, match="full"):
        while True:
            state.write("INSERT INTO audit VALUES (NULL, 0, '', '', '', '', ?, '')", ("x" * 500,))
    wide = SPLIT.model_copy(update={"weights": dict.fromkeys("12", 1.0), "shadow_share": 0.123456789})
    with pytest.raises(StateError, match="full"):
        for number in range(2_000):
            experiments.begin("trial", wide.model_copy(update={"shadow": "3", "shadow_share": 1 / (number + 1)}))
            state.write("INSERT INTO audit VALUES (NULL, 0, '', '', '', '', ?, '')", ("x" * 50,))
    plan = experiments.get("trial").plan
    assert shares(experiments) == collections.Counter(choose("trial", plan, user) for user in USERS)
    for user in USERS[:3_000]:
        experiments.answered(experiments.route("sentiment", user=user), latency_ms=5, compute_ms=3, texts=1)
    assert sum(version.requests for version in experiments.report("trial").versions) == 3_000
    state.write("PRAGMA max_page_count = 100000")
    experiments.close()
    assert state.read("SELECT count(*) FROM observations")[0][0] == 3_000


def test_a_report_says_what_differs_and_what_does_not(experiments):
    random = np.random.default_rng(0)
    experiments.begin("trial", SPLIT.model_copy(update={"weights": {"3": 1, "2": 1}, "shadow": "1"}))
    slower = {"2": 1.5, "3": 1.0}
    for user in USERS[:600]:
        route = experiments.route("sentiment", user=user)
        ms = slower[route.version] * random.lognormal(1, 0.2)
        experiments.answered(route, latency_ms=ms + 1, compute_ms=ms, texts=1, failed=False)
        sent = np.array([[0.0, 1.0]], dtype=np.float32)
        copy = sent if random.random() < 0.9 else -sent
        experiments.shadowed(route, sent, copy, compute_ms=4)
    experiments.shadowed(route, sent, None, compute_ms=0)
    report = experiments.report("trial")
    report.model_dump_json()
    by_version = {version.version: version for version in report.versions}
    assert by_version["1"].latency_ms is None
    assert (by_version["1"].requests, by_version["1"].failed) == (601, 1)
    agreement = by_version["1"].agreement
    low, value, high = agreement.low, agreement.value, agreement.high
    assert low < 0.9 < high
    assert low < value < high
    verdict = {(v.version, v.measure): v for v in report.verdicts}
    assert verdict["2", "latency"].significant
    assert verdict["2", "latency"].sentence.startswith("version 3 is faster than version 2: ")
    assert not verdict["2", "failures"].significant
    assert ("1", "latency") not in verdict


def test_embeddings_agree_by_cosine(experiments):
    experiments.begin("spaces", SHADOW)
    route = experiments.route("embedding", user="a")
    sent = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    experiments.shadowed(route, sent, np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32), compute_ms=1)
    (shadow,) = experiments.report("spaces").versions
    assert shadow.agreement.value == pytest.approx((1 + 2**-0.5) / 2, abs=1e-6)
    assert shadow.agreement.low is None


def test_a_new_begin_forgets_what_the_old_one_saw_and_a_change_of_plan_does_not(experiments):
    experiments.begin("trial", SPLIT)
    experiments.answered(experiments.route("sentiment", user="a"), latency_ms=5, compute_ms=3, texts=1)
    experiments.begin("trial", SPLIT.model_copy(update={"weights": {"1": 1, "2": 3}}))
    assert experiments.report("trial").versions
    experiments.roll_back("trial")
    assert experiments.report("trial").versions
    experiments.begin("trial", SPLIT)
    assert not experiments.report("trial").versions
