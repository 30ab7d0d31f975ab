"""The side paths on a real Triton: response cache, rate limiter, and a model in halves."""

from __future__ import annotations

import numpy as np
import pytest

import accel_lib
from accel_lib.convert.partition import cut
from accel_lib.errors import ServerError
from accel_lib.load import (
    LAYOUTS,
    compare_layouts,
    compare_rate_limits,
    compare_response_cache,
    time_lookups,
    write_layouts,
)
from accel_lib.triton.rate_limiter import RATE_LIMIT
from accel_lib.triton.repository import write_model
from accel_lib.triton.server import serve
from tests.tiny import TABLE, tiny_artifact, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(40)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("more")
    artifact = tiny_artifact(folder / "artifact", TABLE)
    for name in ("quick", "busy"):
        write_model(folder / "model_repository", name, artifact)
    with serve(folder / "model_repository", flags=[RATE_LIMIT]) as running:
        yield running


def test_the_cache_answers_what_repeats_and_nothing_else(server):
    served = server.model("quick")
    own = served.config
    # The tiny model's words are w0 to w199: what `zipf_traffic` puts before a text is one and the same unknown word.
    gain = compare_response_cache(served, {"words": TEXTS[:1]}, kinds=(20,), seconds=0.6, repeats=1)
    rows = gain.frame.set_index("setting")
    assert rows.loc["no cache", "hits"] == 0
    assert rows.loc["cache", "hits"] > 0.5
    assert gain.stopped == ""
    assert served.config == own
    assert "hits" in gain.explanation


def test_a_hit_needs_a_cache(server):
    with pytest.raises(ServerError, match="does not respond"):
        time_lookups(server.model("quick"), {"words": TEXTS}, pairs=4)
    server.model("quick").configure(response_cache=True)
    found = time_lookups(server.model("quick"), {"words": TEXTS}, pairs=4)
    assert found.frame["name"].tolist() == ["miss", "hit"]
    server.model("quick").configure(response_cache=False)


def test_a_shared_resource_is_applied_measured_and_taken_back(server):
    quick, busy = server.model("quick"), server.model("busy")
    own = quick.config, busy.config
    turn = {"resources": {"machine": 1}}
    result = compare_rate_limits(
        quick, busy, TEXTS, TEXTS, {"no limiter": ({}, {}), "in turn": (turn, turn)}, seconds=0.6, repeats=1
    )
    assert result.frame["setting"].tolist() == ["no limiter", "in turn", "alone"]
    assert result.stopped == ""
    assert (quick.config, busy.config) == own


def test_an_ensemble_of_halves_answers_as_the_whole_does(tiny_model):
    whole = accel_lib.to_onnx(tiny_model, progress=False).record_validation({"passed": True})
    repository = write_layouts(whole, cut(whole))
    texts = list(accel_lib.load_texts("mixed", limit=24))
    with serve(repository, models=list(LAYOUTS.values())) as running:
        vectors = {name: running.model(name, version=1).encode(texts) for name in LAYOUTS.values()}
        result = compare_layouts(running, {"documents": texts}, seconds=0.6, repeats=1)
    for answer in vectors.values():
        np.testing.assert_allclose(answer, vectors["one"], atol=1e-4)
    assert set(result.frame["setting"]) == set(LAYOUTS)
    assert result.frame["text_ms"].gt(0).all()
    assert result.stopped == ""
    assert result.headline.startswith("Against two instances: two halves ")
