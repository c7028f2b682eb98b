"""The safetensors container: the header of one file, checked. Torch-free.

Layout: u64 little-endian header length, JSON header ``{name: {dtype, shape, data_offsets}}``, data.
Offsets are relative to the data, which must be covered exactly: no overlap, no hole, nothing after.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from janus_models.errors import CheckpointError

ITEM_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
"""Bytes per element of each dtype that a header may name."""

MAX_HEADER = 100_000_000
"""The format's own limit on the header, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str
    """As the header spells it: F32, BF16, ..."""
    shape: tuple[int, ...]
    begin: int
    """First byte, from the start of the file."""
    end: int
    """One past the last byte."""

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.begin


def bad_file(
    path: Path, message: str, next_step: str = "Fetch the file again", **details: Any
) -> CheckpointError:
    """The error for a weights file that cannot be used."""
    return CheckpointError(f"{path}: {message}", reason="BAD_CHECKPOINT", next_step=next_step, **details)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, by name. Raises CheckpointError naming the file, field and sizes."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if len(prefix) < 8:
                raise bad_file(path, f"truncated: {size} bytes, a safetensors file has at least 8")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER:
                raise bad_file(
                    path,
                    f"bad header: its length reads {length} bytes, at most {MAX_HEADER} allowed; "
                    "not a safetensors file?",
                )
            if 8 + length > size:
                raise bad_file(path, f"truncated: the header needs {8 + length} bytes, the file has {size}")
            blob = file.read(length)
    except FileNotFoundError as cause:
        raise bad_file(path, "missing", "Complete the checkpoint: this shard was not found") from cause
    except OSError as cause:
        raise bad_file(path, f"cannot be read: {cause}", "Check its permissions") from cause
    entries = _parse(path, blob, data_start=8 + length)
    _check_layout(path, entries, data_start=8 + length, size=size)
    return {entry.name: entry for entry in entries}


def _parse(path: Path, blob: bytes, *, data_start: int) -> list[TensorEntry]:
    try:
        raw = json.loads(blob.decode("utf-8"), object_pairs_hook=_no_repeats)
    except ValueError as cause:
        raise bad_file(path, f"bad header: {cause}") from cause
    if not isinstance(raw, dict):
        raise bad_file(path, "bad header: not a JSON object")
    raw.pop("__metadata__", None)
    return [_entry(path, name, value, data_start) for name, value in raw.items()]


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"repeated key {next(n for n in names if names.count(n) > 1)!r}")
    return result


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise bad_file(path, f"bad header: {name} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise bad_file(path, f"bad header: dtype of {name} is {dtype!r}", allowed=", ".join(ITEM_SIZES))
    if not _whole_numbers(shape):
        raise bad_file(path, f"bad header: shape of {name} is {shape!r}", allowed="a list of sizes")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad_file(
            path,
            f"bad header: data_offsets of {name} are {offsets!r}",
            allowed="[begin, end] with begin <= end",
        )
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise bad_file(
            path,
            f"bad header: {name} is {dtype} {shape} and needs {needed} bytes, "
            f"its data_offsets {offsets} give {offsets[1] - offsets[0]}",
        )
    return TensorEntry(
        name=name,
        file=path,
        dtype=dtype,
        shape=tuple(shape),
        begin=data_start + offsets[0],
        end=data_start + offsets[1],
    )


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value
    )


def _check_layout(path: Path, entries: list[TensorEntry], *, data_start: int, size: int) -> None:
    end, previous = data_start, ""
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < end:
            raise bad_file(
                path,
                f"overlapping data_offsets: {entry.name} begins at byte {entry.begin - data_start}, "
                f"{previous} ends at {end - data_start}",
            )
        if entry.begin > end:
            raise bad_file(
                path,
                f"hole in the data: {entry.name} begins at byte {entry.begin - data_start}, "
                f"the tensors before it end at {end - data_start}",
            )
        end, previous = entry.end, entry.name
    if end > size:
        raise bad_file(path, f"truncated: {previous} needs data up to byte {end}, the file has {size} bytes")
    if end < size:
        raise bad_file(
            path,
            f"{size - end} bytes after the last tensor: the tensors end at byte {end}, the file has {size}",
        )
