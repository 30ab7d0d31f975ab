"""The web UI without a browser: its callbacks against a gateway that answers from a script, and what it shows of it."""

import json
import math

import httpx
import pytest

from accel_lib.errors import AccelError
from accel_lib.show.dashboard import html as page
from accel_lib.show.dashboard.api import Api, parse_metrics
from accel_lib.show.dashboard.app import TABS, Dashboard, _weights
from accel_lib.show.dashboard.chat import Conversation
from accel_lib.show.dashboard.live import Batches, Live, quantile
from accel_lib.show.dashboard.server import secret
from accel_lib.show.dashboard.simulator import predicted_sizes
from accel_lib.show.dashboard.streams import Streams

STATUS = {
    "ready": True,
    "roles": ["viewer", "operator"],
    "gpus": [],
    "components": [{"name": "triton", "ok": False, "detail": "started again 2 times"}],
    "last_errors": [],
    "doctor": [{"what": "GPU", "seen": "<none>", "state": "warn", "fix": "a T4"}],
}
MODELS = {"data": [{"id": "embedding", "live_version": "2", "versions": [{"version": "2", "state": "READY"}]}]}
BATCHING = {"dynamic_batching": {"max_queue_delay_us": 2000}, "instance_group": {"count": 1}}
STATISTICS = {
    "requests": 7,
    "inferences": 7,
    "batch_sizes": {"1": 3, "4": 1},
    "batch_ms": {"1": 5.0, "4": 8.0},
    "mean_batch_size": 1.75,
    "executions": 4,
    "queue_ms": 2.0,
    "compute_infer_ms": 9.0,
}
GPUS = [
    {"uuid": f"GPU-{name}", "utilization": share, "memory_used_bytes": 2**31, "memory_total_bytes": 2**36}
    for name, share in (("1c2d", 0.0), ("9b6f", 0.96))
]
VECTORS = {"data": [{"embedding": vector} for vector in ([1.0, 0.0], [0.0, 1.0], [0.8, 0.6])]}


def metrics(requests, slow=0):
    return f"""# HELP accel_requests_total Answers.
accel_requests_total{{endpoint="/v1/embeddings",model="embedding",code="200"}} {requests}
accel_request_duration_seconds_bucket{{model="embedding",le="0.1"}} {requests - slow}
accel_request_duration_seconds_bucket{{model="embedding",le="0.5"}} {requests}
accel_request_duration_seconds_bucket{{model="embedding",le="+Inf"}} {requests}
process_resident_memory_bytes 1e+08
"""


class Gateway:
    """Answers by path; a test may put an error in."""

    def __init__(self):
        self.asked, self.requests = [], 100
        self.answers = {
            "/v1/status": STATUS,
            "/v1/models": MODELS,
            "/v1/models/embedding/statistics": STATISTICS,
            "/v1/models/embedding/batching": BATCHING,
            "/v1/embeddings": VECTORS,
        }

    def __call__(self, request):
        self.asked.append((request.method, request.url.path, request.content))
        if request.url.path == "/metrics":
            self.requests += 10
            return httpx.Response(200, text=metrics(self.requests))
        answer = self.answers[request.url.path]
        if isinstance(answer, int):
            return httpx.Response(answer, json={"message": "an operator's key is needed"})
        return httpx.Response(200, json=answer, headers={"x-total-time": "12.5", "x-queue-time": "2.5"})


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
def dashboard(gateway):
    api = Api("http://gateway", "key")
    api._client = httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(gateway))
    return Dashboard(api)


def shown(dashboard, area):
    return dashboard.areas[area].value


def test_before_the_first_answer_it_says_that_it_waits(dashboard):
    assert "Press Ask" in shown(dashboard, "try it")
    assert 'role="status"' in shown(dashboard, "health")


def test_the_nearest_sentence_comes_first_with_the_time_of_each_stage(dashboard):
    dashboard.corpus.value = "far away\nnear by"
    dashboard.ask()
    text = shown(dashboard, "try it")
    assert text.index("near by") < text.index("far away")
    assert "queue 2.5 ms" in text
    assert "rest 10 ms" in text


