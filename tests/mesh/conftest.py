"""Tiny random checkpoints, made once, and what transformers says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from janus_models.tiny import make_tiny

FAMILIES = ("mixtral", "qwen3_moe")


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of each family whose experts differ."""
    directory = tmp_path_factory.mktemp(request.param)
    make_tiny(directory, family=request.param, seed=11)
    return directory


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixtral checkpoint."""
    directory = tmp_path_factory.mktemp("mixtral-only")
    make_tiny(directory, family="mixtral", seed=5)
    return directory
