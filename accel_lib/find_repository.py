"""Which model repository a command works on, and which of its models the course may build."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from accel_lib.artifact import MANIFEST_FILE, Manifest
from accel_lib.errors import AccelError, ArtifactError
from accel_lib.machine import project_root
from accel_lib.triton.repository import ARTIFACT_FOLDER, foreign_version

_REPOSITORY = "model_repository"


def repository_of(name: str) -> Path:
    """The repository that `ensure` builds a model in.

    It is ``$ACCEL_REPOSITORY``, else the nearest ``model_repository`` folder upward from here that has the model, else
    the course's own.

    Raises
    ------
    AccelError
        There is no such repository.
    """
    return (
        given_repository()
        or next((folder for folder in repositories_above() if (folder / name).is_dir()), None)
        or course_repository()
    )


def given_repository() -> Path | None:
    """``$ACCEL_REPOSITORY``, or None; raises `AccelError` if it is not there."""
    given = os.environ.get("ACCEL_REPOSITORY")
    if given and not Path(given).is_dir():
        raise AccelError(
            "There is no such model repository.",
            seen=f"ACCEL_REPOSITORY={given}",
            fix=f"name the right one: export ACCEL_REPOSITORY=…; or make it: mkdir {given}",
        )
    return Path(given) if given else None


def repositories_above() -> Iterator[Path]:
    """Where ``model_repository`` folders might be, upward from here."""
    here = Path.cwd().resolve()
    return (folder / _REPOSITORY for folder in (here, *here.parents))


def course_repository() -> Path:
    """The repository in the course's checkout."""
    return project_root() / _REPOSITORY


def check_built_here(model: Path, numbers: Iterable[int], *, kept: Iterable[int] = ()) -> None:
    """Refuse to build versions of a model that is somebody's own: `ensure` did not build what is there.

    Parameters
    ----------
    model
        The model's folder.
    numbers, kept
        Versions to build, and versions that are there and stay.

    Raises
    ------
    AccelError
        One of the versions to build, or all that the model has, are somebody's own.
    """
    folders = {int(each.name): each for each in model.glob("[0-9]*") if each.is_dir() and each.name.isdecimal()}
    built = {number for number, folder in folders.items() if _recipe(folder)} | set(kept)
    own = {number for number in folders.keys() - built if _somebody_s_own(folders[number])}
    if own & set(numbers) or (own and not built):
        as_it_is = f"ACCEL_REPOSITORY={model.parent.name} accel serve"
        raise AccelError(
            f"{model.name} in {model.parent.name} was not built by accel.ensure, so nothing of it is replaced.",
            seen=f"version {', '.join(map(str, sorted(own)))}",
            fix=f"serve it as it is: {as_it_is}; or build elsewhere: export ACCEL_REPOSITORY=$(mktemp -d)",
        )


def _somebody_s_own(version: Path) -> bool:
    return bool(foreign_version(version)) or (version / ARTIFACT_FOLDER).is_dir()


def _recipe(version: Path) -> str:
    """What a version was built by, also if its files are damaged; empty if not here."""
    try:
        text = (version / ARTIFACT_FOLDER / MANIFEST_FILE).read_text(encoding="utf-8")
        return Manifest.from_json(text).recipe
    except (OSError, ValueError, ArtifactError):
        return ""
