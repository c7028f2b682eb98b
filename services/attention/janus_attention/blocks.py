"""KV blocks: who holds them, and which full ones may be used again by whoever has the same prefix.

A full block is named by a hash over its tokens, its predecessor's name and a seed (the model's fingerprint), so
equal names mean equal keys and values. Blocks are shared, never copied: what is shared is full, and nobody
writes to it. A named block that nobody holds stays until its place is needed, the longest unused first.

Pure bookkeeping; no tensors, no clock, no I/O.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Items

from janus_attention.sequence import Sequence

NAME_BYTES = 16


def block_name(parent: bytes, tokens: Items[int]) -> bytes:
    """16 bytes that name a full block: ``parent`` is its predecessor's name, or the seed."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=NAME_BYTES).digest()


def prefix_names(tokens: Items[int], block_size: int, seed: str) -> list[bytes]:
    """Names of the full blocks of ``tokens`` that a sequence with these tokens may find: all but its last one's."""
    names = [_seed_name(seed)]
    for i in range((len(tokens) - 1) // block_size):
        names.append(block_name(names[-1], tokens[i * block_size : (i + 1) * block_size]))
    return names[1:]


def _seed_name(seed: str) -> bytes:
    return hashlib.blake2b(seed.encode(), digest_size=NAME_BYTES).digest()


class BlockPool:
    """Blocks 0 .. count-1. ``caching``: full blocks outlive their sequences and are shared."""

    def __init__(self, count: int, block_size: int, *, caching: bool = False, seed: str = "") -> None:
        self.block_size = block_size
        self.count = count
        self.caching = caching
        self.hit_tokens = 0
        """Tokens that sequences found in the cache."""
        self.lookup_tokens = 0
        """Tokens that sequences brought when they looked."""
        self.evictions = 0
        """Named blocks given up for their place."""
        self.reached = 0
        """Blocks from this one on were never used."""
        self.seed = _seed_name(seed)
        """Name of what is before a first block."""
        # Lowest first; blocks without a name.
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._names: list[bytes | None] = [None] * count
        self._by_name: dict[bytes, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        """Named blocks without a holder, the longest unused first."""

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._unheld)

    @property
    def cached(self) -> int:
        """Of them, those that a prefix may find."""
        return len(self._unheld)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_size)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give ``seq`` blocks for ``tokens`` tokens in all; False, and nothing taken, when there are too few."""
        need = self.blocks_for(tokens) - len(seq.blocks)
        if need > self.free:
            return False
        for _ in range(need):
            block = self._take()
            self._holders[block] = 1
            seq.blocks.append(block)
        return True

    def admit(self, seq: Sequence, tokens: int) -> bool:
        """:meth:`grow` for a sequence without blocks: what the cache has of its tokens it need not compute.

        At least its last token is left to compute, as that gives the next one's logits.
        """
        found = self._find(seq)
        held = sum(1 for block in found if not self._holders[block])
        if self.blocks_for(tokens) - len(found) > self.free - held:
            return False
        for block in found:
            self._unheld.pop(block, None)
            self._holders[block] += 1
        seq.blocks += found
        seq.computed = len(found) * self.block_size
        self.hit_tokens += seq.computed
        self.lookup_tokens += len(seq.tokens) if self.caching else 0
        return self.grow(seq, tokens)

    def hold(self, names: Items[bytes]) -> list[int]:
        """Blocks with these names, until one is missing; nobody takes their places before :meth:`let_go`."""
        held: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            self._unheld.pop(block, None)
            self._holders[block] += 1
            held.append(block)
        return held

    def let_go(self, blocks: Items[int]) -> None:
        """Of what :meth:`hold` gave."""
        for block in reversed(blocks):
            self._drop(block)

    def place(self, name: bytes) -> int | None:
        """A block for what another worker computed under this name, to be found from now on. None: there is no room, or
        it is here already. The caller fills it before anyone looks."""
        if not self.caching or name in self._by_name or not self.free:
            return None
        block = self._take()
        self._names[block] = name
        self._by_name[name] = block
        self._unheld[block] = None
        return block

    def _find(self, seq: Sequence) -> list[int]:
        """Blocks of the longest prefix in the cache."""
        found: list[int] = []
        if self.caching:
            for i in range((len(seq.tokens) - 1) // self.block_size):
                block = self._by_name.get(self.name(seq, i))
                if block is None:
                    break
                found.append(block)
        return found

    def name(self, seq: Sequence, i: int) -> bytes:
        """Name of the sequence's i-th block, which its tokens fill. Tokens never change, names neither."""
        names, size = seq.block_names, self.block_size
        while len(names) <= i:
            first = len(names) * size
            names.append(block_name(names[-1] if names else self.seed, seq.tokens[first : first + size]))
        return names[i]

    def parent(self, seq: Sequence, i: int) -> bytes:
        """Name of the block before the sequence's i-th."""
        return self.name(seq, i - 1) if i else self.seed

    def has(self, name: bytes) -> bool:
        """Whether a prefix may find a block of this name."""
        return name in self._by_name

    def held(self, block: int) -> bool:
        """Whether any sequence has this block."""
        return self._holders[block] > 0

    def commit(self, seq: Sequence, before: int) -> None:
        """Name the blocks that became full since ``before`` tokens were computed: others may find them now."""
        if not self.caching:
            return
        for i in range(before // self.block_size, seq.computed // self.block_size):
            block, name = seq.blocks[i], self.name(seq, i)
            # Of two that computed the same at the same time, the first is found; the other stays its own.
            if self._names[block] is None and name not in self._by_name:
                self._names[block] = name
                self._by_name[name] = block

    def release(self, seq: Sequence) -> None:
        """Take all of a sequence's blocks back; what the cache forgets of them must be computed again."""
        for block in reversed(seq.blocks):  # a prefix is of use without its end, not the reverse
            self._drop(block)
        seq.blocks.clear()
        seq.computed = seq.kept = 0

    def _drop(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block] == 0:
            if self._names[block] is None:
                self._free.append(block)
            else:
                self._unheld[block] = None

    def _take(self) -> int:
        """A block for something new: the lowest free one, or that of the name longest unused."""
        if not self._free:
            return self._evict()
        block = self._free.pop()
        self.reached = max(self.reached, block + 1)
        return block

    def _evict(self) -> int:
        block, _ = self._unheld.popitem(last=False)
        name = self._names[block]
        assert name is not None
        del self._by_name[name]
        self._names[block] = None
        self.evictions += 1
        return block


__all__ = ["BlockPool", "block_name", "prefix_names"]
