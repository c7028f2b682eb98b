"""Continuous batching: budgets kept, nobody starves, blocks never leak, preemption loses nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items

import pytest
from janus_attention.batcher import Batcher, Piece
from janus_attention.blocks import BlockPool
from janus_attention.budget import PrefillBudget
from janus_attention.sequence import Finish, Sampling, Sequence


def make(number: int, prompt: int, max_tokens: int) -> Sequence:
    return Sequence(
        id=number,
        prompt=prompt,
        tokens=list(range(prompt)),
        sampling=Sampling(temperature=0, max_tokens=max_tokens),
    )


def step(batcher: Batcher, pieces: list[Piece], context: int = 10_000) -> list[Sequence]:
    """One step as the engine does it, each new token being 7; the sequences that ended."""
    ended = []
    for piece in pieces:
        seq, before, rows = piece.seq, piece.seq.computed, piece.rows
        assert len(piece.tokens) == piece.count
        assert len(seq.blocks) * batcher.pool.block_size >= before + piece.count
        seq.computed += piece.count - len(piece.draft)
        batcher.pool.commit(seq, before)
        for row in range(rows):
            seq.tokens.append(7)
            if seq.finish_after(7, context) is not None:
                batcher.remove(seq)
                ended.append(seq)
                break
            if row == rows - 1 or piece.draft[row] != 7:
                break
            seq.computed += 1
            batcher.pool.commit(seq, seq.computed - 1)
    return ended


def test_decode_comes_before_a_long_prompt() -> None:
    batcher = Batcher(BlockPool(100, 4), max_batch_tokens=8, max_sequences=8)
    short = make(1, 3, 50)
    batcher.add(short)
    step(batcher, batcher.next_batch())
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


class Guesses:
    """Drafts at random; ``step`` below finds the first one right now and then."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def propose(self, tokens: Items[int], most: int) -> list[int]:
        return [self.draw.choice([7, 8]) for _ in range(self.draw.randint(0, most))]


