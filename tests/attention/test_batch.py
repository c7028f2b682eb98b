"""A step's tensors, whole and split: the halves are the whole, token for token, and sequences may straddle them."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from janus_attention.batch import build
from janus_attention.batcher import Piece
from janus_attention.sequence import Sampling, Sequence
from janus_models.decoder import BatchMeta

BLOCK = 4


def pieces(rng: random.Random) -> list[Piece]:
    found = []
    blocks = list(range(400))
    rng.shuffle(blocks)
    for i in range(rng.randint(1, 7)):
        computed, count = rng.choice([0, rng.randint(1, 30)]), rng.choice([1, 1, rng.randint(1, 20)])
        seq = Sequence(
            id=i, prompt=computed + 1, tokens=[rng.randrange(100) for _ in range(computed + count)],
            sampling=Sampling(),
        )  # fmt: skip
        seq.computed = computed
        seq.blocks = [blocks.pop() for _ in range(-(-(computed + count) // BLOCK) + rng.randint(0, 2))]
        found.append(Piece(seq, count))
    return found


def rows(meta: BatchMeta) -> list[tuple[int, int, int, tuple[int, ...]]]:
    """Of each token: position, slot, context it may see, blocks; the slow, obvious reading of a batch."""
    found = []
    starts = meta.query_starts.tolist()
    assert starts[0] == 0 and starts[-1] == len(meta.positions)
    for i, (first, end) in enumerate(itertools.pairwise(starts)):
        assert first < end, "a sequence without tokens"
        for row in range(first, end):
            seen = int(meta.context_lens[i]) - (end - 1 - row)
            position = int(meta.positions[row])
            assert seen == position + 1
            blocks = tuple(meta.block_tables[i, : -(-seen // BLOCK)].tolist())
            found.append((position, int(meta.slots[row]), seen, blocks))
    return found


@pytest.mark.parametrize("seed", range(200))
def test_halves_are_the_whole(seed: int) -> None:
    work = pieces(random.Random(seed))
    whole, split = build(work, BLOCK), build(work, BLOCK, split=True)
    assert len(whole.lanes) == 1
    assert torch.equal(whole.token_ids, split.token_ids) and torch.equal(whole.last_rows, split.last_rows)
    total = len(whole.token_ids)
    assert len(split.lanes) == (2 if total > 1 else 1)
    assert [len(lane.positions) for lane in split.lanes] == (
        [total // 2, total - total // 2] if total > 1 else [1]
    )
    assert [row for lane in split.lanes for row in rows(lane)] == rows(whole.lanes[0])
