"""Starts Triton, watches it, and starts it again when it died, after a longer pause each time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field

from accel_lib.errors import AccelError, RequestError, ServerError
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.process import Ports
from accel_lib.triton.server import Server, serve

_log = logging.getLogger("accel.supervisor")
_WATCH_S = 0.1
_ASK_S = 2.0
_LOOKS_BETWEEN = 10
_STUB = "triton_python_backend_stub"
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
_CALM_S = 60.0  # after that long without a death the pauses start from the first again
_KEPT_ERRORS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """One version that Triton knows: its state, and the reason of a state that is not READY."""

    model: str
    version: str
    state: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that went wrong."""

    at: Annotated[int, Field(description="Seconds since 1970.")]
    what: str


class Supervisor:
    """Keeps one Triton with its models alive.

    Parameters
    ----------
    models
        What to serve of the repository; none means all that are built.
    ports
        Of Triton; those of the first start are kept through every restart.
    triton
        A running server to watch; it stays its owner's, and is started again all the same when it dies.
    settings
        Settings of `ModelConfig` by model, instead of those in its file.
    flags
        Further options of ``tritonserver``.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        models: Sequence[str] = (),
        ports: Ports | None = None,
        triton: Server | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        flags: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._flags = tuple(flags)
        self._ports = ports or Ports()
        self._repository = Path(repository) if triton is None else triton.repository
        self._models = set(models)
        self._owned = triton is None
        self._server = triton
        self._clock, self._now = clock, now
        self._settings = {model: dict(changed) for model, changed in (settings or {}).items()}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="accel-supervisor", daemon=True)
        self._pause_s = 0.0
        self._started_s = clock()
        self._recovering = False
        self._changing = threading.Lock()
        self._suspects: set[str] = set()
        self.restarts = 0
        self.deaths: Counter[str] = Counter()  # of a model's Python processes; Triton leaves their streams open
        self.failed: AccelError | None = None  # what kept Triton from starting
        self.incidents: list[Incident] = []

    @property
    def server(self) -> Server:
        """The running server; raises `ServerError` before the first start."""
        if self._server is None:
            raise ServerError("Triton was not started.", seen="no server", fix="supervisor.start()")
        return self._server

    @property
    def repository(self) -> Path:
        """The model repository that Triton serves."""
        return self._repository

    @property
    def running(self) -> bool:
        """Whether Triton runs and its models were loaded."""
        return self._server is not None and not self._recovering and self._server.running

    @property
    def ready(self) -> bool:
        """Whether Triton runs and every served model answers; asks Triton."""
        return self.running and not self.missing()

    @property
    def served(self) -> frozenset[str]:
        """The models that this gateway is there for."""
        return frozenset(self._models)

    def start(self) -> None:
        """Start Triton, load the models and watch from now on; raises `ServerError` if one does not come up."""
        if self._server is None:
            self._server = self._serve(sorted(self._models) or "all")
            self._started_s = self._clock()
        self._ports = self.server.ports
        self._models |= {each.model for each in self.versions() if each.state == "READY"}
        for model in sorted(self._settings.keys() & self._models):
            self._reload(model)
        self._watcher.start()

    def stop(self) -> None:
        """Watch no longer, and end a Triton that was started here."""
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._server is not None and (self._owned or self.restarts):
            self._server.stop()

    def versions(self) -> list[Served]:
        """Every version that Triton knows; none while it is away; raises `RequestError` if it is too busy to say so."""
        if not self.running:
            return []
        found = self.server.connection.index(_ASK_S)
        return [Served(model=m.name, version=m.version, state=m.state, reason=m.reason) for m in found if m.version]

    def missing(self) -> list[str]:
        """Served models of which no version answers; all while Triton does not answer either."""
        ready: set[str] = set()
        with contextlib.suppress(RequestError):
            ready = {each.model for each in self.versions() if each.state == "READY"}
        return sorted(self._models - ready)

    def load(self, model: str) -> None:
        """Load a model, or load it again from its files; if it raises, what answered before keeps answering."""
        with self._changing:
            self.server.load(model)
            self._models.add(model)

    def unload(self, model: str) -> None:
        """Unload a model. It still counts as served, so `ready` is False until it is loaded again."""
        with self._changing:
            self.server.unload(model)

    def configure(self, model: str, settings: Mapping[str, Any]) -> ModelConfig:
        """Change settings of a model beside what was changed before; they hold through every restart of Triton.

        Raises `ServerError` if Triton refuses: what answered before keeps answering.
        """
        with self._changing:
            config = self.server.config(model).replace(**settings)
            self.server.load(model, config)
            self._settings[model] = {**self._settings.get(model, {}), **settings}
        return config

    def settings(self, model: str) -> dict[str, Any]:
        """What `configure` changed of a model, all in all."""
        return dict(self._settings.get(model, {}))

    def _watch(self) -> None:
        for look in itertools.count():
            if self._over.wait(_WATCH_S) or self.server.stopped:  # by its owner, who needs it no longer
                return
            if not self.server.running:
                self._recover()
            elif look % _LOOKS_BETWEEN == 0 and self._changing.acquire(blocking=False):
                try:  # not while an operator changes a model, whose processes come and go then
                    self._reload_broken()
                finally:
                    self._changing.release()

    def _reload_broken(self) -> None:
        """Load a model again whose Python process has ended: Triton itself calls it ready and refuses for ever."""
        broken = self._broken()
        for model in sorted(broken & self._suspects):  # at two looks, so not one that is just being loaded
            self._note(f"a process of {model} ended by itself")
            self.deaths[model] += 1
            try:
                self.server.load(model)
            except AccelError as error:
                self._note(f"{model} did not load again: {error.cause}")
            if model in self._settings:
                self._reload(model)
        self._suspects = broken

    def _broken(self) -> set[str]:
        """Models that have fewer Python processes than instances."""
        pid = self.server.pid
        if not pid:  # a Triton of another machine, or one that is gone
            return set()
        alive: Counter[tuple[str, str]] = Counter()
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # one that has just ended
                    words = process.cmdline()
                    if len(words) > 1 and words[0].endswith(_STUB):
                        version = Path(words[1]).parent
                        alive[version.parent.name, version.name] += 1
        with contextlib.suppress(AccelError):  # Triton is busy, or the model's files are gone: ask again later
            ready = [each for each in self.versions() if each.state == "READY" and each.model in self._models]
            configs = {each.model: self.server.config(each.model) for each in ready}
            wanted = {model: config.instance_count for model, config in configs.items() if config.backend == "python"}
            return {each.model for each in ready if alive[each.model, each.version] < wanted.get(each.model, 0)}
        return set()

    def _recover(self) -> None:
        """Start Triton again, and again, until it runs or is no longer wanted."""
        self._recovering = True
        if self._clock() - self._started_s > _CALM_S:
            self._pause_s = 0.0
        self._note("Triton ended by itself")
        while not self._over.wait(self._pause_s):
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            try:
                self._server = self._serve(())
            except AccelError as error:
                self._note(f"Triton did not start again: {error.cause}")
                continue
            self._started_s = self._clock()
            self.restarts += 1
            with ThreadPoolExecutor(max_workers=max(1, len(self._models))) as pool:
                list(pool.map(self._reload, sorted(self._models)))
            self._recovering = False
            return

    def _serve(self, models: Sequence[str] | Literal["all"]) -> Server:
        ports = dataclasses.asdict(self._ports)
        return serve(
            self._repository,
            models=models,
            flags=self._flags,
            **{f"{service}_port": port for service, port in ports.items()},
        )

    def _reload(self, model: str) -> None:
        """Load a model into a new Triton as it was; one that does not load keeps no other from answering."""
        try:
            config = self.server.config(model).replace(**self._settings.get(model, {}))
            self.server.load(model, config)
        except AccelError as error:
            self._note(f"{model} did not load again: {error.cause}")

    def _note(self, what: str) -> None:
        _log.error(what)
        self.incidents = [*self.incidents[1 - _KEPT_ERRORS :], Incident(at=int(self._now()), what=what)]