@pytest.mark.parametrize("seed", range(30))
def test_every_sequence_ends_and_no_block_leaks(seed: int) -> None:
    draw = random.Random(seed)
    pool = BlockPool(draw.randrange(6, 20), 4, caching=seed % 2 == 1)
    budget = draw.randrange(1, 24)
    batcher = Batcher(
        pool, max_batch_tokens=budget, max_sequences=draw.randrange(1, 8),
        budget=PrefillBudget(most=budget, fixed=draw.choice([0, 1, budget])),
        drafter=Guesses(draw), draft_tokens=draw.choice([0, 3]),
    )  # fmt: skip
    capacity = batcher.capacity
    left = {}
    for number in range(30):
        prompt = draw.randrange(1, capacity // 2)
        left[number] = make(number, prompt, draw.randrange(1, capacity // 2))
        left[number].priority = draw.choice([0, 0, 0, -1])
    pending = list(left.values())
    for _ in range(20_000):
        if pending and draw.random() < 0.3:
            batcher.add(pending.pop(0))
        pieces = batcher.next_batch()
        assert sum(piece.count for piece in pieces) <= budget
        assert len({piece.seq.id for piece in pieces}) == len(pieces)
        assert all(piece.seq in batcher.running for piece in pieces)
        owned = [block for seq in batcher.running for block in seq.blocks]
        assert len(set(owned)) == pool.count - pool.free
        assert pool.caching or len(owned) == len(set(owned))
        for seq in step(batcher, pieces, capacity):
            assert seq.generated == seq.sampling.max_tokens
            del left[seq.id]
        batcher.observe(pieces, 0.01 * draw.random())
        if not left:
            break
    assert not left
    assert pool.free == pool.count


def test_a_short_prompt_overtakes_long_ones_and_they_share_alike() -> None:
    batcher = Batcher(BlockPool(1000, 4), max_batch_tokens=24, max_sequences=8)
    long = [make(number, 600, 5) for number in range(3)]
    for seq in long:
        batcher.add(seq)
    for _ in range(10):
        step(batcher, batcher.next_batch())
    assert {seq.computed for seq in long} == {80}
    batcher.add(make(9, 10, 1))
    ended = [step(batcher, batcher.next_batch()) for _ in range(3)]
    assert [seq.id for some in ended for seq in some] == [9]


def test_prompts_take_turns_where_the_budget_is_less_than_a_block() -> None:
    batcher = Batcher(
        BlockPool(1000, 4), max_batch_tokens=64, max_sequences=8, budget=PrefillBudget(most=64, fixed=3)
    )
    stream, long = make(0, 1, 500), [make(number, 300, 5) for number in (1, 2)]
    batcher.add(stream)
    step(batcher, batcher.next_batch())
    for seq in long:
        batcher.add(seq)
    for _ in range(40):
        step(batcher, batcher.next_batch())
    assert [seq.computed for seq in long] == [60, 60]
    assert stream.generated == 41


def test_the_lowest_in_rank_gives_its_blocks_up() -> None:
    batcher = Batcher(BlockPool(6, 4), max_batch_tokens=64, max_sequences=8)
    seqs = [make(number, 7, 40) for number in range(3)]
    seqs[0].priority = 1
    for seq in seqs:
        batcher.add(seq)
    for _ in range(3):
        step(batcher, batcher.next_batch())
    assert batcher.waiting == [seqs[0]] and batcher.preemptions == 1
    assert [seq.computed for seq in seqs] == [0, 9, 9]


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


def test_streams_moved_here_come_before_new_prompts_and_as_a_whole() -> None:
    budget = PrefillBudget(most=512, max_stall=1.7)
    for tokens, seconds in (
        (0, 0.1),
        (20, 0.12),
    ):  # a millisecond a token: 250 of moved streams, 70 of new ones
        budget.observe(decoding=4, prompt_tokens=tokens, seconds=seconds)
    batcher = Batcher(BlockPool(400, 16), max_batch_tokens=512, max_sequences=64, budget=budget)
    batcher.others_decode = True
    for number in range(10):
        batcher.add(make(number, 60, 50))
    moved = [make(number, 60, 50) for number in range(100, 112)]
    for seq in moved:
        seq.tokens += [7] * 40
        seq.resumed = 40
        batcher.add(seq)
    pieces = batcher.next_batch()
    assert [(p.seq.id, p.count) for p in pieces] == [(100, 100), (101, 100), (102, 50)]
    assert sum(seq in batcher.running for seq in moved) == 12  # beyond the eight prompts at a time
    assert not any(seq.moved for seq in step(batcher, pieces))
    assert not moved[0].moved and moved[2].moved
    pieces = batcher.next_batch()
    assert [p.seq.id for p in pieces][:2] == [100, 101]  # they decode
    assert [(p.seq.id, p.count) for p in pieces][2:] == [(102, 50), (103, 100), (104, 100)]
    for _ in range(5):
        step(batcher, pieces)
        pieces = batcher.next_batch()
    assert not any(seq.moved for seq in moved)
    assert any(p.seq.id < 10 for p in pieces)


def test_a_new_prompt_gets_on_though_streams_are_moved_here_in_every_step() -> None:
    budget = PrefillBudget(most=64, fixed=32)
    batcher = Batcher(BlockPool(4000, 16), max_batch_tokens=64, max_sequences=500, budget=budget)
    batcher.others_decode = True
    new = make(0, 100, 5)
    batcher.add(new)
    steps = 0
    while not new.generated:
        steps += 1
        assert steps < 50, f"{new.computed} tokens after 50 steps"
        moved = make(steps, 60, 50)
        moved.waited_ms = 1000
        batcher.add(moved)
        pieces = batcher.next_batch()
        assert sum(p.count for p in pieces if not p.decodes) <= 64
        assert sum(p.count for p in pieces if p.seq is new) <= 16
        step(batcher, pieces)
    assert steps >= 25, "a block in five steps: those moved come first"


def test_of_moved_streams_the_one_whose_client_asked_first_comes_first() -> None:
    batcher = Batcher(BlockPool(400, 16), max_batch_tokens=512, max_sequences=1)
    waits = {1: 0, 2: 5, 3: 70_000, 4: 9000, 5: 0}
    for number, waited in waits.items():
        seq = make(number, 20, 50)
        seq.waited_ms = waited
        batcher.add(seq)
    assert [seq.id for seq in batcher.waiting] == [3, 4, 2, 1, 5]
    again = make(6, 20, 50)
    again.tokens.append(7)
    again.resumed, again.waited_ms = 1, 20_000
    assert again.moved
    batcher.add(again)
    assert [seq.id for seq in batcher.waiting] == [3, 6, 4, 2, 1, 5]
