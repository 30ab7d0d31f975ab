"""What is deployed, run here: Triton with the chart's own flags, a gateway attached to it, Prometheus over both."""

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from accel_lib.errors import ServerError
from accel_lib.service.gateway import serve_gateway
from accel_lib.triton.install import ensure_tritonserver
from accel_lib.triton.process import Ports, free_ports
from accel_lib.triton.remote import attach
from accel_lib.triton.repository import write_model
from tests.tiny import TABLE, tiny_artifact

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ECHO = Path(__file__).parent / "models" / "echo"
READY_S = 120
STEP_MS = 50
# Under a name that the rules count, as the one step, echo, is not.
ENSEMBLE = """
name: "sentiment"
platform: "ensemble"
max_batch_size: 8
input { name: "input_ids" data_type: TYPE_INT64 dims: -1 }
input { name: "attention_mask" data_type: TYPE_INT64 dims: -1 }
output { name: "echo" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling {
  step {
    model_name: "echo"
    model_version: -1
    input_map { key: "input_ids" value: "input_ids" }
    input_map { key: "attention_mask" value: "attention_mask" }
    output_map { key: "echo" value: "echo" }
  }
}
"""
pytestmark = pytest.mark.triton


def chart_container():
    objects = yaml.safe_load_all((DEPLOY / "k8s" / "triton.yaml").read_text())
    deployment = next(thing for thing in objects if thing["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "models"
    write_model(folder, "embedding", tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE))
    shutil.copytree(ECHO, folder / "echo", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "sentiment" / "1").mkdir(parents=True)
    (folder / "sentiment" / "config.pbtxt").write_text(ENSEMBLE)
    return folder


class Triton:
    """The wheel's tritonserver with the arguments of the chart, on free ports and another folder."""

    def __init__(self, repository, log):
        container, install = chart_container(), ensure_tritonserver()
        self.ports = free_ports(Ports())
        own = {"--model-repository": repository, "--http-port": self.ports.http, "--grpc-port": self.ports.grpc}
        own["--metrics-port"] = self.ports.metrics
        flags = [
            f"{name}={own.get(name, value)}" if value else name for name, _, value in map(split, container["args"])
        ]
        here = [f"--backend-directory={install.backends}", f"--cache-directory={install.caches}"]
        here += [f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")]
        prefix = f"--backend-config=python,shm-region-prefix-name=accel-deploy-{self.ports.grpc}-"
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            [install.binary, *flags, *here, prefix], env=install.environment(), stdout=self.log, stderr=self.log
        )
        until = time.monotonic() + READY_S
        while not self.answers(container["readinessProbe"]["httpGet"]["path"]):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def answers(self, path):
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports.http}{path}").status_code == 200
        except httpx.TransportError:
            return False

    def connected(self):
        """Whether a client of the HTTP service is there."""
        open_now = psutil.Process(self.process.pid).net_connections("tcp")
        return any(c.laddr.port == self.ports.http and c.status == psutil.CONN_ESTABLISHED for c in open_now)

    def counted(self):
        """Requests answered and microseconds in the queue, by ``"all"`` or ``"queue"`` and model."""
        text = httpx.get(f"http://127.0.0.1:{self.ports.metrics}/metrics").text
        names = {"nv_inference_request_success": "all", "nv_inference_queue_duration_us": "queue"}
        found = re.findall(rf'^({"|".join(names)}){{model="(\w+)",.*}} (\S+)$', text, re.MULTILINE)
        return Counter({(names[name], model): int(float(value)) for name, model, value in found})

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        self.log.close()


def split(argument):
    return argument.partition("=")


@pytest.fixture(scope="module")
def triton(repository, tmp_path_factory):
    running = Triton(repository, tmp_path_factory.mktemp("log") / "triton")
    yield running
    running.end()


@pytest.fixture(scope="module")
def gateway(triton, repository):
    server = attach("localhost", triton.ports, repository)
    with serve_gateway(server, models="embedding", metrics_port=0) as running:
        yield running


class TestAttached:
    def test_a_gateway_answers_from_a_triton_that_it_did_not_start(self, gateway):
        with gateway.client() as client:
            answer = client.post("/v1/embeddings", json={"model": "embedding", "input": "a cat"})
        assert answer.status_code == 200
        assert len(answer.json()["data"]) == 1

    def test_it_changes_nothing_there_and_says_what_to_do(self, gateway):
        server = gateway.services.supervisor.server
        for change in (server.load, server.unload):
            with pytest.raises(ServerError, match="helm upgrade"):
                change("embedding")

    def test_nobody_loads_code_into_the_chart_s_triton(self, triton):
        answer = httpx.post(f"http://127.0.0.1:{triton.ports.http}/v2/repository/models/embedding/load")
        assert answer.status_code >= 400
        assert "not allowed" in answer.text

    def test_the_gateway_s_end_leaves_it_running(self, triton, repository):
        server = attach("localhost", triton.ports, repository)
        with serve_gateway(server, models="embedding", metrics_port=0):
            pass
        assert triton.answers("/v2/health/ready")


