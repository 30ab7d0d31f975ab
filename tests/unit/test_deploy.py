"""What is under deploy/ agrees with itself and with the code; `make deploy-check` adds Helm, schemas and linters."""

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
CHART = DEPLOY / "helm" / "accel"


def load(path):
    """A script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


invariants = load(DEPLOY / "check" / "invariants.py")


def yaml_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def manifests():
    return invariants.objects_in(*sorted((DEPLOY / "k8s").glob("*.yaml")))


@pytest.fixture(scope="module")
def compose():
    return yaml_of(DEPLOY / "docker" / "compose.yml")


def part(manifests, kind, ending):
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(ending))


def container(manifests, ending):
    return part(manifests, "Deployment", ending)["spec"]["template"]["spec"]["containers"][0]


class TestMonitoring:
    def test_the_committed_dashboards_are_what_the_generator_writes(self):
        assert load(DEPLOY / "grafana" / "dashboards.py").differing() == []

    def test_every_panel_says_what_it_shows_and_in_which_unit(self):
        for panel in load(DEPLOY / "grafana" / "dashboards.py").panels():
            assert panel.what.endswith("."), panel.title
            assert panel.unit, panel.title

    def test_dashboards_and_alerts_use_recorded_series_that_are_recorded(self):
        rules = [rule for group in yaml_of(RULES / "recording.yml")["groups"] for rule in group["rules"]]
        recorded = {rule["record"] for rule in rules}
        texts = [file.read_text() for file in (*RULES.glob("*.yml"), *(DEPLOY / "grafana").rglob("*.json"))]
        assert set(re.findall(r"\baccel:[a-z_]+:\w+", " ".join(texts))) <= recorded

    def test_every_alert_is_tested_where_it_fires(self):
        alerts = {r["alert"] for group in yaml_of(RULES / "alerts.yml")["groups"] for r in group["rules"]}
        tests = yaml_of(DEPLOY / "prometheus" / "rules_test.yml")["tests"]
        cases = [case for test in tests for case in test.get("alert_rule_test", [])]
        assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts

    @pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed: apt-get install prometheus")
    def test_each_alert_fires_and_does_not_as_its_tests_say(self):
        command = ["promtool", "test", "rules", "rules_test.yml"]
        done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_chart_ships_the_very_rules(self):
        for file in RULES.glob("*.yml"):
            assert (CHART / "rules" / file.name).read_text() == file.read_text()

    def test_the_adapter_hands_over_the_metric_that_the_autoscaler_asks_for(self, manifests):
        rules = yaml_of(DEPLOY / "prometheus" / "adapter-values.yml")["rules"]["custom"]
        offered = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in rules}
        recorded = {r.get("record") for g in yaml_of(RULES / "recording.yml")["groups"] for r in g["rules"]}
        assert set(offered.values()) <= recorded
        (metric,) = part(manifests, "HorizontalPodAutoscaler", "triton")["spec"]["metrics"]
        assert offered[metric["pods"]["metric"]["name"]] == "accel:queue_seconds:by_pod"
        assert "{name: accel_waiting_requests}" in (CHART / "templates" / "triton.yaml").read_text()
        assert offered["accel_waiting_requests"] == "accel:waiting_requests:by_pod"


class TestImages:
    def test_triton_comes_from_a_base_whose_python_is_3_12(self):
        text = (DEPLOY / "docker" / "triton.Dockerfile").read_text()
        year, month = map(int, re.search(r"tritonserver:(\d+)\.(\d+)-", text).groups())
        assert (year, month) >= (24, 11)

    @pytest.mark.parametrize("name", ["gateway", "triton"])
    def test_an_image_ends_as_a_user_that_is_not_root(self, name):
        text = (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()
        assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"

    def test_the_gateways_image_has_what_gateway_and_ui_import_and_no_pytorch(self):
        text = (DEPLOY / "docker" / "gateway.Dockerfile").read_text()
        assert re.search(r'--editable "\.\[service,triton,ui\]"', text)
        left_out = ("torch", "transformers", "sentence_transformers", "sklearn", "onnx", "onnxruntime")
        code = f"import sys; sys.modules.update(dict.fromkeys({left_out!r})); " + "; ".join(
            f"import accel_lib.{name}"
            for name in (
                "cli",
                "service.__main__",
                "show.dashboard.server",
                "show.dashboard.app",
                "show.dashboard.simulator",
            )
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_every_image_of_compose_has_a_version(self, compose):
        tags = [service["image"].rpartition(":")[2] for service in compose["services"].values()]
        assert all(re.fullmatch(r"v?\d+\.\d+\.\d+", tag) for tag in tags)

    def test_every_secret_is_a_file_without_a_default(self, compose):
        assert all(re.fullmatch(r"\$\{ACCEL_SECRETS:\?.+\}/\w+", s["file"]) for s in compose["secrets"].values())
        used = {name for service in compose["services"].values() for name in service.get("secrets", [])}
        assert used == set(compose["secrets"])

    def test_every_service_is_unprivileged_and_reads_only(self, compose):
        for name, service in compose["services"].items():
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name

    def test_triton_gets_more_shared_memory_than_dockers_64_mb(self, compose):
        assert compose["services"]["triton-server"]["shm_size"] == "1gb"

    def test_nothing_but_gateway_ui_and_grafana_is_reachable_and_that_from_this_machine_only(self, compose):
        open_ports = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
        assert set(open_ports) == {"gateway", "ui", "grafana"}
        assert all(port.startswith("127.0.0.1:") for ports in open_ports.values() for port in ports)

    def test_compose_and_kubernetes_start_triton_the_same_way(self, compose, manifests):
        theirs = [a for a in container(manifests, "triton")["args"] if "timeout" not in a]
        ours = [a for a in compose["services"]["triton-server"]["command"][1:] if "timeout" not in a]
        assert ours == theirs


def test_a_gateway_with_an_identity_provider_makes_no_key_that_a_log_would_show():
    from accel_lib.service.__main__ import _welcome

    version = SimpleNamespace(name="embedding", version="1", manifest=SimpleNamespace(task="embedding"))
    services = SimpleNamespace(
        auth=SimpleNamespace(keys=SimpleNamespace(all=list)),
        catalog=SimpleNamespace(versions=[version]),
        settings=SimpleNamespace(host="0.0.0.0", jwt_public_key_file=Path("jwt.pem"), jwt_issuer="https://login"),
        supervisor=SimpleNamespace(server=SimpleNamespace(grpc_url="dns:///triton:8004")),
    )
    shown = _welcome(
        SimpleNamespace(state=SimpleNamespace(services=services)), "http://0.0.0.0:8000", "http://0.0.0.0:8001"
    )
    assert "tokens of https://login" in shown
    assert "accel_" not in shown


def test_every_variable_that_a_gateway_is_given_is_a_setting(manifests, compose):
    from accel_lib.service.settings import Settings

    image = (DEPLOY / "docker" / "gateway.Dockerfile").read_text()
    given = {entry["name"] for entry in container(manifests, "gateway")["env"]}
    given |= set(compose["services"]["gateway"]["environment"]) | set(re.findall(r"(ACCEL_\w+)=", image))
    known = {f"ACCEL_{name.upper()}" for name in Settings.model_fields} | {"ACCEL_HOME", "HOME"}
    assert given <= known


class TestChart:
    def test_the_default_values_follow_their_own_schema(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(yaml_of(CHART / "values.yaml"), schema)

    def test_the_versions_are_the_packages(self):
        import accel_lib

        chart = yaml_of(CHART / "Chart.yaml")
        assert chart["version"] == chart["appVersion"] == accel_lib.__version__

    def test_the_plain_manifests_are_those_of_this_chart(self):
        """That they are what Helm renders from it, `make deploy-check` finds out."""
        mark = f"# Of the chart with the fingerprint {load(DEPLOY / 'check' / 'check.py').fingerprint()}."
        for file in (DEPLOY / "k8s").glob("*.yaml"):
            assert mark in file.read_text(), "python deploy/check/check.py --write"

    def test_the_plain_manifests_break_no_rule(self, manifests):
        assert invariants.breaches(manifests) == []

    def test_shared_memory_is_on_top_of_the_memory_of_the_processes(self, manifests):
        values = yaml_of(CHART / "values.yaml")["triton"]
        gibibytes = sum(int(values[name].removesuffix("Gi")) for name in ("memory", "sharedMemory"))
        assert container(manifests, "triton")["resources"]["limits"]["memory"] == f"{gibibytes * 1024}Mi"


def _service_selects_another(objects):
    part(objects, "Service", "triton")["spec"]["selector"]["app.kubernetes.io/component"] = "other"


def _service_names_another_port(objects):
    part(objects, "Service", "gateway")["spec"]["ports"][0]["targetPort"] = "web"


def _triton_closes_grpc(objects):
    part(objects, "NetworkPolicy", "triton")["spec"]["ingress"][0]["ports"].pop()


def _gateway_may_not_ask_dns(objects):
    part(objects, "NetworkPolicy", "accel-gateway")["spec"]["egress"].pop()


def _triton_admits_all(objects):
    del part(objects, "NetworkPolicy", "triton")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]


def _grace_is_shorter_than_the_drain(objects):
    part(objects, "Deployment", "triton")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30


def _no_startup_probe(objects):
    del container(objects, "triton")["startupProbe"]


def _little_time_to_load(objects):
    container(objects, "triton")["startupProbe"]["failureThreshold"] = 10


def _memory_without_the_shared_part(objects):
    container(objects, "triton")["resources"]["limits"]["memory"] = "1Gi"


def _root(objects):
    part(objects, "Deployment", "gateway")["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


def _no_writable_tmp(objects):
    container(objects, "gateway")["volumeMounts"].pop(0)


def _a_claim_that_is_not_there(objects):
    objects.remove(part(objects, "PersistentVolumeClaim", "models"))


def _replicas_beside_an_autoscaler(objects):
    part(objects, "Deployment", "triton")["spec"]["replicas"] = 1


def _a_secret_in_the_manifests(objects):
    objects.append({"kind": "Secret", "metadata": {"name": "password"}})


def _a_claim_that_an_uninstall_takes_along(objects):
    del part(objects, "PersistentVolumeClaim", "models")["metadata"]["annotations"]["helm.sh/resource-policy"]


def _an_account_that_an_uninstall_leaves(objects):
    part(objects, "ServiceAccount", "gateway")["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}


MISTAKES = [thing for name, thing in list(globals().items()) if re.match(r"_[a-z]\w+$", name) and callable(thing)]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_a_mistake_in_the_manifests_is_noticed(manifests, mistake):
    changed = copy.deepcopy(manifests)
    mistake(changed)
    assert invariants.breaches(changed)
