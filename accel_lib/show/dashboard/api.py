"""What the web UI knows of the service: a gateway's HTTP interface, and nothing else."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import TYPE_CHECKING, Any

from accel_lib.errors import AccelError, require

if TYPE_CHECKING:
    import httpx

TIMES = {"tokenize": "x-tokenization-time", "queue": "x-queue-time", "inference": "x-inference-time"}

Samples = dict[str, list[tuple[dict[str, str], float]]]


class GatewayError(AccelError):
    """The gateway refused, or does not answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back from an inference, and where its time went.

    Parameters
    ----------
    body
        As the gateway sent it.
    times_ms
        Milliseconds of each stage, ``"total"`` among them.
    version
        Of the model that answered.
    """

    body: dict[str, Any]
    times_ms: dict[str, float]
    version: str


class Api:
    """A gateway as the UI asks it.

    Parameters
    ----------
    url, key
        Its address, and a key; what the key may not do is refused by the gateway.
    timeout_s
        For one request.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self.url = url
        self._client: httpx.Client = _httpx().Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s
        )

    def get(self, path: str) -> Any:
        """The JSON of a path.

        Raises
        ------
        GatewayError
            With the gateway's own message.
        """
        return self._ask("GET", path).json()

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Change something, and what came of it.

        Raises
        ------
        GatewayError
            With the gateway's own message.
        """
        return self._ask(method, path, body).json()

    def infer(self, path: str, body: dict[str, Any]) -> Answer:
        """An answer of a model, with the times that the response's headers tell."""
        response = self._ask("POST", path, body)
        stages = {name: float(response.headers.get(header, "nan")) for name, header in TIMES.items()}
        total = float(response.headers.get("x-total-time", "nan"))
        times = {name: value for name, value in {**stages, "total": total}.items() if value == value}
        return Answer(body=response.json(), times_ms=times, version=response.headers.get("x-model-version", ""))

    def metrics(self) -> Samples:
        """The gateway's Prometheus metrics: name -> labels and value of each series."""
        return parse_metrics(self._ask("GET", "/metrics").text)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._client.request(method, path, json=body)
        except _httpx().HTTPError as error:
            raise GatewayError(
                "The gateway does not answer.", seen=f"{self.url}: {error}", fix="start it: accel serve"
            ) from error
        if response.status_code >= 400:
            raise GatewayError(_message(response), seen=f"{response.status_code} of {path}", fix=_fix(response))
        return response


def parse_metrics(text: str) -> Samples:
    """Prometheus's text format: name -> labels and value of each series."""
    samples: Samples = {}
    for family in require("prometheus_client.parser", extra="ui").text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase or f"HTTP {response.status_code}"


def _fix(response: httpx.Response) -> str:
    return {
        401: "give the UI a key that is in use: accel keys create ui --role operator --role inference",
        403: "make the UI a key that may: accel keys create ui --role operator --role inference",
        404: "load the model first, or ask a newer gateway",
    }.get(response.status_code, "read the gateway's log")


def _httpx() -> ModuleType:
    return require("httpx", extra="ui")