class TestEnsemble:
    def test_its_requests_are_counted_once_by_the_rules_with_the_time_that_they_queue_at_its_steps(self, triton):
        before = triton.counted()
        body = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [-3 - STEP_MS]}]}
        body["inputs"].append({**body["inputs"][0], "name": "attention_mask", "data": [1]})
        address = f"http://127.0.0.1:{triton.ports.http}/v2/models/sentiment/infer"
        sent, until, counted = 0, time.monotonic() + READY_S, Counter()
        with httpx.Client(timeout=READY_S) as client, ThreadPoolExecutor(8) as pool:
            while counted["queue", "echo"] < 1_000 * STEP_MS:
                assert time.monotonic() < until, counted
                for answer in pool.map(lambda _: client.post(address, json=body), range(8)):
                    answer.raise_for_status()
                sent, counted = sent + 8, triton.counted() - before
        while min(counted["all", "sentiment"], counted["all", "echo"]) < sent:  # Triton counts just after an answer
            assert time.monotonic() < until, counted
            time.sleep(0.1)
            counted = triton.counted() - before
        rules = (DEPLOY / "prometheus" / "rules" / "recording.yml").read_text()
        (served,) = set(re.findall(r'model=~"(.*?)"', rules))
        assert [model for model in ("sentiment", "echo") if re.fullmatch(served, model)] == ["sentiment"]
        assert counted["all", "sentiment"] == counted["all", "echo"] == sent
        assert counted["queue", "sentiment"] < counted["queue", "echo"]
        assert "by (namespace, pod) (rate(nv_inference_queue_duration_us[1m]))" in rules  # of every model


class TestDrain:
    def test_a_sigterm_lets_what_is_under_way_be_answered(self, repository, tmp_path):
        running = Triton(repository, tmp_path / "log")
        wait_ms, answered = 3_000, []
        body = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [-3 - wait_ms]}]}
        body["inputs"].append({**body["inputs"][0], "name": "attention_mask", "data": [1]})

        def ask():
            address = f"http://127.0.0.1:{running.ports.http}/v2/models/echo/infer"
            answered.append(httpx.post(address, json=body, timeout=30).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        while not running.connected():
            time.sleep(0.05)
        time.sleep(0.5)  # for the request itself, which comes right after the connection
        running.process.send_signal(signal.SIGTERM)
        asking.join()
        running.end()
        assert answered == [200]
        assert running.process.returncode == 0


def dashboards():
    spec = importlib.util.spec_from_file_location("accel_dashboards", DEPLOY / "grafana" / "dashboards.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prometheus(triton, gateway, tmp_path_factory):
    """A real Prometheus with the deployed configuration and rules, quicker, over a gateway and a Triton under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(DEPLOY / "prometheus" / "rules", folder / "rules")
    for file in (folder / "rules").glob("*.yml"):
        file.write_text(re.sub(r"interval: \d+s", "interval: 1s", file.read_text()))
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    config = re.sub(r"_interval: \d+s", "_interval: 1s", config)
    config = config.replace("gateway:8001", gateway.url.removeprefix("http://"))
    config = config.replace("triton-server:8002", f"127.0.0.1:{triton.ports.metrics}")
    (folder / "prometheus.yml").write_text(config)
    port = free_ports(Ports()).http
    command = ["prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stderr=subprocess.DEVNULL
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)
    wait_until_listening(client)
    yield client
    process.terminate()
    process.wait(30)


def wait_until_listening(client):
    until = time.monotonic() + READY_S
    while True:
        try:
            client.get("/rules").raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < until
            time.sleep(0.1)


def load_for(seconds, gateway):
    """Requests of some clients, one of them wrong now and then."""
    until = time.monotonic() + seconds

    def ask(number):
        with gateway.client() as client:
            while time.monotonic() < until:
                texts = ["a cat on a mat " * (1 + number)] * (1 + number)
                client.post("/v1/embeddings", json={"model": "embedding", "input": texts})
                time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


def shown_wrong(prometheus, module):
    """Panels that show an error or, against what they say, nothing; and rules that are not well."""
    wrong = []
    for panel in module.panels():
        for query in panel.queries.values():
            plain = query.replace("$__rate_interval", "30s").replace("$model", ".*")
            answer = prometheus.get("/query", params={"query": plain}).json()
            if answer["status"] != "success" or not (answer["data"]["result"] or panel.may_be_empty):
                wrong.append((panel.title, answer))
    groups = prometheus.get("/rules").json()["data"]["groups"]
    return wrong + [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed: apt-get install prometheus")
def test_every_panel_shows_something_under_load_but_the_listed_ones(prometheus, gateway):
    module, until = dashboards(), time.monotonic() + 90
    load_for(6, gateway)
    while (wrong := shown_wrong(prometheus, module)) and time.monotonic() < until:  # scraped and evaluated each second
        load_for(1, gateway)
    assert wrong == []
    alerts = prometheus.get("/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []
