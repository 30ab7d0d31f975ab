"""Versions side by side: which one is live, who gets which, what differs; promoted and rolled back at any moment.

A new version that is loaded gets no traffic: the live one stays live until an operator promotes another. Sentiment may
be split among versions; vectors of two embedding versions cannot be compared with each other, so there a candidate only
computes in the shadow. Everything here is in the state file and outlives a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.scores import Activation, same_answers
from accel_lib.service.observations import Observations, Sample, summary, verdicts
from accel_lib.service.problems import Problem
from accel_lib.service.routing import Plan, Route, choose, shadowed
from accel_lib.service.served import ServedVersion
from accel_lib.service.state import State

Status = Literal["running", "promoted", "rolled_back"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named plan and what became of it."""

    name: str
    status: Status
    plan: Plan


@dataclasses.dataclass
class Seen:
    """What only the handler of a request knows of it."""

    compute_ms: float = 0.0


class Experiments:
    """All experiments of one gateway, and the live version of each model.

    Parameters
    ----------
    state
        Where they are kept.
    versions
        Gives the versions that answer now.
    """

    def __init__(self, state: State, versions: Callable[[], Sequence[ServedVersion]]) -> None:
        self._state, self._versions = state, versions
        self._lock = threading.RLock()
        self._live: dict[str, str] = {}
        self._running: dict[str, Experiment] = {}
        self._observations = Observations(state)
        self._read()

    def route(self, model: str, *, user: str | None = None, pinned: str = "") -> Route:
        """Where a request goes.

        Parameters
        ----------
        model
            Its name.
        user
            Whom it is for; without one, and where an experiment is not sticky, each request is drawn anew.
        pinned
            The version that the client asks for, which is in no experiment.
        """
        running = self._running.get(model)
        if pinned or running is None:
            return Route(model=model, version=pinned or self.live(model))
        name, plan = running.name, running.plan
        unit = user if user and plan.sticky == "user" else secrets.token_hex(8)
        version = choose(name, plan, unit)
        shadow = plan.shadow if plan.shadow != version and shadowed(name, plan, unit) else ""
        return Route(model=model, version=version, experiment=name, shadow=shadow)

    def live(self, model: str) -> str:
        """The version that answers outside of experiments; the newest one at first sight, and from then on that one."""
        if model not in self._live:
            known = [int(each.version) for each in self._versions() if each.name == model]
            if not known:
                return ""
            with self._lock:
                self._go_live(model, str(max(known)), previous="")
        return self._live[model]

    @contextlib.contextmanager
    def observed(self, route: Route, texts: int) -> Iterator[Seen]:
        """Time what is done inside for a request and take it down, a failure of the service too.

        What the client did wrong, or what was refused to protect others, says nothing about a version.
        """
        seen, began = Seen(), time.perf_counter()
        try:
            yield seen
        except Problem as problem:
            if problem.status >= 500:
                self.answered(route, latency_ms=_since_ms(began), compute_ms=0.0, texts=texts, failed=True)
            raise
        self.answered(route, latency_ms=_since_ms(began), compute_ms=seen.compute_ms, texts=texts)

    def answered(self, route: Route, *, latency_ms: float, compute_ms: float, texts: int, failed: bool = False) -> None:
        """Take down how a request of an experiment went."""
        if route.experiment:
            self._observations.record(
                Sample(
                    experiment=route.experiment, version=route.version, latency_ms=latency_ms, compute_ms=compute_ms,
                    texts=texts, failed=failed,
                )
            )  # fmt: skip

    def shadowed(
        self, route: Route, sent: NDArray[np.float32], copy: NDArray[np.float32] | None, *, compute_ms: float
    ) -> None:
        """Compare what the shadow computed with what was sent; `copy` is None when it failed."""
        agreement = None if copy is None else _agreement(sent, copy, self._activation(route.model))
        self._observations.record(
            Sample(
                experiment=route.experiment, version=route.shadow, latency_ms=None, compute_ms=compute_ms,
                texts=len(sent), failed=copy is None, agreement=agreement,
            )
        )  # fmt: skip

    def get(self, name: str) -> Experiment:
        """An experiment; raises `Problem` 404 when there is none of that name."""
        rows = self._state.read("SELECT * FROM experiments WHERE name = ?", (name,))
        if not rows:
            raise Problem(404, f"There is no experiment {name!r}.", param="name", code="experiment_not_found")
        return _experiment(rows[0])

    def begin(self, name: str, plan: Plan) -> Experiment:
        """Start an experiment, or change the plan of one; what it saw so far counts on unless it begins anew.

        Raises
        ------
        Problem
            409: a version does not answer, another experiment runs on this model, or the plan would mix vector spaces.
        """
        with self._lock:
            self._check(name, plan)
            before = self._state.read("SELECT * FROM experiments WHERE name = ?", (name,))
            goes_on = bool(before) and _experiment(before[0]).status == "running"
            if not goes_on:
                self._observations.forget(name)
            experiment = Experiment(name=name, status="running", plan=plan)
            self.live(plan.model)
            self._keep(experiment)
            return experiment

    def promote(self, name: str, version: str, *, vector_space_id: str | None = None) -> Experiment:
        """End an experiment with a version that takes part going live; requests under way end where they are.

        Parameters
        ----------
        name, version
            What to end, and with which version.
        vector_space_id
            Of an embedding version in another space than the live one: said once more, because every index that was
            built with the live one has to be built anew.

        Raises
        ------
        Problem
            404, or 409: it does not run, the version takes no part or does not answer, or the space was not named.
        """
        with self._lock:
            experiment = self._run(name)
            model = experiment.plan.model
            if version not in experiment.plan.versions:
                parts = ", ".join(sorted(experiment.plan.versions))
                raise _conflict(f"Version {version} takes no part in {name}; {parts} do.", "version_not_in_experiment")
            target, live = self._answering(model, version), self._answering(model, self.live(model))
            moves = target.manifest.task == "embedding" and target.vector_space_id != live.vector_space_id
            if moves and vector_space_id != target.vector_space_id:
                raise _conflict(
                    f"Vectors of version {version} lie in another space; indexes have to be built anew. "
                    f'Say so: "vector_space_id": "{target.vector_space_id}".',
                    "vector_space_changes",
                )
            ended = dataclasses.replace(experiment, status="promoted")
            self._go_live(model, version, previous=self.live(model), experiment=ended)
            return ended

    def roll_back(self, name: str) -> Experiment:
        """End an experiment, or undo its promotion: the version that was live before answers everything again.

        Raises
        ------
        Problem
            404, or 409: it was rolled back already, or something else went live since.
        """
        with self._lock:
            experiment = self.get(name)
            model = experiment.plan.model
            ended = dataclasses.replace(experiment, status="rolled_back")
            if experiment.status == "rolled_back":
                raise _conflict(f"{name} was rolled back already.", "not_running")
            if experiment.status == "running":
                self._keep(ended)
                return ended
            row = self._state.read("SELECT * FROM live WHERE model = ?", (model,))[0]
            if self._state.read("SELECT 1 FROM experiments WHERE model = ? AND status = 'running'", (model,)):
                raise _conflict(f"Another experiment runs on {model}; end it first.", "experiment_runs")
            if not row["previous"]:
                raise _conflict(f"No version was live on {model} before.", "nothing_to_roll_back_to")
            self._answering(model, row["previous"])
            self._go_live(model, row["previous"], previous="", experiment=ended)
            return ended

    def report(self, name: str) -> dict[str, Any]:
        """An experiment, what each version did, and how they compare with the live one."""
        experiment = self.get(name)
        plan, live = experiment.plan, self.live(experiment.plan.model)
        seen = self._observations.by_version(name)
        labels = self._activation(plan.model) is not None
        base = live if live in seen else next(iter(plan.weights))
        compared = [
            verdict
            for version, samples in seen.items()
            if version != base and base in seen
            for verdict in verdicts(base, version, seen[base], samples)
        ]
        return {
            **_shown(experiment),
            "live_version": live,
            "versions": [summary(version, samples, labels=labels) for version, samples in seen.items()],
            "verdicts": compared,
        }

    def close(self) -> None:
        """Write what was seen."""
        self._observations.close()

    def _check(self, name: str, plan: Plan) -> None:
        other = self._running.get(plan.model)
        if other and other.name != name:
            raise _conflict(f"{other.name} runs on {plan.model} already; end it first.", "experiment_runs")
        running = self._state.read("SELECT * FROM experiments WHERE name = ? AND status = 'running'", (name,))
        if running and running[0]["model"] != plan.model:
            raise _conflict(f"{name} runs on {running[0]['model']}.", "experiment_runs")
        parts = [self._answering(plan.model, version) for version in sorted(plan.versions)]
        weighted = {version for version, weight in plan.weights.items() if weight > 0}
        if parts[0].manifest.task == "embedding" and weighted != {self.live(plan.model)}:
            raise _conflict(
                "Vectors of two versions cannot be compared with each other: give the live version "
                f'({self.live(plan.model)}) all the weight, and the other one as "shadow".',
                "vector_spaces_differ",
            )

    def _answering(self, model: str, version: str) -> ServedVersion:
        known = [each for each in self._versions() if each.name == model]
        found = next((each for each in known if each.version == version), None)
        if found is None:
            numbers = ", ".join(each.version for each in known) or "none"
            raise _conflict(f"{model} has no version {version} that answers; {numbers} do.", "version_not_ready")
        return found

    def _run(self, name: str) -> Experiment:
        experiment = self.get(name)
        if experiment.status != "running":
            raise _conflict(f"{name} does not run; it was {experiment.status.replace('_', ' ')}.", "not_running")
        return experiment

    def _activation(self, model: str) -> Activation | None:
        """What makes scores of a classifier's logits; None for embeddings."""
        manifests = [each.manifest for each in self._versions() if each.name == model]
        classifiers = [manifest.activation for manifest in manifests if manifest.task == "classification"]
        return classifiers[0] if classifiers and len(classifiers) == len(manifests) else None

    def _go_live(self, model: str, version: str, *, previous: str, experiment: Experiment | None = None) -> None:
        with self._state.changing() as change:
            change.execute("INSERT OR REPLACE INTO live VALUES (?, ?, ?)", (model, version, previous))
            if experiment:
                change.execute("INSERT OR REPLACE INTO experiments VALUES (?, ?, ?, ?)", _row(experiment))
        self._read()

    def _keep(self, experiment: Experiment) -> None:
        self._state.write("INSERT OR REPLACE INTO experiments VALUES (?, ?, ?, ?)", _row(experiment))
        self._read()

    def _read(self) -> None:
        """What is on the disk is what counts; requests see the old or the new whole, never a mix."""
        running = [_experiment(row) for row in self._state.read("SELECT * FROM experiments WHERE status = 'running'")]
        live = {row["model"]: row["version"] for row in self._state.read("SELECT * FROM live")}
        self._live, self._running = live, {experiment.plan.model: experiment for experiment in running}


def _since_ms(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def _agreement(sent: NDArray[np.float32], copy: NDArray[np.float32], activation: Activation | None) -> float:
    if activation:
        return float(same_answers(copy, sent, activation).sum())
    if sent.shape != copy.shape:
        return 0.0
    norms = np.linalg.norm(sent, axis=1) * np.linalg.norm(copy, axis=1)
    return float(((sent * copy).sum(axis=1) / np.maximum(norms, 1e-12)).sum())


def _conflict(message: str, code: str) -> Problem:
    return Problem(409, message, code=code)


def _row(experiment: Experiment) -> tuple[str, str, str, str]:
    plan = json.dumps(dataclasses.asdict(experiment.plan))
    return experiment.name, experiment.plan.model, experiment.status, plan


def _experiment(row: Any) -> Experiment:
    return Experiment(name=row["name"], status=row["status"], plan=Plan(**json.loads(row["plan"])))


def _shown(experiment: Experiment) -> dict[str, Any]:
    return {"name": experiment.name, "status": experiment.status, **dataclasses.asdict(experiment.plan)}
