"""One short string for "the same model": workers with different ones must not form a cohort. Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from janus_models._fields import read_json
from janus_models.checkpoint import Checkpoint
from janus_models.errors import ConfigError

# What can change without changing a token.
_IGNORED = frozenset({"_name_or_path", "transformers_version", "use_cache", "architectures"})


def fingerprint(directory: str | Path, dtype: str) -> str:
    """16 hex digits over config.json, each tensor's name, dtype, shape and place, and the serving dtype.

    Headers only: milliseconds even for large checkpoints. The same shapes with other values (a fine-tune
    in files of the same layout) are told apart by a few bytes of each file's data.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json", ConfigError)
    kept = {key: value for key, value in config.items() if key not in _IGNORED}
    digest = hashlib.sha256(json.dumps([kept, dtype], sort_keys=True).encode())
    checkpoint = Checkpoint(directory)
    for entry in sorted(checkpoint, key=lambda entry: entry.name):
        digest.update(f"{entry.name} {entry.dtype} {entry.shape} {entry.nbytes}\n".encode())
    for file in sorted({entry.file for entry in checkpoint}):
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            for place in (size // 3, size // 2, max(size - 4096, 0)):
                stream.seek(place)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:16]
