"""Where chance alone would hit a served model never, or the machine's memory at once."""

import random

import schemathesis

_SERVED = ("embedding", "sentiment")
_FOR = {
    "/v1/classify": "sentiment",
    "/v1/ranking": "rerank",
    "/v1/rerank": "rerank",
    "/v1/chat/completions": "generation",
    "/v1/completions": "generation",
}
_MOST_INSTANCES = 2
_random = random.Random(0)


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Half of the calls are about models that exist; few load one, which takes a second, and none unloads one.

    Unloaded, everything else would be a 404.
    """
    if not path_parameters or "model" not in path_parameters:
        return path_parameters
    path = context.operation.path
    share = 0.0 if path.endswith("/unload") else 0.05 if path.endswith(("/load", "/batching")) else 0.5
    if _random.random() < share:
        return path_parameters | {"model": _random.choice(_SERVED)}
    served = path_parameters["model"] in _SERVED
    return path_parameters | {"model": "nothing"} if served and share < 0.5 else path_parameters


@schemathesis.hook
def map_body(context, body):
    """Half of the bodies name a model that exists; nobody asks for more copies of a model than fit here."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("model"), str) and _random.random() < 0.5:
        body["model"] = _FOR.get(context.operation.path) or _random.choice(_SERVED)
    group = body.get("instance_group")
    if isinstance(group, dict) and isinstance(group.get("count"), int):
        body["instance_group"] = group | {"count": min(group["count"], _MOST_INSTANCES)}
    return body


@schemathesis.hook
def map_headers(context, headers):  # noqa: ARG001
    """A deadline that has passed is a 504, as it should be; here every request has the time that it needs."""
    return {name: value for name, value in (headers or {}).items() if name.lower() != "x-request-timeout-ms"}
