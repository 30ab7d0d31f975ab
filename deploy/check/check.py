"""``make deploy-check``: everything under deploy/ that can be checked without a cluster, one table, the verdict last.

    python deploy/check/check.py [--write]

``--write`` renders deploy/k8s/, the chart's copy of the rules and the dashboards again. Tools are installed once, into
build/deploy-check/. A check whose tool this machine cannot have says "skipped" and why; it counts as not passed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import filecmp
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
DEPLOY = HERE.parent
ROOT = DEPLOY.parent
WORK = ROOT / "build" / "deploy-check"
RENDERED = WORK / "rendered"
KUBERNETES = ("1.34", "1.35", "1.36", "1.37")
_IMAGE_PYTHON = (3, 12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table."""

    check: str
    state: str  # "ok", "failed" or "skipped"
    found: str
    seconds: float


class SkippedError(Exception):
    """A check that this machine cannot run; says why."""


class FailedError(Exception):
    """What a check found."""


def prometheus() -> str:
    """Rules, scrape configuration and alert routes, and every alert firing and not firing."""
    folder = DEPLOY / "prometheus"
    _run("promtool", "check", "config", "prometheus.yml", cwd=folder)
    tested = yaml_tests(folder / "rules_test.yml")
    _run("promtool", "test", "rules", "rules_test.yml", cwd=folder)
    routes = "routes checked" if shutil.which("amtool") else "routes not checked: no amtool"
    if shutil.which("amtool"):
        _run("amtool", "check-config", "alertmanager.yml", cwd=folder)
        for severity, receiver in (("page", "pages"), ("ticket", "tickets")):
            route = ("config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}")
            _run("amtool", *route, f"--verify.receivers={receiver}", cwd=folder)
    return f"{tested} rule tests pass; {routes}"


def yaml_tests(file: Path) -> int:
    """How many tests a rule test file holds."""
    return len(re.findall(r"^  - name:", file.read_text(encoding="utf-8"), re.MULTILINE))


def grafana() -> str:
    """The committed dashboards are what the generator writes."""
    return _run(sys.executable, str(DEPLOY / "grafana" / "dashboards.py"), "--check")


def yaml_style() -> str:
    """yamllint over every YAML file that is no template."""
    files = [
        str(f) for f in sorted(DEPLOY.rglob("*.yml")) + sorted(DEPLOY.rglob("*.yaml")) if "templates" not in f.parts
    ]
    _tool("yamllint", "--strict", "--config-file", str(HERE / "yamllint.yml"), *files)
    return f"{len(files)} files"


def dockerfiles() -> str:
    """hadolint and checkov over the Dockerfiles."""
    files = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
    _tool("hadolint", *map(str, files))
    return f"{len(files)} Dockerfiles; {_checkov('dockerfile', DEPLOY / 'docker')}"


def compose() -> str:
    """The compose files follow the compose specification."""
    files = sorted((DEPLOY / "docker").glob("compose*.yml"))
    _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files))
    return f"{len(files)} files follow the specification"


def chart() -> str:
    """Helm renders every shape of the chart, each time alike, and refuses nonsense."""
    shutil.rmtree(RENDERED, ignore_errors=True)
    found = json.loads(_python(str(HERE / "chart.py"), str(DEPLOY / "helm" / "accel"), str(RENDERED)))
    wrong = found["lint"] + [f"not rendered alike twice: {name}" for name in found["unlike"]]
    wrong += [f"not refused as it should be: {name}" for name, refused in found["refused"].items() if not refused]
    if wrong:
        raise FailedError("\n".join(wrong))
    return f"{len(found['rendered'])} shapes rendered, {len(found['refused'])} bad values refused"


def schemas() -> str:
    """Every rendered object against the schemas of four versions of Kubernetes, unknown fields refused."""
    checked = 0
    for version in KUBERNETES:
        said = _tool("kubernetes-validate", "--strict", "-k", version, *_rendered())
        warned = [line for line in said.splitlines() if line.startswith("WARN") and "monitoring.coreos.com" not in line]
        if warned:
            raise FailedError("\n".join(warned))
        checked += said.count(" passed for ")
    return f"{checked} objects valid, Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}"