def test_the_sentence_that_answers_best_comes_first_by_the_rerankers_score(dashboard, gateway):
    results = [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.125}]
    gateway.answers["/v1/rerank"] = {"results": results}
    dashboard.corpus.value = "far away\nnear by"
    dashboard.task.value = "sentences that answer"
    dashboard.ask()
    text = shown(dashboard, "try it")
    assert text.index("near by") < text.index("75") < text.index("far away")
    assert "queue 2.5 ms" in text
    dashboard.query.value = " "
    dashboard.ask()
    assert "Write a text" in shown(dashboard, "try it")


def test_a_refusal_is_shown_with_the_gateways_words_and_the_fix(dashboard, gateway):
    gateway.answers["/v1/embeddings"] = 403
    dashboard.ask()
    assert 'role="alert"' in shown(dashboard, "try it")
    assert "accel keys create" in shown(dashboard, "try it")


def chunk(tokens, text):
    usage = {"completion_tokens": tokens}
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}], "usage": usage}).encode() + b"\n\n"


def told(events):
    """A chat whose gateway streams these events, and everything that it showed."""
    shown = []
    answers = httpx.MockTransport(lambda _: httpx.Response(200, content=events))
    api = Api("http://gateway", "key")
    api._client = httpx.Client(base_url="http://gateway", transport=answers)
    return Conversation(api, shown.append), shown


