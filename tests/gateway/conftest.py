from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from gateway_fakes import Mesh, mesh, ready, write_model


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
