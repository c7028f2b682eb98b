"""Continuous batching at iteration level: who takes part in the next step, with how many tokens.

Pure bookkeeping over sequences and KV blocks; no tensors, no clock, no I/O.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Protocol

from janus_attention.blocks import BlockPool
from janus_attention.budget import PrefillBudget, share
from janus_attention.drafter import Drafter
from janus_attention.sequence import Sequence

_PATIENCE = 4
"""Steps that streams from elsewhere may take whole, before new prompts have a part of one again."""
_PREFILLS = 8
"""Most prompts under way at a time: they share the budget, and each holds blocks for all of its tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A sequence's share of a step: ``count`` tokens from ``seq.computed`` on, the drafts last."""

    seq: Sequence
    count: int
    draft: tuple[int, ...] = ()
    """Guesses of what follows ``seq.tokens``: the step gives logits after each, which tell whether it was right."""

    @property
    def last(self) -> bool:
        """Whether the sequence's next token comes out of this step."""
        return self.count - len(self.draft) == self.seq.pending

    @property
    def rows(self) -> int:
        """Rows of logits that it needs: those of its last tokens."""
        return 1 + len(self.draft) if self.last else 0

    @property
    def decodes(self) -> bool:
        """Whether it is one stream's next token rather than a chunk of a prompt."""
        return self.count - len(self.draft) == 1

    @property
    def tokens(self) -> list[int]:
        """The ``count`` token ids."""
        first = self.seq.computed
        return [*self.seq.tokens[first : first + self.count - len(self.draft)], *self.draft]


class Finder(Protocol):
    """Finds what other workers have computed of a sequence (:class:`janus_attention.shelf.KvShelf`)."""

    def blocks(self, seq: Sequence) -> bool:
        """Put its full blocks into the cache before it is admitted; False: it must wait for the next step."""

    def rows(self, seq: Sequence) -> None:
        """Fill more of its own blocks once it is admitted."""