def invariants() -> str:
    """The rules of invariants.py on every shape."""
    files = _rendered()
    _python(str(HERE / "invariants.py"), *files)
    rules = (HERE / "invariants.py").read_text(encoding="utf-8").count("Iterator[str]:")
    return f"{rules} rules hold in {len(files)} shapes"


def security() -> str:
    """checkov's Kubernetes policies on every shape."""
    _rendered()
    return _checkov("kubernetes", RENDERED)


def manifests() -> str:
    """deploy/k8s/ is what the chart renders; the chart's rules are those of deploy/prometheus/."""
    differing = [name for name, text in wanted_manifests().items() if _text(DEPLOY / "k8s" / name) != text]
    differing += [f.name for f in (DEPLOY / "k8s").glob("*.yaml") if f.name not in wanted_manifests()]
    differing += [
        f.name for f in _rules() if not filecmp.cmp(f, DEPLOY / "helm" / "accel" / "rules" / f.name, shallow=False)
    ]
    if differing:
        raise FailedError(f"differ: {', '.join(differing)}; python deploy/check/check.py --write")
    return f"{len(wanted_manifests())} manifests as the chart renders them"


def smoke() -> str:
    """The model repository served and asked by Python 3.12 with the image's pinned dependencies."""
    repository = ROOT / "model_repository"
    if not any(repository.glob("*/*/artifact/manifest.json")):
        raise SkippedError("no model is built: accel build embedding")
    folder, pins = WORK / "python312", DEPLOY / "docker" / "constraints.txt"
    python, stamp = str(folder / "bin" / "python"), folder / "installed.txt"
    wanted = ["--constraint", str(pins), "--editable", f"{ROOT}[triton]", "onnxruntime", "openvino"]
    installed = " ".join(wanted) + "\n" + _text(pins)
    if _text(stamp) != installed:
        shutil.rmtree(folder, ignore_errors=True)
        _run(_python_of_the_images(), "-m", "venv", str(folder))
        _run(python, "-m", "pip", "install", "--quiet", *wanted)
        stamp.write_text(installed, encoding="utf-8")
    return _run(python, str(HERE / "smoke.py"), str(repository)).strip().splitlines()[-1]


CHECKS: dict[str, Callable[[], str]] = {
    "Prometheus": prometheus,
    "Grafana": grafana,
    "YAML": yaml_style,
    "Docker": dockerfiles,
    "Compose": compose,
    "Helm": chart,
    "Kubernetes schemas": schemas,
    "Invariants": invariants,
    "checkov": security,
    "Plain manifests": manifests,
    "Python 3.12": smoke,
}


def wanted_manifests() -> dict[str, str]:
    """File name -> text of deploy/k8s/: the default shape, one file a template, without what needs extra CRDs."""
    _rendered()
    parts: dict[str, list[str]] = {}
    for document in (RENDERED / "without-crds.yaml").read_text(encoding="utf-8").split("\n---\n"):
        found = re.search(r"^# Source: accel/templates/(\S+)$", document, re.MULTILINE)
        if found:
            parts.setdefault(found[1], []).append(
                re.sub(r"^---\n|^# Source: .*\n", "", document, flags=re.MULTILINE).strip()
            )
    head = "# Written by `python deploy/check/check.py --write` from the chart's default values; change those.\n"
    head += f"# Of the chart with the fingerprint {fingerprint()}.\n"
    whole = {name: head + "".join(f"---\n{text}\n" for text in texts) for name, texts in sorted(parts.items())}
    return {name: re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE) for name, text in whole.items()}


def fingerprint() -> str:
    """Of everything that the plain manifests come from, so that a test without Helm sees when they are old."""
    chart = DEPLOY / "helm" / "accel"
    digest = hashlib.sha256()
    for file in [chart / "Chart.yaml", chart / "values.yaml", *sorted((chart / "templates").iterdir())]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def write() -> None:
    """Render again what is kept in the repository."""
    for file in _rules():
        shutil.copy(file, DEPLOY / "helm" / "accel" / "rules" / file.name)
    _run(sys.executable, str(DEPLOY / "grafana" / "dashboards.py"))
    chart()
    folder = DEPLOY / "k8s"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in wanted_manifests().items():
        (folder / name).write_text(text, encoding="utf-8")


