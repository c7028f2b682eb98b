"""KV rows that outlive their worker: copied to a file that others of the host read, and found there by who goes on.

After each step the engine copies what it computed for running streams to a file of its own (shelf_file.py). Who goes
on with a stream that another worker had looks for its tokens in all files of the mesh on this host, puts full blocks
into its own cache under their names, and the rows of the unfinished block where it computes on. What is not found is
computed: nothing depends on a file, and bits are the same, as a block's name says what it was computed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from janus_models.kvcache import KvCache
from janus_runtime import shared_folder
from janus_runtime.errors import JanusError
from janus_worker import VERSION

from janus_attention.blocks import BlockPool
from janus_attention.options import EngineOptions
from janus_attention.sequence import Sequence
from janus_attention.shelf_file import Rows, ShelfFormat, ShelfReader, ShelfWriter

_LOG = logging.getLogger("janus.attention")
_Piece = tuple[int, int, bytes, Items[int]]
"""Of a block, as :meth:`ShelfWriter.add` takes it."""
_AT_ONCE = 16 << 20
"""Bytes copied between two steps, besides single tokens: milliseconds."""
_NODE = len("kv-12345678-")
_SHARE = 4
"""Of the memory that the file system has left, one part in so many may be used."""
BRING_S = 0.5
"""Time of a step that finding other workers' blocks may take; what is left of streams then waits for the next one."""


@dataclass(slots=True)
class _Kept:
    """A block of the cache that has a place."""

    place: int
    parent: bytes
    rows: int
    name: bytes | None = None
    """Once all of its rows are there."""


def shelf_name(node: str, member: int) -> str:
    """Of an engine's file: those of one node begin alike."""
    return f"kv-{hashlib.sha256(node.encode()).hexdigest()[:8]}-{member}-{os.getpid()}"


