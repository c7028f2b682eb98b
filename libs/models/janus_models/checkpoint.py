"""Weights of a checkpoint directory, read lazily: ``mmap`` and torch views, nothing is copied.

Files are mapped read-only and shared, so every process on a machine uses the same pages of the page
cache, a tensor never touched is never read, and a stray write is a fault instead of a private copy.
torch is imported when the first tensor is asked for: listing and checking work without it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_models._fields import Fields, read_json
from janus_models._safetensors import TensorEntry, bad_file, read_header
from janus_models.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["FLOAT_DTYPES", "Checkpoint", "CheckpointError", "TensorEntry"]

FLOAT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes that weights may have: the header's spelling and torch's."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """The ``*.safetensors`` of a directory, with or without an index.

    Opening reads and checks every header (not the data). Raises CheckpointError naming the file, field
    and sizes: missing shard, tensor that the index promises and no shard has, truncated file, bad
    header, overlapping or out-of-range offsets.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._entries = _read_entries(self.directory)
        self._maps: dict[Path, ctypes.Array[ctypes.c_ubyte]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        """Names of all tensors, in the files' order."""
        return list(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self)

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies, its dtype and shape. Raises CheckpointError when there is none."""
        try:
            return self._entries[name]
        except KeyError as cause:
            raise CheckpointError(
                f"{self.directory}: no tensor named {name} in {len(self._files())} file(s) with "
                f"{len(self._entries)} tensors",
                reason="MISSING_TENSOR",
                next_step="Complete the checkpoint, or use the config.json that belongs to these weights",
            ) from cause

    def check(self, name: str, shape: Sequence[int], dtypes: Mapping[str, str] = FLOAT_DTYPES) -> TensorEntry:
        """The entry of ``name`` if it is of ``shape`` and one of ``dtypes``, as the config demands."""
        entry = self.entry(name)
        if entry.shape != tuple(shape):
            raise bad_file(
                entry.file,
                f"{name} has shape {list(entry.shape)}, config.json asks for {list(shape)}",
                "Use the config.json that belongs to these weights",
            )
        _check_dtype(entry, dtypes)
        return entry

    def tensor(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        dtypes: Mapping[str, str] = FLOAT_DTYPES,
    ) -> torch.Tensor:
        """A read-only view of the file's pages, on the CPU, in the file's own dtype.

        Writing to it is a segmentation fault. It stays valid after the Checkpoint is gone. With
        ``shape`` the tensor is checked first, as :meth:`check` does. ``dtypes`` are the ones allowed, the header's
        spelling and torch's.
        """
        import torch

        entry = self.entry(name) if shape is None else self.check(name, shape, dtypes)
        _check_dtype(entry, dtypes)
        dtype: torch.dtype = getattr(torch, dtypes[entry.dtype])
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        buffer: Any = self._map(entry.file)
        if entry.begin % dtype.itemsize:
            # Old writers do not pad the header; a misaligned view would be undefined behaviour in kernels.
            buffer = bytearray(memoryview(buffer)[entry.begin : entry.end])
            return torch.frombuffer(buffer, dtype=dtype).view(entry.shape)
        count = entry.nbytes // dtype.itemsize
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)

    def _files(self) -> set[Path]:
        return {entry.file for entry in self}

    def _map(self, path: Path) -> ctypes.Array[ctypes.c_ubyte]:
        if path not in self._maps:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            # torch warns about read-only buffers, though the page protection is the guard we want: hand it
            # the same memory as a ctypes array. The array owns the mapping, every view owns the array.
            address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
            array = (ctypes.c_ubyte * len(mapped)).from_address(address)
            array._mapping = mapped  # type: ignore[attr-defined]
            self._maps[path] = array
        return self._maps[path]


def _check_dtype(entry: TensorEntry, dtypes: Mapping[str, str]) -> None:
    if entry.dtype not in dtypes:
        raise bad_file(
            entry.file,
            f"{entry.name} has dtype {entry.dtype}",
            "Use a checkpoint that is not quantised, or whose config.json has the quantization_config",
            allowed=", ".join(dtypes),
        )


def _read_entries(directory: Path) -> dict[str, TensorEntry]:
    if (directory / INDEX).exists():
        return _read_indexed(directory)
    files = [directory / SINGLE] if (directory / SINGLE).exists() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{directory}: no *.safetensors file",
            reason="NO_WEIGHTS",
            next_step="Pass a Hugging Face checkpoint with safetensors weights (other formats are not read)",
        )
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise bad_file(
                    file,
                    f"{name} is also in {entries[name].file.name}",
                    f"Remove the stale file, or add {INDEX}",
                )
            entries[name] = entry
    return entries


def _read_indexed(directory: Path) -> dict[str, TensorEntry]:
    path = directory / INDEX
    fields = Fields(read_json(path, CheckpointError), str(path), CheckpointError)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise fields.error("weight_map", str(weight_map)[:80], "an object of tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise fields.error(f"weight_map[{name}]", file, "the name of a file beside the index")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(shards)} shards missing: {', '.join(missing[:8])}"
            + (", ..." if len(missing) > 8 else ""),
            reason="MISSING_SHARD",
            next_step="Complete the checkpoint: download the shards named",
        )
    headers = {shard: read_header(directory / shard) for shard in shards}
    entries = {}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise bad_file(
                directory / shard,
                f"{INDEX} says that it holds {name}, but it has {len(headers[shard])} other tensors",
                "Fetch the shard and the index again, both of one version",
            )
        entries[name] = headers[shard][name]
    return entries
