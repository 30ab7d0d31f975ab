"""Four ways of batching the same tiny language model in a real Triton: who runs beside whom, and the same tokens."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import tritonclient.grpc as grpc

import accel_lib
from accel_lib.convert.generation import generation_to_openvino
from accel_lib.errors import RequestError
from accel_lib.load import compare_modes
from accel_lib.models import load_model
from accel_lib.triton import BATCHING_MODES, write_batching_modes
from tests.generation import reference
from tests.tiny import end_at_once, llama_folder, tiny_prompts

pytestmark = pytest.mark.triton
ROWS = 3
LONG, SHORT = 2_000, 3  # tokens
LONGEST_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(llama_folder(tmp_path_factory.mktemp("llama"), max_position_embeddings=8_192))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    artifact = generation_to_openvino(model, output=tmp_path_factory.mktemp("artifact") / "openvino", progress=False)
    artifact = artifact.record_validation({"passed": True})
    with accel_lib.serve(write_batching_modes(artifact, rows=ROWS)) as running:
        yield running
        end_at_once(running)


@pytest.fixture(params=BATCHING_MODES)
def served(request, server):
    return server.model(request.param)


def options(max_tokens):
    return {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}


class Reader(threading.Thread):
    """A request of a thread of its own."""

    def __init__(self, served, prompt, max_tokens):
        super().__init__(daemon=True)
        self.served, self.prompt, self.max_tokens = served, prompt, max_tokens
        self.text = ""
        self.start()

    def run(self):
        self.text = self.served.generate(self.prompt, **options(self.max_tokens))

    def ended(self):
        self.join(LONGEST_S)
        assert not self.is_alive()
        return self


def answered(server, mode, requests):
    """Ids of responses in the order in which the model sent them; the second request follows on the first response."""
    order, began = [], threading.Event()

    def got(result, error):
        order.append(error or result.get_response().id)
        began.set()

    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(got)
        for name, tokens in requests.items():
            shape = [2] if mode in ("static", "continuous") else [1, 2]
            prompt = grpc.InferInput("input_ids", shape, "INT64").set_data_from_numpy(np.full(shape, 20))
            sampling = json.dumps(options(tokens))
            client.async_stream_infer(mode, [prompt], request_id=name, parameters={"sampling": sampling})
            assert mode == "dynamic" or began.wait(LONGEST_S)
        client.stop_stream()
    return order


def test_every_mode_gives_the_tokens_that_each_prompt_gets_alone(served, model):
    prompts = tiny_prompts(2 * ROWS, shortest=3, longest=12)
    texts = [model.decode(ids) for ids in prompts]
    readers = [Reader(served, text, 8) for text in texts]
    wanted = [model.decode(reference(model, model.encode(text), 8, eos_token_id=None)) for text in texts]
    assert [reader.ended().text.strip() for reader in readers] == [text.strip() for text in wanted]


@pytest.mark.parametrize("mode", ["continuous", "iterative"])
def test_a_short_request_joins_a_batch_that_runs(server, mode):
    order = answered(server, mode, {"long": LONG, "short": SHORT})
    assert order[-1] == "long"
    assert "short" in order


def test_a_short_request_waits_for_a_static_batch_to_end(server):
    order = answered(server, "static", {"long": LONG, "short": SHORT})
    assert set(order[order.index("short") :]) == {"short"}


def test_what_comes_while_a_dynamic_batch_runs_is_one_batch_and_each_answer_comes_whole(server):
    served = server.model("dynamic")
    before = served.wait_for_stable_statistics()
    order = answered(server, "dynamic", {"first": LONG, "second": LONG, "third": SHORT})
    assert sorted(order) == ["first", "second", "third"]
    assert max((served.wait_for_stable_statistics() - before).batch_sizes) >= 2


def test_triton_schedules_the_steps_of_iterative_sequences_together(server):
    served = server.model("iterative")
    before = served.wait_for_stable_statistics()
    for reader in [Reader(served, f"w{10 + row}", 200) for row in range(ROWS)]:
        reader.ended()
    counted = served.wait_for_stable_statistics() - before
    assert 2 <= max(counted.batch_sizes) <= ROWS  # the third reader may begin late on a busy machine


def test_the_same_requests_are_compared_in_every_mode(server):
    found = compare_modes(server, output_tokens=(2, 9), prompt_tokens=8, requests=7)
    assert tuple(found.frame["setting"]) == tuple(found.runs) == BATCHING_MODES
    lengths = {tuple(run.frame["output_tokens"]) for run in found.runs.values()}
    assert len(lengths) == 1
    assert min(lengths.pop()) < 9
    whole = found.frame.loc[found.frame["itl_p50_ms"].isna(), "setting"].tolist()
    assert "dynamic" in whole  # of an engine this fast, others may come whole too
    assert found.gain() == pytest.approx(found.frame["speedup"].iloc[-1])
    assert all(run.frame["first_token_s"].is_monotonic_increasing for run in found.by_first_token.values())


def test_a_cancelled_request_leaves_its_row_to_others(server):
    for mode in ("static", "iterative", "continuous"):
        served = server.model(mode)
        for _ in range(ROWS + 1):  # and no more: Triton 24.10 ends at one in ninety that are left where it batches
            stream = served.generate("w10 w11", stream=True, **options(8_000))
            next(stream)
            stream.close()
        assert Reader(served, "w20", SHORT).ended().text


def test_what_is_wrong_with_a_request_is_its_own_error(served):
    good = Reader(served, "w10", 300)
    with pytest.raises(RequestError, match="context"):
        served.generate("w10", **options(9_000))
    assert good.ended().text == served.generate("w10", **options(300))
