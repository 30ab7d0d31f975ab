"""Triton's error messages turned into errors with cause and fix.

Our own backend raises `AccelError` inside Triton's Python process; Triton carries its text along, so cause, seen and
fix are parsed back out here.
"""

from __future__ import annotations

import re

from accel_lib.errors import RequestError, ServerError

_ACCEL_ERROR = re.compile(
    r"(?:\[(?:StatusCode\.\w+|\d{3})\] )?(?:\b\w+Error: )?(?P<cause>[^\n]+)\n"
    r"(?:  seen: (?P<seen>.*?)\n)?  fix:  (?P<fix>.*?)(?:\n\nAt:|;?\s*\Z)",
    re.DOTALL,
)
_STATE = re.compile(
    r"(?P<version>version \d+) is at UNAVAILABLE state: (?:Internal: )?(?P<reason>.*?)(?=;version \d+ is at|;?\s*\Z)",
    re.DOTALL,
)
_PLACE = re.compile(r"At:\n\s+(?:\S*/)?(?P<file>[^/\s(]+)\((?P<line>\d+)\)")
# What Triton's message holds -> cause and fix; {name} is the model, {message} what Triton said.
_REQUESTS = {
    r"unknown model": (
        "Triton does not serve that model or version.",
        "server.models() lists what is served; server.load('{name}') loads it",
    ),
    r"maximum queue size": (
        "The model's queue is full.",
        "send fewer requests at once, or {name}.configure(max_queue_size=0) for no limit",
    ),
    r"[Rr]equest timeout expired": (
        "The request waited longer than the queue's timeout.",
        "send fewer requests at once, or {name}.configure(queue_timeout_us=0)",
    ),
    r"DEADLINE_EXCEEDED|[Dd]eadline [Ee]xceeded|[Tt]imed? ?out": (
        "No answer came in time.",
        "pass a larger timeout_s, or send fewer requests at once",
    ),
    r"Stub process .* is not healthy": (
        "The model's Python process is gone.",
        "server.load('{name}') starts it again; server.log says why it ended",
    ),
    r"batch-size must be": (
        "The request has more rows than one execution may have.",
        "split it, or {name}.configure(max_batch_size=...)",
    ),
    r"UNAVAILABLE|[Rr]efused|[Cc]onnection|[Ss]ocket": (
        "Triton cannot be reached.",
        'server = accel_lib.serve("model_repository")',
    ),
}


def load_error(name: str, message: str, log: str) -> ServerError:
    """The error for a model that did not load, from Triton's message and, where that says little, its log."""
    state = _STATE.search(message)
    version, reason = (f"{state['version']}: ", state["reason"]) if state else ("", message)
    ours = _ACCEL_ERROR.search(reason)
    if ours:
        return ServerError(
            f"{name} did not load. {ours['cause']}", seen=_short(f"{version}{ours['seen'] or ''}"), fix=ours["fix"]
        )
    place = _PLACE.search(reason)
    reason = reason.split("\n\nAt:")[0].strip().rstrip(";").strip()
    if place:
        reason += f" ({place['file']} line {place['line']})"
    if "is not healthy" in reason:
        reason = f"its Python process ended; the log ends with {last_words(log)}"
    return ServerError(
        f"{name} did not load.", seen=_short(f"{version}{reason}"), fix=f"fix what it names, then server.load({name!r})"
    )


def request_error(name: str, message: str) -> RequestError:
    """The error for one request that Triton refused or lost."""
    ours = _ACCEL_ERROR.search(message)
    if ours:
        return RequestError(ours["cause"], seen=ours["seen"], fix=ours["fix"])
    for pattern, (cause, fix) in _REQUESTS.items():
        if re.search(pattern, message):
            return RequestError(cause, seen=message, fix=fix.format(name=name))
    shape = "send int64 arrays [rows, tokens]; the model's config says the rest"
    return RequestError(f"Triton refused a request to {name}.", seen=message, fix=shape)


def last_words(log: str, lines: int = 4) -> str:
    """The end of a log without its tables and folders."""
    words = [line for line in log.splitlines() if line.strip() and line[:1] not in "|+"]
    return _short(" / ".join(words[-lines:]))


def _short(text: str) -> str:
    """Files by their names, without their folders."""
    return re.sub(r"(?:/[^/\s'\"]+)+/", "", text)
