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

from benchmarks.encoders.environments import python_of

HERE = Path(__file__).parent
START_S = 120
JSON = {"Content-Type": "application/json"}
LEAST_COSINE = 0.98  # of an answer to the reference: a service below it computes something else
SIZES = (8, 32)  # most texts of a batch, tried with each engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Something that answers one text a request."""

    name: str
    url: str
    payloads: Sequence[Any]
    protocol: Literal["grpc", "http"] = "http"
    group: int = 0  # its processes' group, where it has one of its own
    how: str = ""

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Its processes run; outside they are stopped, as some of them poll even when nobody asks."""
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
    measured: Callable[[Service], dict[str, Any]],
) -> list[Service]:
    """Every peer that can be installed and started here and answers right, the way with the highest rate of each."""
    services = []
    exported, hub = export(folder, build)
    for name, path, field, ways in (
        ("infinity", "/embeddings", "input", infinity(build, folder, exported, hub)),
        ("FastAPI + sentence-transformers", "/embed", "text", plain("fastapi", build, folder, exported, ("",))),
        ("LitServe", "/predict", "text", plain("litserve", build, folder, exported, SIZES)),
    ):
        model = {"model": "m"} if name == "infinity" else {}
        payloads = [(path, JSON, json.dumps({field: text} | model).encode()) for text in texts]
        running = []
        for service in started(stack, name, ways, payloads):
            with service.awake():
                row = measured(service)
            right = row["cosine"] > LEAST_COSINE
            said = f"{row['rate']:.0f}/s" if right else f"left out: a cosine of {row['cosine']:.2f} to the reference"
            print(f"{name}, {service.how}: {said}", flush=True)
            running += [(row["rate"], service)] if right else []
        running.sort(key=lambda pair: -pair[0])
        for _, slower in running[1:]:
            slower.end()
        services += [service for _, service in running[:1]]
    return services


def export(folder: Path, build: Path) -> tuple[Path | None, Path]:
    """The model as an ONNX file for the peers, and the hub folder in which infinity finds it optimized."""
    exported, hub = build / "exported", build / "hub"
    optimized = hub / "infinity_onnx" / "CPUExecutionProvider"
    if list(optimized.glob("*_optimized.onnx")):
        return exported, hub
    python = python_of("infinity-onnx", build)
    if python is None:
        return None, hub
    command = [python, HERE / "export_onnx.py", folder, exported, optimized]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=apart())
    if done.returncode:
        print(f"the peers go without ONNX: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None, hub
    return exported, hub


def infinity(build: Path, folder: Path, exported: Path | None, hub: Path) -> Iterator[Way]:
    """infinity on PyTorch with BetterTransformer, and on ONNX Runtime."""
    for peer, engine, place in (("infinity", "torch", folder), ("infinity-onnx", "optimum", exported)):
        python = python_of(peer, build) if place else None
        for size in SIZES if python else ():
            command = [python.with_name("infinity_emb"), "v2", "--model-id", ".", "--served-model-name", "m"]
            command += ["--engine", engine, "--device", "cpu", "--no-compile", "--batch-size", size]
            command += ["--pooling-method", "mean", "--log-level", "error", "--port"]
            how = f"{engine}, batches of up to {size}"
            yield Way(how=how, command=command, folder=place, env={"HF_HUB_CACHE": str(hub)})


def plain(peer: str, build: Path, folder: Path, exported: Path | None, sizes: Sequence[int | str]) -> Iterator[Way]:
    """A service of ours around sentence-transformers, on PyTorch and on ONNX Runtime."""
    python = python_of(peer, build)
    for backend, place in (("torch", folder), ("onnx", exported)):
        for size in sizes if python and place else ():
            command = [python, HERE / f"{peer}_service.py", place, backend, *filter(None, [size])]
            yield Way(how=f"{backend}, batches of up to {size}" if size else backend, command=command)


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


def _answers(service: Service, process: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    path, headers, body = service.payloads[0]
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with (
            contextlib.suppress(URLError, OSError),
            urlopen(Request(service.url + path, data=body, headers=headers), timeout=30),
        ):
            return True
        time.sleep(0.3)
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()
    print(f"{service.name}, {service.how}, is left out: it did not start. {said[-1] if said else ''}", flush=True)
    service.end()
    return False


def apart() -> dict[str, str]:
    """The environment of a process that is none of ours: no path of ours, no network, nothing sent home."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
