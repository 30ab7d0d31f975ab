"""Triton's rate limiter: resources that a model's instances must hold while they run, and priorities among them.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/rate_limiter.md
"""

from __future__ import annotations

from collections.abc import Mapping

from accel_lib.triton.config import ModelConfig

# For ``accel.serve(flags=[RATE_LIMIT])``: without it Triton ignores resources and priorities.
RATE_LIMIT = "--rate-limit=execution_count"


def limited(config: ModelConfig, *, resources: Mapping[str, int] | None = None, priority: int = 0) -> ModelConfig:
    """A configuration, for ``server.load``, whose instances each hold shared resources while they run.

    Parameters
    ----------
    config
        Of any model.
    resources
        What an instance holds, by name. Of each there is as much, for all models and devices together, as the instance
        holds that holds most of it.
    priority
        An instance of priority 2 is served half as often as one of priority 1 when both wait; 0 is Triton's default.
    """
    message = config.to_protobuf()
    group = message.instance_group[0] if message.instance_group else message.instance_group.add(count=1)
    group.ClearField("rate_limiter")
    for name, count in (resources or {}).items():
        group.rate_limiter.resources.add(name=name, count=count, **{"global": True})
    if priority:
        group.rate_limiter.priority = priority
    return ModelConfig.from_protobuf(message)
