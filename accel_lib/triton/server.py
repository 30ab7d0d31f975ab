"""Start a Triton server from a notebook, keep it across cells, and end it with the kernel."""

from __future__ import annotations

import atexit
import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from accel_lib.artifact import Artifact
from accel_lib.errors import RequestError, ServerError
from accel_lib.formatting import listed
from accel_lib.progress import Progress
from accel_lib.triton.client import Connection, ServedModel
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.error_messages import load_error
from accel_lib.triton.install import TRITON_VERSION
from accel_lib.triton.process import Ports, TritonProcess
from accel_lib.triton.repository import (
    MODEL_FILE,
    model_names,
    read_config,
    remove_version,
    rollback_on_error,
    unbuilt,
    versions,
    write_model,
)

if TYPE_CHECKING:
    import pandas as pd

_COURSE_MODELS = ("embedding", "sentiment", "rerank", "generation")
_UNLOAD_S = 30
_LAST_UNLOAD_S = 2.0  # at a server's end; what takes longer has the time that Triton gives it then
_LOADED = ("READY", "UNLOADING")
_SERVERS: dict[Path, Server] = {}


def serve(
    repository: str | Path = "model_repository",
    *,
    models: Literal["all"] | Sequence[str] = "all",
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> Server:
    """Start a real Triton on a model repository and wait until its models are ready.

    The server, also a context manager, listens on the loopback interface only and ends when this process ends. Serving
    the same repository again replaces it.

    Parameters
    ----------
    repository
        Folder with a folder per model.
    models
        ``"all"`` loads every model whose artifacts are built and names the others; models that are named must load.
    http_port, grpc_port, metrics_port
        0 takes a free port.
    timeout_s
        How long start and loading may take.
    env
        Environment variables for Triton and the models' Python processes.
    flags
        Further options of ``tritonserver``, as on its command line.

    Raises
    ------
    MachineError
        Triton's wheel has no build for this machine.
    ServerError
        A port is taken, another process serves the repository, or a model did not load.

    Examples
    --------
    >>> server = accel.serve("model_repository")  # doctest: +SKIP
    >>> server.model("embedding").encode(["a cat on a mat"]).shape  # doctest: +SKIP
    (1, 384)
    """
    folder = Path(repository).resolve()
    if not folder.is_dir():
        raise ServerError(
            "There is no such model repository.",
            seen=folder.name,
            fix='serve(accel_lib.ensure("embedding")) builds one',
        )
    names, left_out = _choose(folder, models)
    if folder in _SERVERS:
        _SERVERS.pop(folder).stop()
    progress = Progress(f"Triton {TRITON_VERSION}")
    ports = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
    try:
        process = TritonProcess.start(folder, ports, timeout_s=timeout_s, env=env or {}, progress=progress, flags=flags)
        server = Server(process, folder)
        try:
            server._load_all(names, timeout_s, progress)
        except BaseException:
            server.stop()
            raise
    except BaseException:
        progress.clear()
        raise
    _SERVERS[folder] = server
    progress.done(f"ready, {server}")
    for name in left_out:
        reason = _not_built(folder, name)
        print(f"{name} is left out: {reason.cause} To build it: {reason.fix}")
    return server


class Server:
    """A running Triton; made by `serve`."""

    def __init__(self, process: TritonProcess, repository: Path) -> None:
        self._process = process
        self._supplied: dict[str, ModelConfig] = {}
        self._resets: dict[str, int] = {}
        self.repository = repository
        self.connection = Connection(
            grpc=f"{process.host}:{process.ports.grpc}", http=f"{process.host}:{process.ports.http}"
        )

    @property
    def ports(self) -> Ports:
        """The ports of its three services."""
        return self._process.ports

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called; a Triton that died by itself was not stopped."""
        return self.connection.closed

    @property
    def http_url(self) -> str:
        """Address of the HTTP service."""
        return f"http://{self._process.host}:{self._process.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC service."""
        return f"{self._process.host}:{self._process.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{self._process.host}:{self._process.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Process id of ``tritonserver``, 0 when it has ended."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether Triton still runs."""
        return self._process.running

    @property
    def log(self) -> str:
        """All that Triton and the models' Python processes wrote; also readable after the end."""
        return self._process.log

    def model(self, name: str, version: int | str = "") -> ServedModel:
        """A handle on a loaded model, else `ServerError`; without a version, requests go to the newest."""
        ready = [(m.name, m.version) for m in self.connection.index() if m.state == "READY"]
        if not any(name == found and str(version) in ("", number) for found, number in ready):
            loaded = ", ".join(f"{found} {number}" for found, number in ready) or "none"
            raise ServerError(
                "That model or version is not loaded.",
                seen=f"{name} {version}".strip(),
                fix=f"choose from {loaded}; or load it: server.load({name!r})",
            )
        return ServedModel(self, name, str(version))

    def models(self) -> pd.DataFrame:
        """Every version Triton knows: name, version, state, and the reason of a state that is not READY."""
        import pandas as pd

        rows = [(m.name, m.version, m.state or "not loaded", m.reason) for m in self.connection.index()]
        return pd.DataFrame(rows, columns=["name", "version", "state", "reason"])

    def add(self, name: str, artifact: Artifact, *, version: int = 1, config: ModelConfig | None = None) -> ServedModel:
        """Put a validated artifact into the repository and load it, while other versions keep responding.

        Parameters
        ----------
        name, version
            Where it goes; an existing version is replaced.
        artifact
            Is copied.
        config
            Written into the repository when given; else an existing model keeps its own and what `configure` changed.

        Raises
        ------
        ArtifactError
            The artifact was not validated.
        ServerError
            The name or version cannot be used, or Triton could not load it: the repository is as it was before.
        """
        with rollback_on_error(self.repository / name):
            write_model(self.repository, name, artifact, version=version, config=config)
            changed = config or self._supplied.get(name)
            self._load(name, changed if changed != read_config(self.repository / name) else None)
        return self.model(name, version)

    def remove(self, name: str, *, version: int) -> None:
        """Take a version, which must exist, out of the repository, and the model with its last one."""
        loaded = any(m.name == name and m.state == "READY" for m in self.connection.index())
        last = versions(self.repository / name) == [version]
        if loaded and last:  # while Triton still finds its files
            self.unload(name)
        remove_version(self.repository, name, version)
        if loaded and not last:
            self._load(name, self._supplied.get(name))
            self._wait_until_gone(name, str(version))

    def load(self, name: str, config: ModelConfig | None = None) -> None:
        """Load a model, or load it again: from its files, or with `config` instead of its ``config.pbtxt``.

        A loaded model keeps responding meanwhile, and stays as it was if this fails with a `ServerError`.
        """
        if config is None:  # Triton loads nothing whose files have not changed, even if the model's process is gone
            for version in versions(self.repository / name):
                (self.repository / name / str(version) / MODEL_FILE).touch()
        self._load(name, config)

    def _load(self, name: str, config: ModelConfig | None = None) -> None:
        supplied = config or read_config(self.repository / name)
        if unbuilt(self.repository / name):
            raise _not_built(self.repository, name)
        before = self.connection.answered(name)
        self.connection.load(name, config.to_json() if config else None, lambda text: load_error(name, text, self.log))
        if self.connection.answered(name) < before:
            self._resets[name] = self._resets.get(name, 0) + 1
        self._supplied[name] = supplied

    def unload(self, name: str) -> None:
        """Unload all versions of a model and wait until they are gone.

        Raises
        ------
        ServerError
            The model is not loaded, or its Python process has ended, for which Triton would wait forever.
        """
        self.model(name)
        self.connection.unload(name)
        self._wait_until_gone(name)
        self._supplied.pop(name, None)

    def config(self, name: str) -> ModelConfig:
        """The configuration a model was loaded with."""
        return self._supplied[name] if name in self._supplied else read_config(self.repository / name)

    def resets(self, name: str) -> int:
        """How often loading again has set this model's statistics back to zero."""
        return self._resets.get(name, 0)

    def stop(self) -> None:
        """End Triton and everything that it started."""
        if _SERVERS.get(self.repository) is self:
            del _SERVERS[self.repository]
        unloaded = self._process.owned and self.running and self._unload_all(time.monotonic() + _LAST_UNLOAD_S)
        self.connection.close()
        self._process.stop(unloaded=unloaded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        if not self.running:
            return "Triton, stopped"
        loaded: dict[str, list[str]] = {}
        for model in self.connection.index():
            if model.state == "READY":
                loaded.setdefault(model.name, []).append(model.version)
        return "; ".join(f"{name} {_numbered(sorted(v))}" for name, v in loaded.items()) or "no model loaded yet"

    def _unload_all(self, until: float) -> bool:
        """Unload what can be: at its end Triton looks only once a second whether its models are gone.

        Whether all are, which Triton itself does not know then: it counts what it refused to load for ever.
        """
        with contextlib.suppress(RequestError, ServerError):
            for name in {model.name for model in self.connection.index(_LAST_UNLOAD_S) if model.state == "READY"}:
                self.connection.unload(name)
            while any(model.state in _LOADED for model in self.connection.index(_LAST_UNLOAD_S)):
                if time.monotonic() > until:
                    return False
                time.sleep(0.02)
            return True
        return False

    def _wait_until_gone(self, name: str, version: str = "") -> None:
        until = time.monotonic() + _UNLOAD_S
        while any(
            m.name == name and version in ("", m.version) and m.state in _LOADED for m in self.connection.index()
        ):
            if time.monotonic() > until:  # Triton waits forever for a Python process that has ended
                raise ServerError(
                    f"{name} does not unload.", seen=f"{_UNLOAD_S} s", fix="server.stop(), and serve again"
                )
            time.sleep(0.05)

    def _load_all(self, names: Sequence[str], timeout_s: float, progress: Progress) -> None:
        until = time.monotonic() + timeout_s
        pool = ThreadPoolExecutor(max_workers=max(1, len(names)))
        try:
            pending = {pool.submit(self._load, name) for name in names}
            while pending:
                done, pending = wait(pending, timeout=0.2)
                for future in done:
                    future.result()
                progress.tick(f"loading {', '.join(names)}")
                if time.monotonic() > until:
                    raise ServerError("The models were not ready in time.", seen=self, fix="serve(..., timeout_s=300)")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _choose(repository: Path, models: Literal["all"] | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names to load, and names left out because they are not built."""
    known = model_names(repository)
    if models != "all":
        names = [models] if isinstance(models, str) else list(models)
        for name in names:
            read_config(repository / name)
            if unbuilt(repository / name):
                raise _not_built(repository, name)
        return names, []
    left_out = [name for name in known if unbuilt(repository / name)]
    return [name for name in known if name not in left_out], left_out


def _not_built(repository: Path, name: str) -> ServerError:
    missing = unbuilt(repository / name)
    fix = f'server.add("{name}", artifact, version={missing[0]})'
    if name in _COURSE_MODELS:
        fix = f'accel_lib.ensure("{name}")'
    verb = "has" if len(missing) == 1 else "have"
    return ServerError(
        f"{_numbered(missing).capitalize()} {verb} no artifact on this machine.",
        seen=f"{name} in {repository.name}",
        fix=fix,
    )


def _numbered(versions: Sequence[int | str]) -> str:
    """``"version 1"``, ``"versions 1 and 2"``."""
    return f"version{'' if len(versions) == 1 else 's'} {listed([str(version) for version in versions])}"


@atexit.register
def _stop_all() -> None:
    for server in list(_SERVERS.values()):
        with contextlib.suppress(ServerError):
            server.stop()