class KvShelf:
    """One engine's file, and its eyes on the others'."""

    def __init__(
        self, pool: BlockPool, kv: KvCache, *, folder: Path, name: str, meaning: str, nbytes: int
    ) -> None:
        """``meaning``: what makes equal tokens equal bytes, besides the cache's layout."""
        self._pool = pool
        self._kv = kv
        self._folder = folder
        self._name = name
        self._format = ShelfFormat(
            block_size=pool.block_size, row_bytes=kv.row_bytes, meaning=f"{kv.layout}\n{meaning}"
        )
        self._writer: ShelfWriter | None = None
        self._kept: dict[int, _Kept] = {}
        self._block_at: list[int] = []
        """The block of each place that is in use; places follow each other until there is no more room."""
        self._hand = 0
        self._owed: deque[tuple[Sequence, int, int]] = deque()
        """Sequences, blocks of which others have in their files for now: those from the first number to the second are
        to be here too, when there is time. What is new comes first, as it is nowhere else."""
        self._refused: set[str] = set()
        self.due = False
        """Whether a step was made since :meth:`keep`."""
        self.recovered_tokens = 0
        """Tokens whose rows other workers had computed, found in their files."""
        self.kept_tokens = 0
        """Tokens whose rows were copied."""
        self.seconds = 0.0
        """That copying has taken."""
        self._until = 0.0
        self._open(nbytes)

    def _open(self, nbytes: int) -> None:
        shared_folder.tidy(self._folder.parent)
        with contextlib.suppress(OSError):
            room = os.statvfs(self._folder.parent)
            nbytes = min(nbytes, room.f_bavail * room.f_frsize // _SHARE)
        places = min(self._pool.count, nbytes // self._format.place_bytes)
        if places:
            try:
                descriptor = shared_folder.create(self._folder, self._name, self._format.nbytes(places))
                self._writer = ShelfWriter(descriptor, self._format, places)
            except (JanusError, OSError) as error:
                _LOG.warning("KV blocks are not kept for others, who will compute them again: %s", error)
        else:
            _LOG.warning(
                "KV blocks are not kept for others: one of %d bytes does not fit --kv-shelf-mb",
                self._format.place_bytes,
            )

    def close(self) -> None:
        """Take the file away: this engine ends in an orderly way, and its streams have gone elsewhere before."""
        with contextlib.suppress(OSError):
            (self._folder / self._name).unlink(missing_ok=True)

    # Keeping ----------------------------------------------------------------------------------

    def keep(self, running: Iterable[Sequence]) -> None:
        """Copy what these streams have in the cache and the file has not. Between steps, or while one waits."""
        self.due = False
        if self._writer is None:
            return
        began = time.perf_counter()
        pieces: list[_Piece] = []
        slots: list[int] = []
        most = _AT_ONCE // self._format.row_bytes
        # Single tokens first: long prefixes may take several steps.
        for seq in sorted(running, key=_behind):
            if len(slots) >= most and _behind(seq) > 1:
                break
            self._collect(seq, pieces, slots, len(slots) + max(1, most - len(slots)))
        while self._owed and len(slots) < most:
            self._collect_owed(pieces, slots)
        if pieces:
            self._writer.add(pieces, self._kv.read_rows(np.asarray(slots, np.int64)))
            self.kept_tokens += len(slots)
        self.seconds += time.perf_counter() - began

    def _collect(self, seq: Sequence, pieces: list[_Piece], slots: list[int], most: int) -> None:
        size = self._pool.block_size
        while seq.kept < seq.computed and len(slots) < most:
            i, first = divmod(seq.kept, size)
            block, last = seq.blocks[i], min(size, seq.computed - i * size)
            kept = self._kept.get(block)
            whole = last == size
            if not first:
                if kept is not None and whole and kept.name == self._pool.name(seq, i):
                    seq.kept += size  # shared, and another sequence's copy is there
                    continue
                kept = self._place(block, self._pool.parent(seq, i))
            if kept is None or kept.rows != first or kept.parent != self._pool.parent(seq, i):
                seq.kept = seq.computed  # there was no place: what follows would not be found
                return
            tokens = seq.tokens[i * size : i * size + last]
            pieces.append((kept.place, first, kept.parent, tokens))
            slots.extend(range(block * size + first, block * size + last))
            kept.rows = last
            kept.name = self._pool.name(seq, i) if whole else None
            seq.kept = i * size + last

    def _collect_owed(self, pieces: list[_Piece], slots: list[int]) -> None:
        """One block of the first sequence that is owed some."""
        seq, i, end = self._owed.popleft()
        size = self._pool.block_size
        if i == end or seq.computed < end * size:
            return  # all is here, or it has ended
        block, name, parent = seq.blocks[i], self._pool.name(seq, i), self._pool.parent(seq, i)
        kept = self._kept.get(block)
        if kept is None or kept.name != name:
            kept = self._place(block, parent)
            if kept is None:
                return
            pieces.append((kept.place, 0, parent, seq.tokens[i * size : (i + 1) * size]))
            slots.extend(range(block * size, (block + 1) * size))
            kept.rows, kept.name = size, name
        self._owed.appendleft((seq, i + 1, end))

    def _place(self, block: int, parent: bytes) -> _Kept | None:
        """A place for a block that begins anew: its own, a new one, or one whose block no stream has."""
        assert self._writer is not None
        kept = self._kept.get(block)
        place = self._free_place() if kept is None else kept.place
        if place < 0:
            return None
        self._block_at[place] = block
        self._writer.begin(place, parent)
        self._kept[block] = made = _Kept(place, parent, 0)
        return made

    def _free_place(self) -> int:
        assert self._writer is not None
        place = len(self._block_at)
        if place < self._writer.places:
            if self._writer.reserve(place):
                self._block_at.append(-1)
                return place
            _LOG.warning("the shelf of KV blocks has room for %d blocks, not %d", place, self._writer.places)
            self._writer.places = place
        for _ in range(place):
            self._hand = (self._hand + 1) % place
            if not self._pool.held(self._block_at[self._hand]):
                del self._kept[self._block_at[self._hand]]
                return self._hand
        return -1

    # Finding ----------------------------------------------------------------------------------

    def step(self) -> None:
        """A step begins, in which so much time may be spent on finding."""
        self._until = time.perf_counter() + BRING_S

    def bring(self, tokens: Items[int], names: Items[bytes]) -> int:
        """Have the blocks of ``tokens``, which are named so, in the cache as far as other workers left them and time
        allows; how many are there then, from the first on."""
        missing = self._present(names)
        if missing == len(names):
            return missing
        until = time.perf_counter() + BRING_S
        with contextlib.ExitStack() as stack:
            shelves = self._shelves(stack)
            for i in range(missing, len(names)):
                if not self._pool.has(names[i]) and not self._bring(shelves, tokens, names, i):
                    return i
                if time.perf_counter() > until:
                    return i + 1
        return len(names)

    def _present(self, names: Items[bytes]) -> int:
        return next((i for i, name in enumerate(names) if not self._pool.has(name)), len(names))

    def _bring(self, shelves: list[ShelfReader], tokens: Items[int], names: Items[bytes], i: int) -> bool:
        size = self._pool.block_size
        parent = names[i - 1] if i else self._pool.seed
        rows = _best(shelves, parent, tokens[i * size : (i + 1) * size], least=size)
        block = self._pool.place(names[i]) if rows is not None else None
        if rows is None or block is None:
            return False
        self._kv.write_rows(np.arange(block * size, (block + 1) * size), rows)
        self.recovered_tokens += size
        return True

    def blocks(self, seq: Sequence) -> bool:
        """Before a sequence is admitted: its full blocks. False: not in this step, others took its time."""
        if seq.sought:
            return True
        if time.perf_counter() > self._until:
            return False
        began = time.perf_counter()
        names = [self._pool.name(seq, i) for i in range((len(seq.tokens) - 1) // self._pool.block_size)]
        before = self._present(names)
        count = self.bring(seq.tokens, names)
        # Long ones may take several steps, as long as each gets them on.
        in_time = time.perf_counter() - began <= BRING_S
        seq.sought = count == len(names) or in_time or count <= before
        return seq.sought

    def rows(self, seq: Sequence) -> None:
        """Once it is admitted: the rows of the block that it computes on in, all but its last token's."""
        size = self._pool.block_size
        if not seq.sought or seq.computed % size:
            return
        i = seq.computed // size
        if i and self._writer is not None:
            self._owed.append((seq, 0, i))
            seq.kept = seq.computed
        wanted = seq.tokens[seq.computed : min(seq.computed + size, len(seq.tokens) - 1)]
        if not wanted:
            return
        with contextlib.ExitStack() as stack:
            rows = _best(self._shelves(stack), self._pool.parent(seq, i), wanted)
        if rows is not None:
            first = seq.blocks[i] * size
            self._kv.write_rows(np.arange(first, first + len(rows)), rows)
            seq.computed += len(rows)
            self.recovered_tokens += len(rows)

    def _shelves(self, stack: contextlib.ExitStack) -> list[ShelfReader]:
        """Those of all engines here that fit, this one's too: a stream may come back."""
        readers = []
        for name in shared_folder.names(self._folder):
            if not name.startswith(self._name[:_NODE]):
                continue
            try:
                descriptor = stack.enter_context(shared_folder.opened(self._folder, name))
                readers.append(ShelfReader(descriptor, self._format))
            except FileNotFoundError:
                continue  # removed since
            except (OSError, ValueError) as error:
                if name not in self._refused:
                    self._refused.add(name)
                    _LOG.warning("KV blocks in %s are left alone: %s", self._folder / name, error)
        return readers


def _behind(seq: Sequence) -> int:
    return seq.computed - seq.kept


def _best(shelves: Iterable[ShelfReader], parent: bytes, tokens: Items[int], least: int = 1) -> Rows | None:
    """Rows of most of these tokens after ``parent``, of ``least`` at least."""
    found = [
        (count, place, shelf)
        for shelf in shelves
        for place, count in [shelf.find(parent, tokens)]
        if count >= least
    ]
    for count, place, shelf in sorted(found, key=lambda each: -each[0]):
        rows = shelf.read(place, count, parent, tokens)
        if rows is not None:
            return rows
    return None


def open_shelf(options: EngineOptions, pool: BlockPool, kv: KvCache, member: int) -> KvShelf | None:
    """An engine's, where it is to have one."""
    if not (options.kv_shelf_mb and options.kv_shelf_folder and options.prefix_cache):
        return None
    if kv.keys.device.type != "cpu":
        _LOG.info("KV blocks are not kept for others: that is for engines on a CPU")
        return None
    return KvShelf(
        pool, kv, folder=Path(options.kv_shelf_folder), name=shelf_name(options.kv_shelf_node, member),
        meaning=f"{VERSION}\n{torch.__version__}\n{options.wire_dtype}\n{options.cache_seed}",
        nbytes=options.kv_shelf_mb << 20,
    )  # fmt: skip


__all__ = ["KvShelf", "open_shelf", "shelf_name"]
