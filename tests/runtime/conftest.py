from __future__ import annotations

from collections.abc import Iterator

import pytest
from janus_runtime.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A private server of this test alone."""
    with RedisServer.start() as server:
        yield server