def test_a_chat_shows_the_answer_with_its_times_and_remembers_it():
    chat, shown = told(iter([chunk(1, "Paris "), chunk(2, "<b>"), b"data: [DONE]\n\n"]))
    chat.send(" Where? ")
    chat.wait()
    assert chat.messages == [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Paris <b>"}]
    assert "Paris &lt;b&gt;" in shown[-1]
    assert "To the first token" in shown[-1]
    chat.forget()
    assert not chat.messages


def test_an_error_inside_a_chat_s_stream_is_shown_below_what_came():
    error = b'data: {"error": {"code": "engine_failed"}, "message": "The engine failed."}\n\n'
    chat, shown = told(iter([chunk(1, "Par"), error]))
    chat.send("Where?")
    chat.wait()
    assert "Par" in shown[-1]
    assert "The engine failed." in shown[-1]


def test_stop_ends_a_chat_s_stream():
    read = []

    def endless():
        for number in range(10**6):
            read.append(number)
            yield chunk(number, "w ")

    chat, _ = told(endless())
    chat._show = lambda _: chat.stop() if len(read) > 5 else None
    chat.send("Where?")
    chat.wait()
    assert len(read) < 10**6


def test_a_gateway_that_is_gone_is_an_error_on_the_open_tab_and_not_a_crash():
    gone = Dashboard(Api("http://127.0.0.1:9", "key", timeout_s=1))
    gone.open("Health")
    assert "does not answer" in shown(gone, "health")


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_opens(dashboard, tab):
    dashboard.open(tab)
    dashboard.refresh()
    dashboard.refresh()
    assert 'role="alert"' not in "".join(area.value for area in dashboard.areas.values())


def test_markup_in_an_answer_is_text(dashboard, gateway):
    gateway.answers["/v1/status"] = {**STATUS, "last_errors": [{"at": 0, "what": "<script>x</script>"}]}
    dashboard.open("Health")
    assert "<script>" not in shown(dashboard, "health")
    assert "&lt;none&gt;" in shown(dashboard, "health")


def test_a_column_that_no_row_fills_takes_no_room():
    shown = page.table(("what", "seen", "what to do"), [("CPU", 0, ""), ("GPU", "none", "")])
    assert "what to do" not in shown
    assert "what to do" in page.table(("what", "what to do"), [("CPU", ""), ("GPU", "attach one")])
    assert shown.count("<td") == 4


def test_what_has_not_changed_is_not_sent_again(dashboard):
    dashboard.open("Health")
    sent = []
    dashboard.areas["health"].observe(lambda change: sent.append(change), "value")
    for _ in range(12):
        dashboard.refresh()
    assert not sent


def test_a_setting_is_applied_to_the_chosen_model(dashboard, gateway):
    dashboard.open("Batching")
    dashboard.delay_us.value = 2000
    dashboard.apply()
    method, path, body = next(each for each in gateway.asked if each[0] == "PUT")
    assert (method, path) == ("PUT", "/v1/models/embedding/batching")
    assert b'"max_queue_delay_us":2000' in body.replace(b" ", b"")
    assert "queue delay 2,000" in shown(dashboard, "batching action")


def test_the_fields_of_a_setting_begin_with_what_holds_now(dashboard, gateway):
    gateway.answers["/v1/models/embedding/batching"] = {**BATCHING, "instance_group": {"count": 3}}
    dashboard.open("Batching")
    assert (dashboard.delay_us.value, dashboard.instances.value) == (2000, 3)


def test_a_key_that_may_only_look_is_offered_no_action_and_told_why(dashboard, gateway):
    gateway.answers["/v1/status"] = {**STATUS, "roles": ["viewer"]}
    for tab in ("Models", "Batching"):
        dashboard.open(tab)
    assert all(control.disabled for control in dashboard._operators)
    assert all("--role operator" in note.value for note in dashboard._notes)
    assert not [each for each in gateway.asked if each[0] != "GET"]


def test_each_gpu_has_a_line_and_without_one_there_is_no_panel(dashboard, gateway):
    dashboard.open("Performance")
    dashboard.refresh()
    assert "GPU" not in shown(dashboard, "performance")
    gateway.answers["/v1/status"] = {**STATUS, "gpus": GPUS}
    dashboard.open("Performance")
    dashboard.refresh()
    text = shown(dashboard, "performance")
    assert 'aria-label="GPU utilisation, %: GPU-1c2d 0, GPU-9b6f 96"' in text
    assert 'aria-label="GPU memory, GiB of 64: GPU-1c2d 2.0, GPU-9b6f 2.0"' in text


def test_shares_that_cannot_be_read_are_refused():
    assert _weights("1: 90, 2: 10") == {"1": 90.0, "2": 10.0}
    with pytest.raises(AccelError, match="1: 90"):
        _weights("half and half")


def test_rates_come_from_two_looks_and_begin_anew_after_a_restart():
    live = Live()
    live.look(0.0, parse_metrics(metrics(100)))
    live.look(2.0, parse_metrics(metrics(120)))
    assert live.points[-1].requests_per_s == 10
    live.look(3.0, parse_metrics(metrics(5)))
    live.look(4.0, parse_metrics(metrics(8)))
    assert live.points[-1].requests_per_s == 3


def test_a_percentile_is_that_of_the_time_between_two_looks():
    before, after = parse_metrics(metrics(100)), parse_metrics(metrics(200, slow=50))
    assert quantile(0.5, before, after, "accel_request_duration_seconds") == pytest.approx(0.1)
    assert quantile(0.95, before, after, "accel_request_duration_seconds") == pytest.approx(0.46)
    assert math.isnan(quantile(0.5, after, after, "accel_request_duration_seconds"))


def counted(requests, sizes, *, rows=1):
    inferences = sum(int(size) * count for size, count in sizes.items())
    assert inferences == rows * requests
    return {**STATISTICS, "requests": requests, "inferences": inferences, "executions": sum(sizes.values()),
            "batch_sizes": sizes}  # fmt: skip


def test_batch_sizes_are_those_between_the_looks_and_begin_anew_after_a_reload():
    seen = Batches("embedding")
    seen.look(0.0, counted(3, {"1": 3}))
    assert (seen.sizes, seen.requests_per_s) == ({1: 3}, 0.0)
    seen.look(2.0, counted(11, {"1": 3, "4": 2}))
    assert (seen.sizes, seen.requests_per_s, seen.rows_per_request) == ({4: 2}, 4.0, 1.0)
    seen.look(3.0, counted(2, {"2": 1}))
    assert (seen.sizes, seen.requests_per_s) == ({2: 1}, 0.0)


def test_a_longer_queue_delay_makes_larger_batches_in_the_simulator():
    setting = {"rate": 100.0, "rows": 1.0, "executions": {1: 10}, "batch_ms": {1: 5.0}, "instance_count": 1}
    short = predicted_sizes(**setting, max_queue_delay_us=0)
    long = predicted_sizes(**setting, max_queue_delay_us=50_000)
    assert sum(short.values()) == pytest.approx(1)
    assert sum(k * v for k, v in long.items()) > sum(k * v for k, v in short.items())


def test_requests_of_several_texts_make_batches_of_whole_requests_in_the_simulator():
    setting = {"executions": {3: 10}, "batch_ms": {3: 5.0}, "instance_count": 1, "max_queue_delay_us": 5_000}
    assert all(size % 3 == 0 for size in predicted_sizes(100.0, 3.0, **setting))


def test_charts_say_in_words_what_they_draw():
    chart = page.lines("Latency", "ms", {"p50": [1.0, math.nan, 3.0], "p95": []}, 120)
    assert 'aria-label="Latency, ms: p50 3.0, p95 –"' in chart
    assert "No batch yet" in page.bars("Batch sizes", "share", {})


def test_secrets_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_UI_KEY", "plain")
    assert secret("ACCEL_UI_KEY") == "plain"
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("ACCEL_UI_KEY_FILE", str(tmp_path / "key"))
    assert secret("ACCEL_UI_KEY") == "from a file"
    monkeypatch.setenv("ACCEL_UI_KEY_FILE", str(tmp_path / "nothing"))
    with pytest.raises(AccelError, match="cannot be read"):
        secret("ACCEL_UI_KEY")


class Chats:
    """The counters of a model that generates, moved on second by second: a step takes 20 ms and 5 more each row."""

    def __init__(self):
        self.waited_s = self.tokens = self.ended = self.prompts = 0.0

    def run(self, rows, seconds=1.0):
        step_s = (20 + 5 * rows) / 1e3
        self.waited_s += rows * seconds
        self.tokens += rows * seconds / step_s
        self.ended += rows * seconds / step_s / 40
        self.prompts += rows * seconds / step_s / 40 * 30
        return parse_metrics(self.text())

    def text(self):
        label = 'model_name="generation"'
        return f"""# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{{{label},le="+Inf"}} {self.tokens}
vllm:inter_token_latency_seconds_sum{{{label}}} {self.waited_s}
vllm:inter_token_latency_seconds_count{{{label}}} {self.tokens}
vllm:time_to_first_token_seconds_count{{{label}}} {self.ended}
vllm:e2e_request_latency_seconds_count{{{label}}} {self.ended}
vllm:prompt_tokens_total{{{label}}} {self.prompts}
vllm:generation_tokens_total{{{label}}} {self.tokens}
"""


def test_a_model_that_generates_is_predicted_once_its_load_has_varied():
    chats, seen = Chats(), Streams("generation")
    for second in range(4):
        seen.look(second, chats.run(rows=2))
    assert seen.seen
    assert (seen.prompt_tokens, seen.output_tokens) == (30, 40)
    assert seen.predict(rows=8, cache_tokens=16_384) is None  # two rows say nothing about eight
    for second in range(4, 10):
        seen.look(second, chats.run(rows=second))
    few, many = (seen.predict(rows=rows, cache_tokens=16_384, times=3) for rows in (1, 16))
    assert many.output_tokens_per_s > few.output_tokens_per_s
    assert many.percentile("itl_ms", 50) > few.percentile("itl_ms", 50) > 20
    seen.look(11, Chats().run(rows=1))  # the gateway has started again
    assert not seen.seen


def test_the_batching_tab_of_a_model_that_generates_shows_its_tokens(dashboard, gateway, monkeypatch):
    chats = Chats()
    gateway.answers["/v1/models"] = {"data": [{"id": "generation", "versions": []}]}
    monkeypatch.setattr(Api, "metrics", lambda _: parse_metrics(chats.text()))
    dashboard.open("Batching")
    assert "Nothing was generated" in shown(dashboard, "batching")
    assert "/v1/models/generation/statistics" not in {path for _, path, _ in gateway.asked}
    for second in range(2):
        dashboard._streams.look(second, chats.run(rows=3))
    assert "not known until the load has varied" in dashboard._generation_html()
    dashboard._streams.look(2, chats.run(rows=9))
    assert "predicted" in dashboard._generation_html()
    assert "limit is" in dashboard._generation_html()
