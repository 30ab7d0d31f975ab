"""Triton's rate limiter: resources that model instances must hold to run, and who gets them first.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/rate_limiter.md
"""

from __future__ import annotations

from collections.abc import Mapping

from accel_lib.triton.config import ModelConfig

# For ``accel.serve(flags=[RATE_LIMIT])``: without it Triton leaves resources and priorities unread.
RATE_LIMIT = "--rate-limit=execution_count"


def limited(config: ModelConfig, *, resources: Mapping[str, int] | None = None, priority: int = 0) -> ModelConfig:
    """A configuration whose instances each take so much of shared resources while they run.

    Parameters
    ----------
    config
        Of any model.
    resources
        What an instance takes, by name. There is as much of each, for all models and devices together, as the
        instance takes that takes most of it. None takes nothing.
    priority
        An instance of priority 2 is served half as often as one of priority 1 when both wait; 0 is Triton's default.

    Returns
    -------
    ModelConfig
        For ``server.load(name, config)``.
    """
    message = config.to_protobuf()
    group = message.instance_group[0] if message.instance_group else message.instance_group.add(count=1)
    group.ClearField("rate_limiter")
    for name, count in (resources or {}).items():
        group.rate_limiter.resources.add(name=name, count=count, **{"global": True})
    if priority:
        group.rate_limiter.priority = priority
    return ModelConfig.from_protobuf(message)
