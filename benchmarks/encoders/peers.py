"""The peers: started in every way that may be their best, of which the fastest one stays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal
from urllib.error import URLError
from urllib.request import Request, urlopen

from accel_lib.load.cpu_time import cpu_seconds
from accel_lib.machine import cores
from benchmarks.encoders.environments import apart, python_of

HERE = Path(__file__).parent
START_S = 120
SETTLE_S = 30
IDLE_SHARE = 0.3  # of a core: what a service that waits for requests stays below, polling included
JSON = {"Content-Type": "application/json"}
LEAST_COSINE = 0.98  # of an answer to the reference: a service below it computes something else
SIZES = (8, 32)  # most texts of a batch, tried with each engine of infinity
CORES = cores()

Backends = Mapping[str, tuple[Path, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Something that answers one text a request."""

    name: str
    url: str
    payloads: Sequence[Any]
    protocol: Literal["grpc", "http"] = "http"
    group: int = 0  # its processes' group, where it has one of its own
    how: str = ""
    ours: bool = False
    engine: str = ""  # what it runs on, where that was measured in one process too

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Its processes run; outside they are stopped, as some of them poll even without requests."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.sleep()

    def sleep(self) -> None:
        """Stop its processes."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kill its processes."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to start a peer."""

    how: str
    command: Sequence[Any]
    folder: Path | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def peers(
    stack: contextlib.ExitStack,
    folder: Path,
    build: Path,
    texts: Sequence[str],
    *,
    backends: Backends,
    quick: bool,
    measured: Callable[[Service], dict[str, Any]],
) -> list[Service]:
    """Every peer that can be installed and started here and answers right, the way with the highest rate of each.

    `backends` are those of sentence-transformers that its services run on; `quick` tries one way for each.
    """
    services = []
    for name, path, field, ways in (
        ("infinity", "/embeddings", "input", infinity(build, folder, quick=quick)),
        *((f"FastAPI + {name}", "/embed", "text", fastapi(build, *one, quick=quick)) for name, one in backends.items()),
        *(
            (f"LitServe + {name}", "/predict", "text", litserve(build, *one, quick=quick))
            for name, one in backends.items()
        ),
    ):
        model = {"model": "m"} if name == "infinity" else {}
        payloads = [(path, JSON, json.dumps({field: text} | model).encode()) for text in texts]
        engine = name.partition(" + ")[2]
        best = fastest(started(stack, name, ways, payloads), measured)
        services += [dataclasses.replace(service, engine=engine) for service in best]
    return services


def fastest(services: Sequence[Service], measured: Callable[[Service], dict[str, Any]]) -> list[Service]:
    """The service with the highest rate of those that answer right, as a list of at most one; the others are ended."""
    running = []
    for service in services:
        with service.awake():
            row = measured(service)
        right = row["cosine"] > LEAST_COSINE
        said = f"{row['rate']:.0f}/s" if right else f"left out: a cosine of {row['cosine']:.2f} to the reference"
        print(f"{service.name}, {service.how}: {said}", flush=True)
        running += [(row["rate"], service)] if right else []
    best = max((rate for rate, _ in running), default=0.0)
    kept = [service for rate, service in running if rate == best][:1]
    for service in services:
        if service not in kept:
            service.end()
    return kept


def infinity(build: Path, folder: Path, *, quick: bool) -> Iterator[Way]:
    """infinity on PyTorch with BetterTransformer, and on ONNX Runtime."""
    exported, hub = optimized(folder, build)
    for peer, engine, place in (("infinity", "torch", folder), ("infinity-onnx", "optimum", exported)):
        python = python_of(peer, build) if place else None
        for size in SIZES[: 1 if quick else None] if python else ():
            command = [python.with_name("infinity_emb"), "v2", "--model-id", ".", "--served-model-name", "m"]
            command += ["--engine", engine, "--device", "cpu", "--no-compile", "--batch-size", size]
            command += ["--pooling-method", "mean", "--log-level", "error", "--port"]
            how = f"{engine}, batches of up to {size}"
            yield Way(how=how, command=command, folder=place, env={"HF_HUB_CACHE": str(hub)})


