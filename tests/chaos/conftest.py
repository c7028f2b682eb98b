"""A tiny random model whose experts differ, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from janus_models.tiny import make_tiny

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny(directory, family="qwen3_moe", seed=11)
    return directory
