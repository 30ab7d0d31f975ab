"""Experiments: which version of a model is live, who gets which, what differs; promoted and rolled back at any moment.

A version that is loaded later gets no traffic: the live one stays live until an operator promotes another. Traffic of a
classifier may be split among versions; vectors of two embedding versions cannot be compared with each other, so there
a candidate only computes in the shadow. Everything is in the state file and outlives a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from accel_lib.scores import Activation, same_answers
from accel_lib.service.abtest.observations import Observations, Sample, Verdict, VersionSummary, compare, summarize
from accel_lib.service.abtest.routing import Plan, Route, choose, shadowed
from accel_lib.service.catalog import ServedVersion
from accel_lib.service.database import Database
from accel_lib.service.errors import Problem

Status = Literal["running", "promoted", "rolled_back"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named plan and what became of it."""

    name: str
    status: Status
    plan: Plan


class ExperimentView(Plan):
    """An experiment: its plan, what was observed, and the verdicts."""

    object: Literal["experiment"] = "experiment"
    name: str
    status: Status
    live_version: str
    versions: list[VersionSummary]
    verdicts: list[Verdict]


@dataclasses.dataclass
class ComputeTime:
    """What only the handler of a request knows of its time."""

    ms: float = 0.0


class Experiments:
    """All experiments of one gateway, and the live version of each model; `versions` gives those that answer now."""

    def __init__(self, database: Database, versions: Callable[[], Sequence[ServedVersion]]) -> None:
        self._database, self._versions = database, versions
        self._lock = threading.RLock()
        self._live: dict[str, str] = {}
        self._running: dict[str, Experiment] = {}
        self._observations = Observations(database)
        self._read()

    def route(self, model: str, *, user: str | None = None, pinned: str = "") -> Route:
        """Where a request goes.

        Parameters
        ----------
        user
            Whom it is for; without one, and where an experiment is not sticky, each request is drawn again.
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
        """The version that answers outside of experiments: the newest when it is first asked for, then that one."""
        if model not in self._live:
            known = [int(each.version) for each in self._versions() if each.name == model]
            if not known:
                return ""
            with self._lock:
                self._go_live(model, str(max(known)), previous="")
        return self._live[model]

    @contextlib.contextmanager
    def observed(self, route: Route, texts: int) -> Iterator[ComputeTime]:
        """Time a request and record it, a failure of the service too.

        What the client did wrong, or what was rejected to protect others, says nothing about a version.
        """
        compute, began = ComputeTime(), time.perf_counter()
        try:
            yield compute
        except Problem as problem:
            if problem.status >= 500:
                self.answered(route, latency_ms=_since_ms(began), compute_ms=0.0, texts=texts, failed=True)
            raise
        self.answered(route, latency_ms=_since_ms(began), compute_ms=compute.ms, texts=texts)

    def answered(self, route: Route, **measured: Any) -> None:
        """Record how a request of an experiment went; `measured` are fields of `Sample`."""
        if route.experiment:
            self._observations.record(Sample(experiment=route.experiment, version=route.version, **measured))

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
        found = self._find("name = ?", name)
        if not found:
            raise Problem(404, f"There is no experiment {name!r}.", param="name", code="experiment_not_found")
        return found[0]

    def begin(self, name: str, plan: Plan) -> None:
        """Start an experiment, or change the plan of one that runs; what it observed so far counts on.

        Raises
        ------
        Problem
            409: a version does not answer, another experiment runs on this model, or the plan would mix vector spaces.
        """
        with self._lock:
            self._check(name, plan)
            if not self._find("name = ? AND status = 'running'", name):
                self._observations.forget(name)
            self.live(plan.model)
            self._save(Experiment(name=name, status="running", plan=plan))

    def promote(self, name: str, version: str, *, vector_space_id: str | None = None) -> Experiment:
        """End an experiment with one of its versions going live; requests in flight end where they are.

        Parameters
        ----------
        vector_space_id
            Of an embedding version in another space than the live one: said once more, because every index that was
            built with the live one has to be built again.

        Raises
        ------
        Problem
            404, or 409: it does not run, the version takes no part or does not answer, or the space was not named.
        """
        with self._lock:
            experiment = self.get(name)
            model, participants = experiment.plan.model, experiment.plan.participants
            if experiment.status != "running":
                raise _conflict(f"{name} does not run; it was {experiment.status.replace('_', ' ')}.", "not_running")
            if version not in participants:
                message = f"Version {version} takes no part in {name}; {', '.join(sorted(participants))} do."
                raise _conflict(message, "version_not_in_experiment")
            target, live = self._ready(model, version), self._ready(model, self.live(model))
            moves = target.manifest.task == "embedding" and target.vector_space_id != live.vector_space_id
            if moves and vector_space_id != target.vector_space_id:
                raise _conflict(
                    f"Vectors of version {version} are in another space; indexes have to be built again. "
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
                self._save(ended)
                return ended
            previous = self._database.read("SELECT previous FROM live WHERE model = ?", (model,))[0]["previous"]
            if model in self._running:
                raise _conflict(f"Another experiment runs on {model}; end it first.", "experiment_runs")
            if not previous:
                raise _conflict(f"No version was live on {model} before.", "nothing_to_roll_back_to")
            self._ready(model, previous)
            self._go_live(model, previous, previous="", experiment=ended)
            return ended

    def report(self, name: str) -> ExperimentView:
        """An experiment, what each version did, and how they compare with the live one."""
        experiment = self.get(name)
        plan, live = experiment.plan, self.live(experiment.plan.model)
        seen = self._observations.by_version(name)
        labels = self._activation(plan.model) is not None
        base = live if live in seen else next(iter(plan.weights))
        others = [version for version in seen if version != base and base in seen]
        return ExperimentView(
            **plan.model_dump(),
            name=name,
            status=experiment.status,
            live_version=live,
            versions=[summarize(version, samples, labels=labels) for version, samples in seen.items()],
            verdicts=[each for other in others for each in compare(base, other, seen[base], seen[other])],
        )

    def close(self) -> None:
        """Write what was observed."""
        self._observations.close()

    def _check(self, name: str, plan: Plan) -> None:
        other = self._running.get(plan.model)
        if other and other.name != name:
            raise _conflict(f"{other.name} runs on {plan.model} already; end it first.", "experiment_runs")
        for running in self._find("name = ? AND status = 'running'", name):
            if running.plan.model != plan.model:
                raise _conflict(f"{name} runs on {running.plan.model}.", "experiment_runs")
        versions = [self._ready(plan.model, version) for version in sorted(plan.participants)]
        live, weighted = self.live(plan.model), plan.participants - {plan.shadow}
        if plan.shadow and versions[0].manifest.task == "generation":
            raise _conflict(
                "A shadow's text is compared with nothing here: split the requests by weight, sticky to a user.",
                "no_shadow",
            )
        if versions[0].manifest.task == "embedding" and weighted != {live}:
            raise _conflict(
                "Vectors of two versions cannot be compared with each other: give the live version "
                f'({live}) all the weight, and the other one as "shadow".',
                "vector_spaces_differ",
            )

    def _ready(self, model: str, version: str) -> ServedVersion:
        known = {each.version: each for each in self._versions() if each.name == model}
        if version not in known:
            numbers = ", ".join(known) or "none"
            raise _conflict(f"{model} has no version {version} that answers; {numbers} do.", "version_not_ready")
        return known[version]

    def _activation(self, model: str) -> Activation | None:
        """What makes scores of a classifier's logits; None for embeddings."""
        manifests = [each.manifest for each in self._versions() if each.name == model]
        classifiers = [manifest.activation for manifest in manifests if manifest.task == "classification"]
        return classifiers[0] if classifiers and len(classifiers) == len(manifests) else None

    def _go_live(self, model: str, version: str, *, previous: str, experiment: Experiment | None = None) -> None:
        with self._database.changing() as change:
            change.execute("INSERT OR REPLACE INTO live VALUES (?, ?, ?)", (model, version, previous))
            if experiment:
                change.execute(_REPLACE, _row(experiment))
        self._read()

    def _save(self, experiment: Experiment) -> None:
        self._database.write(_REPLACE, _row(experiment))
        self._read()

    def _find(self, condition: str, *values: str) -> list[Experiment]:
        rows = self._database.read(f"SELECT name, status, plan FROM experiments WHERE {condition}", values)  # noqa: S608 (ours)
        return [
            Experiment(name=name, status=status, plan=Plan.model_validate_json(plan)) for name, status, plan in rows
        ]

    def _read(self) -> None:
        """What is on the disk is what counts; requests see the old or the new whole, never a mix."""
        running = {experiment.plan.model: experiment for experiment in self._find("status = 'running'")}
        live = {row["model"]: row["version"] for row in self._database.read("SELECT * FROM live")}
        self._live, self._running = live, running


_REPLACE = "INSERT OR REPLACE INTO experiments VALUES (?, ?, ?, ?)"


def _row(experiment: Experiment) -> tuple[str, str, str, str]:
    return experiment.name, experiment.plan.model, experiment.status, experiment.plan.model_dump_json()


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
