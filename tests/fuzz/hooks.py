"""Where chance alone would hit a served model never, or the machine's memory at once."""

import random

import schemathesis

_SERVED = ("embedding", "sentiment")
_MOST_INSTANCES = 2
_random = random.Random(0)


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Half of the calls are about models that exist, but none of them unloads one: then all else would be 404."""
    if path_parameters and "model" in path_parameters and not context.operation.path.endswith("/unload"):
        if _random.random() < 0.5:
            path_parameters = path_parameters | {"model": _random.choice(_SERVED)}
    elif path_parameters and path_parameters.get("model") in _SERVED:
        path_parameters = path_parameters | {"model": "nothing"}
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    """Half of the bodies name a model that exists; nobody asks for more copies of a model than fit here."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("model"), str) and _random.random() < 0.5:
        body["model"] = "sentiment" if "classify" in context.operation.path else _random.choice(_SERVED)
    group = body.get("instance_group")
    if isinstance(group, dict) and isinstance(group.get("count"), int):
        body["instance_group"] = group | {"count": min(group["count"], _MOST_INSTANCES)}
    return body