def optimized(folder: Path, build: Path) -> tuple[Path | None, Path]:
    """A copy of the model with an ONNX file, and the hub folder in which infinity finds that file optimized."""
    exported, hub = build / "infinity-exported", build / "hub"
    target = hub / "infinity_onnx" / "CPUExecutionProvider"
    if list(target.glob("*_optimized.onnx")):
        return exported, hub
    python = python_of("infinity-onnx", build)
    if python is None:
        return None, hub
    command = [python, HERE / "export_onnx.py", folder, exported, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=apart())
    if done.returncode:
        print(f"infinity goes without ONNX: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None, hub
    return exported, hub


def fastapi(build: Path, folder: Path, options: Mapping[str, Any], *, quick: bool) -> Iterator[Way]:
    """One process with all threads, and a process with one thread for each core."""
    python = python_of("sentence-transformers", build)
    if python is None:
        return
    for workers in (CORES,) if quick else (1, CORES):
        command = [python, "-m", "uvicorn", "--app-dir", HERE, "fastapi_service:app", "--workers", workers]
        command += ["--log-level", "error", "--port"]
        yield Way(how=counted(workers), command=command, env=model_env(folder, options, workers))


def litserve(build: Path, folder: Path, options: Mapping[str, Any], *, quick: bool) -> Iterator[Way]:
    """Batches of several sizes in one process, and in a process with one thread for each core."""
    python = python_of("sentence-transformers", build)
    if python is None:
        return
    for size, workers in ((8, CORES),) if quick else ((8, 1), (8, CORES), (32, 1)):
        command = [python, HERE / "litserve_service.py", size, workers]
        how = f"batches of up to {size}, {counted(workers)}"
        yield Way(how=how, command=command, env=model_env(folder, options, workers))


def model_env(folder: Path, options: Mapping[str, Any], workers: int) -> dict[str, str]:
    """What a service of sentence-transformers is told."""
    threads = {"MODEL_THREADS": str(max(1, CORES // workers))} if workers > 1 else {}
    return {"MODEL_FOLDER": str(folder), "MODEL_OPTIONS": json.dumps(options)} | threads


def counted(workers: int) -> str:
    return "1 process" if workers == 1 else f"{workers} processes"


def started(stack: contextlib.ExitStack, name: str, ways: Iterable[Way], payloads: Sequence[Any]) -> list[Service]:
    """Services that answer, each on a free port and asleep; a line says so where one does not start.

    They start side by side, as most of that is one thread's work.
    """
    launched = [_launched(stack, name, way, payloads) for way in ways]
    services = [service for service, process, log in launched if _answers(service, process, log)]
    for service in services:
        service.sleep()
    return services


def _launched(
    stack: contextlib.ExitStack, name: str, way: Way, payloads: Sequence[Any]
) -> tuple[Service, subprocess.Popen[bytes], IO[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = subprocess.Popen(
        [*map(str, way.command), str(port)],
        env=apart() | way.env,
        cwd=way.folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    service = Service(name=name, url=f"http://127.0.0.1:{port}", payloads=payloads, group=process.pid, how=way.how)
    stack.callback(process.wait)
    stack.callback(service.end)
    return service, process, log


def _wait_for_all_workers(pid: int) -> None:
    """The first worker to be ready answers; until the others are, they keep a core busy with loading."""
    until, interval_s = time.monotonic() + SETTLE_S, 0.5
    while time.monotonic() < until:
        before = sum(cpu_seconds(pid).values())
        time.sleep(interval_s)
        if sum(cpu_seconds(pid).values()) - before < IDLE_SHARE * interval_s:
            return


def _answers(service: Service, process: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    path, headers, body = service.payloads[0]
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with (
            contextlib.suppress(URLError, OSError),
            urlopen(Request(service.url + path, data=body, headers=headers), timeout=30),
        ):
            _wait_for_all_workers(process.pid)
            return True
        time.sleep(0.3)
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()
    print(f"{service.name}, {service.how}, is left out: it did not start. {said[-1] if said else ''}", flush=True)
    service.end()
    return False
