"""A tiny random model whose experts differ, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from janus_models.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny(directory, family="qwen3_moe", seed=11)
    return directory
