from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from janus_runtime.coordination import Coordination
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings


@pytest.fixture
def ready() -> Callable[..., Lease]:
    """Makes leases of ready workers of a small model; the role is the name's first part."""

    def make(name: str, member: int = 0, **more: Any) -> Lease:
        role = Role(name.partition("-")[0])
        fields: dict[str, Any] = {
            "worker_id": name, "member": member, "role": role, "pid": 1, "grpc_address": f"{name}:1",
            "transport": "ucx", "transport_address": "AA==", "model": "tiny float32", "moe_layers": 2,
            "num_experts": 8, "slots": 4 if role is Role.MOE else 0, "state": WorkerState.READY,
        }  # fmt: skip
        return Lease(**{**fields, **more})

    return make


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer.start() as server:
        yield server


@pytest.fixture
def settings(redis: RedisServer) -> ServiceSettings:
    return ServiceSettings(redis_url=redis.url, worker_id="test-0", redis_wait_s=5.0)


@pytest_asyncio.fixture
async def coordination(settings: ServiceSettings) -> AsyncIterator[Coordination]:
    coordination = await Coordination.connect(settings)
    yield coordination
    await coordination.close()