class Batcher:
    """Running and waiting sequences of one attention worker.

    A sequence's rank is its priority; then those that were elsewhere before, by when their clients asked; then new
    ones by arrival. Streams that decode come first, each one token (and drafts); then those from elsewhere, one after
    the other, within a budget of their own; then up to eight prompts share what the prefill budget leaves (a block's
    tokens, when they have had nothing for four steps), those longest not served first;
    then waiting sequences are admitted by rank, each with blocks for all of its tokens. When blocks run out the
    lowest in rank gives its own up and is computed again later: nothing fails, nothing is lost. Only those of
    lower rank are preempted for someone, so the first in rank always gets on.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_sequences: int,
        budget: PrefillBudget | None = None,
        drafter: Drafter | None = None,
        draft_tokens: int = 0,
        finder: Finder | None = None,
    ) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.budget = budget or PrefillBudget(most=max_batch_tokens, fixed=max_batch_tokens)
        self.context = self.capacity
        """Most tokens of a sequence."""
        self.running: list[Sequence] = []
        """By rank."""
        self.waiting: list[Sequence] = []
        """By rank."""
        self.preemptions = 0
        self.others_decode = False
        """Whether streams of other workers decode: their steps are ours, so our prompts must not hold them up."""
        self.ready_blocks = pool.count
        """Blocks, from the first, whose memory is ready; prompts beside decoding streams wait for theirs."""
        self._finder = finder
        self._drafter = drafter
        self._draft_tokens = draft_tokens if drafter else 0
        self._arrivals = 0
        self._step = 0
        self._left = 0
        """Tokens that the step being put together has room for."""

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def capacity(self) -> int:
        """Most tokens one sequence can have in the KV cache."""
        return self.pool.count * self.pool.block_size

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        self._arrivals += 1
        seq.arrival = self._arrivals
        bisect.insort(self.waiting, seq, key=_rank)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.pool.release(seq)

    def observe(self, pieces: list[Piece], seconds: float) -> None:
        """A step of these (none: of other workers) took so long: the prefill budget learns from it."""
        prompts = sum(piece.count for piece in pieces if not piece.decodes)
        decoding = sum(1 for piece in pieces if piece.decodes) + self.others_decode
        self.budget.observe(decoding=decoding, prompt_tokens=prompts, seconds=seconds)

    def next_batch(self) -> list[Piece]:
        """Pieces of the next step, at most ``max_batch_tokens`` tokens; empty when there is no work."""
        self._step += 1
        self._left = self.max_batch_tokens
        pieces: dict[int, Piece] = {}
        for seq in sorted((s for s in self.running if s.pending == 1), key=_turn):
            self._decode(seq, pieces)
        self._admit(pieces)
        decoding = len(pieces) + self.others_decode
        prompts = sorted((s for s in self.running if s.pending > 1), key=_turn)
        if decoding:
            size = self.pool.block_size
            prompts = [s for s in prompts if s.moved or s.blocks[s.computed // size] < self.ready_blocks]
        if prompts:
            left = self.budget.tokens(decoding)
            if any(seq.moved for seq in prompts):
                new = [s for s in prompts if not s.moved]
                waited = any(self._step - max(s.served, s.admitted) > _PATIENCE for s in new)
                least = min(left, self.pool.block_size) if waited else 0
                budget = min(self.budget.moved(decoding), self._left - least)
                left = max(least, left - self._move([s for s in prompts if s.moved], budget, pieces))
                prompts = new
            left = max(0, min(self._left, left))
            shares = share(left, [seq.pending for seq in prompts], self.pool.block_size)
            for seq, count in zip(prompts, shares, strict=True):
                if count:
                    pieces[seq.id] = Piece(seq, count)
        for piece in pieces.values():
            piece.seq.served = self._step
        return list(pieces.values())

    def _move(self, moved: list[Sequence], budget: int, pieces: dict[int, Piece]) -> int:
        """Those that were under way elsewhere, each as a whole where it fits; the tokens that they take."""
        left = most = min(self._left, budget)
        for seq in sorted(moved, key=_rank):
            if count := min(left, seq.pending):
                pieces[seq.id] = Piece(seq, count)
                left -= count
        self._left -= most - left
        return most - left

    def _decode(self, seq: Sequence, pieces: dict[int, Piece]) -> None:
        if self._left < 1 or not seq.blocks:
            return  # without blocks: preempted by one before it
        draft = self._draft(seq, self._left - 1)
        if draft and not self.pool.grow(seq, len(seq.tokens) + len(draft)):
            draft = ()  # a guess is not worth a preemption
        if self._make_room(seq, len(seq.tokens), pieces):
            pieces[seq.id] = Piece(seq, 1 + len(draft), draft)
            self._left -= 1 + len(draft)

    def _draft(self, seq: Sequence, most: int) -> tuple[int, ...]:
        if self._drafter is None:
            return ()
        room = min(seq.sampling.max_tokens - seq.generated, self.context - len(seq.tokens)) - 1
        most = min(most, room, self._draft_tokens)
        return tuple(self._drafter.propose(seq.tokens, most)[:most]) if most > 0 else ()

    def _make_room(self, seq: Sequence, tokens: int, pieces: dict[int, Piece]) -> bool:
        while not self.pool.grow(seq, tokens):
            victim = self.running[-1]
            if victim is seq:
                # All others are before it: it keeps its blocks and waits for one of them to end.
                return False
            self._preempt(victim, pieces)
        return True

    def _preempt(self, victim: Sequence, pieces: dict[int, Piece]) -> None:
        self.running.remove(victim)
        if (piece := pieces.pop(victim.id, None)) is not None:
            self._left += piece.count
        self.pool.release(victim)
        bisect.insort(self.waiting, victim, key=_rank)
        self.preemptions += 1

    def _admit(self, pieces: dict[int, Piece]) -> None:
        """Waiting sequences by rank, until one has no place; a lower priority takes the place of a higher one."""
        prefills = sum(1 for seq in self.running if seq.pending > 1 and not seq.moved)
        while self.waiting and (prefills < _PREFILLS or self.waiting[0].moved):
            seq = self.waiting[0]
            full = len(self.running) >= self.max_sequences
            finder = self._finder if seq.again else None
            room = self.pool.free >= self.pool.blocks_for(len(seq.tokens))
            if finder is not None and not full and room and not finder.blocks(seq):
                return
            while full or not self.pool.admit(seq, len(seq.tokens)):
                victim = self.running[-1] if self.running else None
                if victim is None or victim.priority <= seq.priority:
                    return
                prefills -= victim.pending > 1 and not victim.moved
                self._preempt(victim, pieces)
                full = False
            if finder is not None:
                finder.rows(seq)
            self.waiting.remove(seq)
            seq.admitted = self._step
            bisect.insort(self.running, seq, key=_rank)
            prefills += not seq.moved
            if seq.pending == 1:
                self._decode(seq, pieces)


def _rank(seq: Sequence) -> tuple[int, bool, int, int]:
    # Where streams are moved again and again, one that comes last each time would never have a token.
    asked_ns = seq.arrived_ns - 1_000_000 * seq.waited_ms if seq.again else 0
    return seq.priority, not seq.again, asked_ns, seq.arrival


def _turn(seq: Sequence) -> tuple[int, int, int]:
    return seq.priority, seq.served, seq.arrival
