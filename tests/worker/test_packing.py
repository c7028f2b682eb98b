"""Packed rows: what a MoE worker needs, against the obvious reckoning, and back out of a payload."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from janus_worker.packing import Needs, pack, packed_bytes, packed_rows, unpack
from janus_worker.rows import put, rounded, row_bytes, take


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_with_an_expert_of_the_worker_and_come_back_as_they_were(seed: int) -> None:
    draw = np.random.default_rng(seed)
    experts, hidden, tokens, topk = 12, 6, int(draw.integers(0, 20)), 3
    placement = [[list(draw.choice(experts, 4, replace=False)) for _ in range(4)] for _ in range(2)]
    needs = Needs(placement, experts)
    ids = np.stack([draw.choice(experts, topk, replace=False) for _ in range(tokens)] or [np.zeros(3)][:0])
    ids = ids.astype(np.int32).reshape(tokens, topk)
    x = draw.normal(size=(tokens, hidden)).astype(np.float32)
    weights = draw.random((tokens, topk))
    for layer in range(2):
        for rank in range(4):
            rows = needs.rows(layer, rank, ids)
            expected = [t for t in range(tokens) if set(ids[t].tolist()) & set(placement[layer][rank])]
            assert rows.tolist() == expected
            payload = np.full(4096, 255, np.uint8)
            size = pack(payload, x, weights, ids, rows)
            assert size == packed_bytes(len(rows), tokens, hidden, topk)
            assert packed_rows(size, tokens, hidden, topk) == len(rows)
            found = unpack(payload[:size], tokens, hidden, topk)
            assert found is not None
            for one, other in zip(found, (x[expected], weights[expected], ids), strict=True):
                assert np.array_equal(one, other)


@pytest.mark.parametrize("narrow", [False, True])
def test_hidden_states_come_back_as_they_were_or_rounded(narrow: bool) -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(7, 10, generator=draw) * torch.logspace(-30, 30, 10)
    payload = np.full(1000, 255, np.uint8)
    assert put(payload, x, narrow) == 7 * row_bytes(10, narrow)
    found = torch.from_numpy(take(payload, 7, 10, narrow))
    assert torch.equal(found, rounded(x) if narrow else x)
    assert ((found - x).abs() <= x.abs() * 2**-8).all()
    again = np.zeros(1000, np.uint8)
    size = put(again, found, narrow)
    assert np.array_equal(again[:size], payload[:size]), "passing on changes nothing"


@pytest.mark.parametrize("size", [0, 11, 12 * 2 - 1, 24 + 47, 24 + 3 * 48])
def test_sizes_that_no_rows_have(size: int) -> None:
    """Two tokens of three ids; a row has 6 x 4 + 3 x 8 bytes."""
    assert packed_rows(size, 2, 6, 3) is None
    assert unpack(np.zeros(size, np.uint8), 2, 6, 3) is None
