from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from janus_runtime.coordination import Coordination
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer.start() as server:
        yield server


@pytest.fixture
def settings(redis: RedisServer) -> ServiceSettings:
    return ServiceSettings(redis_url=redis.url, worker_id="autoscaler-0", redis_wait_s=5.0)


@pytest_asyncio.fixture
async def coordination(settings: ServiceSettings) -> AsyncIterator[Coordination]:
    coordination = await Coordination.connect(settings)
    yield coordination
    await coordination.close()
