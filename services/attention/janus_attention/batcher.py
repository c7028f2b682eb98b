"""Continuous batching at iteration level: who takes part in the next step, with how many tokens.

Pure bookkeeping over sequences and KV blocks; no tensors, no clock, no I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from janus_attention.sequence import Sequence


class BlockPool:
    """Free KV blocks. Block 0 .. count-1, handed out lowest first."""

    def __init__(self, count: int, block_size: int) -> None:
        self.block_size = block_size
        self.count = count
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks not in use."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_size)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give ``seq`` blocks for ``tokens`` tokens in all; False, and nothing taken, when there are too few."""
        need = self.blocks_for(tokens) - len(seq.blocks)
        if need > len(self._free):
            return False
        for _ in range(need):
            seq.blocks.append(self._free.pop())
        return True

    def release(self, seq: Sequence) -> None:
        """Take all of a sequence's blocks back; its tokens must be computed again."""
        self._free.extend(reversed(seq.blocks))
        seq.blocks.clear()
        seq.computed = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A sequence's share of a step: ``count`` tokens from ``seq.computed`` on."""

    seq: Sequence
    count: int

    @property
    def last(self) -> bool:
        """Whether the sequence's next token comes out of this step."""
        return self.count == self.seq.pending


class Batcher:
    """Running and waiting sequences of one attention worker.

    Running sequences come first, each one token or one chunk of its prompt, within ``max_batch_tokens``;
    then waiting ones in arrival order. When KV blocks run out the latest arrival gives its blocks up and
    is computed again later: nothing fails, nothing is lost.
    """

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_sequences: int) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def capacity(self) -> int:
        """Most tokens one sequence can have in the KV cache."""
        return self.pool.count * self.pool.block_size

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.pool.release(seq)

    def next_batch(self) -> list[Piece]:
        """Pieces of the next step, at most ``max_batch_tokens`` tokens; empty when there is no work."""
        pieces: list[Piece] = []
        budget = self.max_batch_tokens
        # Decoding sequences first: a long prompt must not hold their next token back.
        order = sorted(self.running, key=lambda seq: seq.pending > 1)
        for seq in order:
            if seq not in self.running or not budget:
                continue  # preempted by one before it
            count = min(seq.pending, budget)
            if self._make_room(seq, seq.computed + count, keep={piece.seq.id for piece in pieces}):
                pieces.append(Piece(seq, count))
                budget -= count
        while self.waiting and budget and len(self.running) < self.max_sequences:
            seq = self.waiting[0]
            count = min(seq.pending, budget)
            if not self.pool.grow(seq, seq.computed + count):
                break
            self.waiting.popleft()
            self.running.append(seq)
            pieces.append(Piece(seq, count))
            budget -= count
        return pieces

    def _make_room(self, seq: Sequence, tokens: int, keep: set[int]) -> bool:
        while not self.pool.grow(seq, tokens):
            victim = next((s for s in reversed(self.running) if s is not seq and s.id not in keep), None)
            if victim is None:
                # Everyone else already has a place in this step; this one waits for the next.
                return False
            self.running.remove(victim)
            self.pool.release(victim)
            self.waiting.appendleft(victim)
            self.preemptions += 1
        return True
