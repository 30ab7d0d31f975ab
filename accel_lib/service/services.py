"""Everything that one gateway is made of, in one object that each request finds on its app."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from accel_lib.service.abtest.experiments import Experiments
from accel_lib.service.abtest.shadow import Shadows
from accel_lib.service.audit import Audit
from accel_lib.service.auth import Authenticator
from accel_lib.service.catalog import Catalog
from accel_lib.service.database import Database
from accel_lib.service.limits import Limits
from accel_lib.service.metrics import Metrics
from accel_lib.service.settings import Settings
from accel_lib.service.supervisor import Supervisor
from accel_lib.service.telemetry import Telemetry
from accel_lib.service.triton_client import TritonClient
from accel_lib.service.upstreams import Upstreams

_Result = TypeVar("_Result")


IN_LOOP_CHARS = 2_000  # tokenized within a millisecond; more would keep other requests waiting, and goes to the pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """What handlers and middleware work with; made by `create_app`, found by `services`.

    Parameters
    ----------
    clock
        Monotonic seconds; deadlines and quotas know no other time.
    pool, workers
        Threads for what burns CPU, and how many.
    metrics_port
        Where only the metrics are shown; 0 where there is none.
    """

    settings: Settings
    clock: Callable[[], float]
    metrics_port: int
    database: Database
    auth: Authenticator
    audit: Audit
    supervisor: Supervisor
    catalog: Catalog
    experiments: Experiments
    shadows: Shadows
    triton: TritonClient
    upstreams: Upstreams
    limits: Limits
    metrics: Metrics
    telemetry: Telemetry
    pool: ThreadPoolExecutor
    workers: int

    async def run_in_pool(self, work: Callable[[], _Result], *, unless: bool = False) -> _Result:
        """Run what burns CPU outside the event loop, `unless` it is so little that the way there takes longer."""
        if unless:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def close(self) -> None:
        """End everything, what others still need last."""
        await self.shadows.close()
        await self.triton.close()
        await self.upstreams.close()
        self.supervisor.stop()  # blocks, as it must also do while the interpreter ends and starts no thread
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.telemetry.close()
        self.experiments.close()
        self.database.close()


def services(request: Request) -> Services:
    """The services of the gateway that a request came to."""
    found: Services = request.app.state.services
    return found
