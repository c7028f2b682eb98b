"""The file in which an attention engine keeps copies of its KV rows, for whoever has to go on when it is lost.

A header that says what the bytes are, an index, then places of one KV block each, a token's row after the other (keys
of all layers, then values). A place has the name of the block before it and the tokens whose rows it has, so that it
says itself what it is of. Whoever reads need not know whether the writer lives, is frozen, or goes on meanwhile:

- rows are only ever added to a place; its count is written last, and a row beyond the count is none;
- a place given to another block changes its turn first, which is odd meanwhile: a reader looks at it before and after;
- each row has a sum over its bytes and over what it was computed from, so that nothing that is torn, or of another
  place, or garbage, fits.

Reading is by calls, never by mapping the file: what is cut short is then an error, not a signal.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_attention.blocks import NAME_BYTES

Rows = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
_MAGIC = b"JANUS KV"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ16s")
_HEAD_BYTES = 4096
_MOST_PLACES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfFormat:
    """What writer and reader must agree on; anything else is left alone."""

    block_size: int
    """Tokens of a place."""
    row_bytes: int
    """Bytes of a token."""
    meaning: str
    """What equal names and bytes mean the same under: model, dtypes, shape of a row, release."""

    @property
    def place_bytes(self) -> int:
        """Bytes of one place's rows."""
        return self.block_size * self.row_bytes

    @property
    def entry(self) -> np.dtype[Any]:
        """One place's part of the index."""
        size = self.block_size
        return np.dtype([
            ("turn", "<u8"), ("count", "<u8"), ("parent", "<u8", (2,)), ("tokens", "<u4", (size,)),
            ("sums", "<u4", (size,)),
        ])  # fmt: skip

    def header(self, places: int) -> bytes:
        """The file's first bytes."""
        digest = hashlib.blake2b(self.meaning.encode(), digest_size=16).digest()
        return _HEADER.pack(_MAGIC, _VERSION, self.block_size, self.row_bytes, places, digest)

    def data_at(self, places: int) -> int:
        """Where the rows begin."""
        return -(-(_HEAD_BYTES + places * self.entry.itemsize) // _HEAD_BYTES) * _HEAD_BYTES

    def nbytes(self, places: int) -> int:
        """Of the whole file."""
        return self.data_at(places) + places * self.place_bytes


def row_seeds(parent: bytes, tokens: Items[int], first: int) -> list[int]:
    """What the sums of rows ``first`` on begin with: over the block before, and the block's tokens up to the row's."""
    seed = zlib.crc32(array("q", tokens[:first]).tobytes(), zlib.crc32(parent))
    seeds = []
    for token in tokens[first:]:
        seed = zlib.crc32(token.to_bytes(8, "little"), seed)
        seeds.append(seed)
    return seeds


class ShelfWriter:
    """The owner's side."""

    def __init__(self, descriptor: int, fmt: ShelfFormat, places: int) -> None:
        """``descriptor``: of an empty file of ``fmt.nbytes(places)``."""
        self.fmt = fmt
        self.places = places
        self._descriptor = descriptor
        self._data_at = fmt.data_at(places)
        # A page that the file system has no room for would be a signal at its first write, so room is asked for before.
        os.posix_fallocate(descriptor, 0, self._data_at)
        memory = mmap.mmap(descriptor, fmt.nbytes(places))
        self._index = np.frombuffer(memory, fmt.entry, places, _HEAD_BYTES)
        self._rows = np.frombuffer(memory, np.uint8, places * fmt.place_bytes, self._data_at).reshape(
            -1, fmt.row_bytes
        )
        memory[: _HEADER.size] = fmt.header(places)

    def reserve(self, place: int) -> bool:
        """Memory for a place, before it is first used; False: there is no more."""
        try:
            os.posix_fallocate(
                self._descriptor, self._data_at + place * self.fmt.place_bytes, self.fmt.place_bytes
            )
        except OSError:
            return False
        return True

    def begin(self, place: int, parent: bytes) -> None:
        """The place is for another block from now on, the one after ``parent``; it has no rows yet."""
        entry = self._index[place : place + 1]
        entry["turn"] += np.uint64(1)
        entry["count"] = 0
        entry["parent"] = np.frombuffer(parent, "<u8")
        entry["turn"] += np.uint64(1)

    def add(self, pieces: Items[tuple[int, int, bytes, Items[int]]], rows: Rows) -> None:
        """Rows of pieces of blocks, one after the other: place, row that is the first, the block before, the block's
        tokens up to the piece's last. A piece follows what its place has."""
        size, at = self.fmt.block_size, 0
        where = [place * size + i for place, first, _, tokens in pieces for i in range(first, len(tokens))]
        self._rows[where] = rows
        for place, first, parent, tokens in pieces:
            last = len(tokens)
            seeds = row_seeds(parent, tokens, first)
            self._index["tokens"][place, first:last] = tokens[first:]
            self._index["sums"][place, first:last] = [
                zlib.crc32(row.data, seed)
                for row, seed in zip(rows[at : at + last - first], seeds, strict=True)
            ]
            self._index["count"][place] = last
            at += last - first


class ShelfReader:
    """A file, whoever's, as it was when this was made; what is read later is checked against it."""

    def __init__(self, descriptor: int, fmt: ShelfFormat) -> None:
        """Raises ValueError that says why, where it is none of this format."""
        head = os.pread(descriptor, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise ValueError("it is no shelf of KV blocks")
        _, version, _, _, places, _ = _HEADER.unpack(head)
        if version != _VERSION:
            raise ValueError(f"it is of version {version}, not {_VERSION}")
        if head != fmt.header(places):
            raise ValueError("it is of another model, dtype, block size or release")
        if not 0 < places <= _MOST_PLACES or os.fstat(descriptor).st_size != fmt.nbytes(places):
            raise ValueError(f"its size does not fit its {places} places")
        self._descriptor = descriptor
        self._fmt = fmt
        self._data_at = fmt.data_at(places)
        size = fmt.entry.itemsize
        self._index = np.frombuffer(os.pread(descriptor, places * size, _HEAD_BYTES), fmt.entry)
        self._parents = self._index["parent"]

    def find(self, parent: bytes, tokens: Items[int]) -> tuple[int, int]:
        """The place after ``parent`` that has most of these first tokens of a block, and how many; (-1, 0): none."""
        a, b = np.frombuffer(parent, "<u8")
        best = (-1, 0)
        for place in np.flatnonzero((self._parents[:, 0] == a) & (self._parents[:, 1] == b)).tolist():
            entry = self._index[place]
            most = min(int(entry["count"]), len(tokens))
            if entry["turn"] % 2 or most <= best[1] or most > self._fmt.block_size:
                continue
            differs = np.flatnonzero(entry["tokens"][:most] != np.asarray(tokens[:most], np.int64))
            count = int(differs[0]) if len(differs) else most
            if count > best[1]:
                best = (place, count)
        return best

    def read(self, place: int, count: int, parent: bytes, tokens: Items[int]) -> Rows | None:
        """A place's first rows, whole and of these tokens after ``parent``; None where they are not, or no more."""
        fmt, entry = self._fmt, self._index[place]
        size = count * fmt.row_bytes
        data = os.pread(self._descriptor, size, self._data_at + place * fmt.place_bytes)
        size_of_entry = fmt.entry.itemsize
        now = os.pread(self._descriptor, size_of_entry, _HEAD_BYTES + place * size_of_entry)
        if len(data) < size or len(now) < size_of_entry:
            return None
        if np.frombuffer(now, fmt.entry)["turn"][0] != entry["turn"]:
            return None
        rows = np.frombuffer(data, np.uint8).reshape(count, fmt.row_bytes)
        seeds = row_seeds(parent, tokens[:count], 0)
        fits = all(
            zlib.crc32(row.data, seed) == found
            for row, seed, found in zip(rows, seeds, entry["sums"], strict=False)
        )
        return rows if fits else None


assert NAME_BYTES == 16  # as the index has it

__all__ = ["Rows", "ShelfFormat", "ShelfReader", "ShelfWriter", "row_seeds"]