def main(checks: dict[str, Callable[[], str]]) -> int:
    """Run the checks one after the other; 0 if all passed."""
    findings = []
    for name, check in checks.items():
        started, state = time.monotonic(), "ok"
        try:
            found = check()
        except SkippedError as why:
            state, found = "skipped", str(why)
        except FailedError as what:
            state, found = "failed", str(what)
        findings.append(Finding(check=name, state=state, found=found.strip(), seconds=time.monotonic() - started))
        print(f"{state:8} {name}", flush=True)
    print("\n".join(["", *_table(findings), "", _verdict(findings)]))
    return 0 if all(finding.state == "ok" for finding in findings) else 1


def _table(findings: list[Finding]) -> Iterator[str]:
    yield "| check | verdict | what it found | seconds |"
    yield "|---|---|---|---|"
    for each in findings:
        yield f"| {each.check} | {each.state} | {each.found.replace(chr(10), '<br>')[:600]} | {each.seconds:.0f} |"


def _verdict(findings: list[Finding]) -> str:
    bad = [f"{each.check} {each.state}" for each in findings if each.state != "ok"]
    return f"deploy-check: not passed ({', '.join(bad)})" if bad else f"deploy-check: all {len(findings)} checks passed"


def _checkov(framework: str, folder: Path) -> str:
    said = _tool(
        "checkov",
        "--framework",
        framework,
        "--directory",
        str(folder),
        "--config-file",
        str(HERE / "checkov.yml"),
        "--output",
        "json",
    )
    start = said.find("{")
    passed = json.JSONDecoder().raw_decode(said[start:])[0]["summary"]["passed"] if start >= 0 else 0
    return f"checkov: {passed} policies hold, {(HERE / 'checkov.yml').read_text().count('- CKV')} skipped with a reason"


def _rules() -> list[Path]:
    return sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))


def _rendered() -> list[str]:
    if not any(RENDERED.glob("*.yaml")):
        chart()
    return [str(file) for file in sorted(RENDERED.glob("*.yaml"))]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _tool(name: str, *arguments: str) -> str:
    return _run(str(_environment() / "bin" / name), *arguments)


def _python(*arguments: str) -> str:
    return _run(str(_environment() / "bin" / "python"), *arguments)


def _version(python: str) -> tuple[int, ...]:
    return tuple(map(int, _run(python, "-c", "import sys; print(*sys.version_info[:2])").split()))


def _environment() -> Path:
    """The virtual environment of the tools, made again when their list changes."""
    folder, wanted = WORK / "venv", (HERE / "requirements.txt").read_text(encoding="utf-8")
    stamp = folder / "requirements.txt"
    if _text(stamp) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--requirement",
            str(HERE / "requirements.txt"),
        )
        stamp.write_text(wanted, encoding="utf-8")
    return folder


def _python_of_the_images() -> str:
    """A Python of the version that the images have; raises `SkippedError` if there is none."""
    homes = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    name = f"python{'.'.join(map(str, _IMAGE_PYTHON))}"
    for candidate in (sys.executable, name, *sorted(map(str, homes.glob(f"versions/*/bin/{name}")))):
        path = shutil.which(candidate)
        with contextlib.suppress(FailedError):  # pyenv's shim of a version that is not chosen
            if path and _version(path) == _IMAGE_PYTHON:
                return path
    raise SkippedError(f"no {name} was found")


def _run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command; raises `FailedError` with what it said."""
    if not shutil.which(command[0]):
        raise SkippedError(
            f"{Path(command[0]).name} is not installed: apt-get install prometheus prometheus-alertmanager"
        )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, env=environment, check=False)
    if done.returncode:
        raise FailedError((done.stdout + done.stderr).strip() or f"exit {done.returncode}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="render again what is kept in the repository")
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(CHECKS)}")
    asked = parser.parse_args()
    if asked.write:
        write()
    else:
        sys.exit(main({name: CHECKS[name] for name in asked.names or CHECKS}))
