"""What generation_config.json says. Torch-free."""

from __future__ import annotations

from pathlib import Path

from janus_models._fields import Fields, read_json
from janus_models.config import ModelConfig
from janus_models.errors import ConfigError


def end_ids(config: ModelConfig) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's where it names some, else config.json's.

    Raises ConfigError when the file is there but cannot be used.
    """
    return read_end_ids(config.directory) or config.eos_ids


def read_end_ids(directory: Path) -> tuple[int, ...]:
    """``eos_token_id`` of generation_config.json, one or several; empty without the file or the field."""
    path = directory / "generation_config.json"
    if not path.exists():
        return ()
    return Fields(read_json(path, ConfigError), str(path), ConfigError).ids("eos_token_id")
