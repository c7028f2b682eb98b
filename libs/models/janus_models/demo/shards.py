"""Writing a checkpoint file by file so that an interruption costs one file. Torch-free."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus_models.errors import CheckpointError

MANIFEST = "janus-demo.json"
LOCK = "janus-demo.lock"


@dataclass(slots=True, kw_only=True)
class Manifest:
    """What is finished in a demo directory. Rewritten atomically after each shard."""

    key: str
    """hash of the recipe: source file, sample text, parameters"""
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """file name -> bytes, sha256 and what the builder wants to remember"""
    finished: bool = False
    """every file is in place"""
    seconds: float = 0.0
    """time spent building, over all runs"""

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """The manifest of a directory; None when there is none or it is unreadable."""
        try:
            raw = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            return cls(
                key=raw["key"],
                shards=dict(raw["shards"]),
                finished=bool(raw["finished"]),
                seconds=float(raw["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # nothing to resume: the build starts over

    def write(self, directory: Path) -> None:
        """Replace the manifest on disk."""
        write_atomic(directory / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")

    def intact(self, directory: Path, name: str) -> bool:
        """Whether shard ``name`` was finished and still has its size."""
        path = directory / name
        return name in self.shards and path.is_file() and path.stat().st_size == self.shards[name]["bytes"]


def write_atomic(path: Path, text: str) -> None:
    """A text file that is either the old one or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_shard(
    path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], wrote: Callable[[int], None]
) -> dict[str, Any]:
    """Write float32 arrays as one safetensors file; the name appears once the data is on disk.

    ``wrote`` hears the bytes of each tensor. Arrays may repeat (equal experts): each gets its own copy, as
    the format demands. Returns {"bytes", "sha256"}.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-(8 + len(blob)) % 64)
    start = struct.pack("<Q", len(blob)) + blob
    digest = hashlib.sha256(start)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(start)
        for array in tensors.values():
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
            wrote(len(data))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return {"bytes": len(start) + offset, "sha256": digest.hexdigest()}


@contextmanager
def locked(directory: Path, timeout_s: float, waiting: Callable[[], None]) -> Iterator[None]:
    """One builder at a time per directory; the others wait, and then find the work done.

    Raises CheckpointError after ``timeout_s`` seconds. The lock goes with its process, however that ends.
    """
    with (directory / LOCK).open("w") as file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as cause:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"another process has been building {directory} for {timeout_s:.0f} s",
                        reason="DEMO_BUILD_BUSY",
                        next_step="Wait for it, or end it and try again",
                    ) from cause
                waiting()
                time.sleep(0.2)
        yield
