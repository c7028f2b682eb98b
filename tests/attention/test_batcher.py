"""Continuous batching: budgets kept, nobody starves, blocks never leak, preemption loses nothing."""

from __future__ import annotations

import random

import pytest
from janus_attention.batcher import Batcher, BlockPool
from janus_attention.sequence import Finish, Sampling, Sequence


def make(number: int, prompt: int, max_tokens: int) -> Sequence:
    return Sequence(
        id=number,
        prompt=prompt,
        tokens=list(range(prompt)),
        sampling=Sampling(temperature=0, max_tokens=max_tokens),
    )


def step(batcher: Batcher, context: int = 10_000) -> list[Sequence]:
    """One step as the engine does it; the sequences that ended."""
    ended = []
    for piece in batcher.next_batch():
        seq, last = piece.seq, piece.last
        assert len(seq.blocks) * batcher.pool.block_size >= seq.computed + piece.count
        seq.computed += piece.count
        if last:
            seq.tokens.append(7)
            if seq.finish_after(7, context) is not None:
                batcher.remove(seq)
                ended.append(seq)
    return ended


def test_decode_comes_before_a_long_prompt() -> None:
    batcher = Batcher(BlockPool(100, 4), max_batch_tokens=8, max_sequences=8)
    short = make(1, 3, 50)
    batcher.add(short)
    step(batcher)
    batcher.add(make(2, 100, 5))
    for _ in range(5):
        pieces = batcher.next_batch()
        assert [piece.seq.id for piece in pieces] == [1, 2]
        assert [piece.count for piece in pieces] == [1, 7]
        for piece in pieces:
            piece.seq.computed += piece.count
        short.tokens.append(7)


def test_arrival_order_holds_when_blocks_are_short() -> None:
    batcher = Batcher(BlockPool(4, 4), max_batch_tokens=64, max_sequences=8)
    for number in range(3):
        batcher.add(make(number, 8, 4))
    assert [piece.seq.id for piece in batcher.next_batch()] == [0, 1]
    assert [seq.id for seq in batcher.waiting] == [2]


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_ends_and_no_block_leaks(seed: int) -> None:
    draw = random.Random(seed)
    pool = BlockPool(draw.randrange(6, 20), 4)
    budget = draw.randrange(1, 24)
    batcher = Batcher(pool, max_batch_tokens=budget, max_sequences=draw.randrange(1, 8))
    capacity = batcher.capacity
    left = {}
    for number in range(30):
        prompt = draw.randrange(1, capacity // 2)
        left[number] = make(number, prompt, draw.randrange(1, capacity // 2))
    pending = list(left.values())
    for _ in range(20_000):
        if pending and draw.random() < 0.3:
            batcher.add(pending.pop(0))
        pieces = batcher.next_batch()
        assert sum(piece.count for piece in pieces) <= budget
        assert len({piece.seq.id for piece in pieces}) == len(pieces)
        owned = [block for seq in batcher.running for block in seq.blocks]
        assert len(owned) == len(set(owned)) == pool.count - pool.free
        for seq in step(batcher, capacity):
            assert seq.generated == seq.sampling.max_tokens
            del left[seq.id]
        if not left:
            break
    assert not left
    assert pool.free == pool.count


def test_finish_reasons() -> None:
    seq = Sequence(
        id=1, prompt=2, tokens=[1, 2, 9],
        sampling=Sampling(max_tokens=3, min_tokens=0, stop_token_ids=frozenset({9})),
    )  # fmt: skip
    assert seq.finish_after(9, 100) is Finish.STOP
    assert seq.finish_after(8, 100) is None
    assert seq.finish_after(8, 3) is Finish.LENGTH
    seq.tokens += [8, 8]
    assert seq.finish_after(8, 100) is Finish.LENGTH
