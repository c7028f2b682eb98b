from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from gateway_fakes import Mesh, mesh, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gateway") / "tiny")


@pytest_asyncio.fixture
async def bare(model_dir: Path) -> AsyncIterator[Mesh]:
    """Redis alone; the test adds workers and the gateway."""
    async with mesh(model_dir) as found:
        yield found


@pytest_asyncio.fixture
async def served(bare: Mesh) -> Mesh:
    """One worker in a cohort, one gateway that is ready."""
    await bare.add_worker()
    await bare.start_gateway()
    await ready(bare)
    return bare


async def ready(mesh: Mesh, epoch: int = 0) -> None:
    """Until the gateway serves the cohort published last."""
    async with asyncio.timeout(10), httpx.AsyncClient() as client:
        while True:
            answer = (await client.get(mesh.http + "/health/ready")).json()
            if answer.get("epoch", -1) == (epoch or mesh.epoch):
                return
            await asyncio.sleep(0.01)


async def until(true: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Until the condition holds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.01)
    assert true()
