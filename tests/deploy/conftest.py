"""A tiny random model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from janus_models.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny(directory, family="mixtral", seed=3)
    return directory
