"""Every error this library raises on purpose.

AccelError
├── MissingDependencyError   an optional package is not installed
├── MachineError             this machine cannot do what was asked
├── TextError                texts that cannot be read or tokenized
├── ModelError               a model that cannot be found, loaded or honoured
├── ConversionError          an export, a quantization or an engine build failed
├── ArtifactError            a file or manifest that must not be used
├── OutputError              a file or folder that cannot be written, or must not be replaced
├── ValidationError          an artifact that disagrees with its reference
├── EngineError              an engine that cannot run here, or failed while running
├── ServerError              Triton did not start, load, configure or stop
├── StateError               the gateway's own state cannot be read or written
└── RequestError             a request was refused or lost
"""

from __future__ import annotations

import importlib
from types import ModuleType


class AccelError(Exception):
    """An error that says what went wrong, what was seen, and what to do about it.

    Parameters
    ----------
    cause
        What went wrong, one sentence.
    seen
        The value, path or message that was found.
    fix
        What to do: the exact command or call.
    """

    def __init__(self, cause: str, *, seen: object = None, fix: str) -> None:
        self.cause = cause
        self.seen = None if seen is None else str(seen)
        self.fix = fix
        lines = [cause]
        if self.seen is not None:
            lines.append(f"  seen: {self.seen}")
        lines.append(f"  fix:  {fix}")
        super().__init__("\n".join(lines))


class MissingDependencyError(AccelError, ImportError):
    """An optional package is not installed."""


class MachineError(AccelError):
    """What was asked is beyond this machine."""


class TextError(AccelError, ValueError):
    """Texts that cannot be read or tokenized."""


class ModelError(AccelError, ValueError):
    """A model that cannot be found, loaded or honoured."""


class ConversionError(AccelError):
    """An export, a quantization or an engine build failed."""


class ArtifactError(AccelError):
    """A file or manifest that must not be used."""


class OutputError(AccelError):
    """A file or folder that cannot be written, or must not be replaced."""


class ValidationError(AccelError):
    """An artifact that disagrees with its reference."""


class EngineError(AccelError):
    """An engine that cannot run here, or failed while running."""


class ServerError(AccelError):
    """Triton did not start, load, configure or stop."""


class StateError(AccelError):
    """The gateway's own state cannot be read or written."""


class RequestError(AccelError):
    """Triton or an engine refused or lost one request."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say which extra installs it.

    Raises
    ------
    MissingDependencyError
        With the exact pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed here and could not be imported.",
            seen=error,
            fix=f"python -m pip install 'accel_lib[{extra}]'",
        ) from error
