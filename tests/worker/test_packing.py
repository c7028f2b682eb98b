"""Packed rows: what a MoE worker needs, against the obvious reckoning, and back out of a payload."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from janus_transport import Frame, Header, Kind
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.packing import Needs, Piece, pack, packed_bytes, packed_rows, received, unpack
from janus_worker.rows import add_rows, put, rounded, row_bytes, take

EXPERTS, HIDDEN, TOPK = 12, 6, 3


def drawn(draw: np.random.Generator, tokens: int) -> Piece:
    ids = [draw.choice(EXPERTS, TOPK, replace=False) for _ in range(tokens)]
    return Piece.whole(
        draw.normal(size=(tokens, HIDDEN)).astype(np.float32),
        draw.random((tokens, TOPK)),
        np.array(ids, np.int32).reshape(tokens, TOPK),
    )


def framed(payload: np.ndarray, size: int, tokens: int, layer: int = 0) -> Frame:
    header = Header(
        kind=Kind.HIDDEN, epoch=1, step=1, source=9, layer=layer, tokens=tokens, topk=TOPK,
        flags=int(Flag.GATED), payload_bytes=size,
    )  # fmt: skip
    return Frame(header, payload[:size])


def placements(draw: np.random.Generator) -> list[list[list[int]]]:
    """Two layers of four workers with four experts each, some of them twice."""
    return [[list(draw.choice(EXPERTS, 4, replace=False)) for _ in range(4)] for _ in range(2)]


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_with_an_expert_of_the_workers_and_come_back_as_they_were(seed: int) -> None:
    draw = np.random.default_rng(seed)
    placement = placements(draw)
    needs, tokens = Needs(placement, EXPERTS), int(draw.integers(0, 20))
    piece = drawn(draw, tokens)
    ids = piece.ids_TK
    every = [ranks for n in (1, 2, 3, 4) for ranks in itertools.combinations(range(4), n)]
    for layer, ranks in itertools.product(range(2), every):
        rows = needs.rows(layer, ranks, ids)
        hosted = {expert for rank in ranks for expert in placement[layer][rank]}
        expected = [t for t in range(tokens) if set(ids[t].tolist()) & hosted]
        assert rows.tolist() == expected
        payload = np.full(4096, 255, np.uint8)
        size = pack(payload, [(piece, rows)])
        assert size == packed_bytes(len(rows), tokens, HIDDEN, TOPK)
        assert packed_rows(size, tokens, HIDDEN, TOPK) == len(rows)
        found = unpack(payload[:size], tokens, HIDDEN, TOPK)
        assert found is not None
        wanted = (piece.x_RD[expected], piece.weights_RK[expected], ids)
        for one, other in zip(found, wanted, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_rows_passed_on_are_those_that_would_have_been_sent_directly(seed: int, narrow: bool) -> None:
    """Three workers' rows to a node of two by one frame; of it, each worker's to its neighbour by another."""
    draw = np.random.default_rng(100 + seed)
    needs = Needs(placements(draw), EXPERTS)
    own = [drawn(draw, int(count)) for count in draw.integers(0, 9, size=3)]
    counts = [len(piece.ids_TK) for piece in own]
    whole, direct = np.zeros(8192, np.uint8), np.zeros(8192, np.uint8)
    size = pack(whole, [(piece, needs.rows(1, (2, 3), piece.ids_TK)) for piece in own], narrow=narrow)
    frame = framed(whole, size, sum(counts), layer=1)
    frame.header.flags |= int(Flag.NARROW) if narrow else 0
    arrived = received(frame, needs, (2, 3), hidden=HIDDEN, topk=TOPK)
    ends = list(itertools.accumulate(counts))
    parts = [arrived.part(end - count, end) for end, count in zip(ends, counts, strict=True)]
    for rank in (2, 3):
        wanted = [needs.rows(1, (rank,), piece.ids_TK) for piece in own]
        again = np.zeros(8192, np.uint8)
        one = pack(again, list(zip(parts, wanted, strict=True)), narrow=narrow)
        other = pack(direct, list(zip(own, wanted, strict=True)), narrow=narrow)
        assert one == other and np.array_equal(again[:one], direct[:other])
        for part, piece, rows in zip(parts, own, wanted, strict=True):
            exact = torch.from_numpy(piece.x_RD[rows])
            there = torch.from_numpy(part.x_RD[part.places(rows)])
            assert torch.equal(there, rounded(exact) if narrow else exact)
            assert np.array_equal(part.ids_TK, piece.ids_TK)


def test_frames_that_are_refused() -> None:
    needs, payload = Needs([[[0, 1], [2, 3]]], 4), np.zeros(512, np.uint8)
    piece = Piece.whole(
        np.ones((2, HIDDEN), np.float32), np.ones((2, TOPK)), np.array([[0, 1, 0], [2, 3, 2]], np.int32)
    )
    size = pack(payload, [(piece, np.array([0, 1]))])
    assert len(received(framed(payload, size, 2), needs, (0, 1), hidden=HIDDEN, topk=TOPK).x_RD) == 2
    for ranks, size_, match in (
        ((1,), size, "sent 2 rows; 1 of its 2 are for this worker"),
        ((), size, "sent 2 rows; 0 of its 2"),
        ((0, 1), size - 1, "no rows are that many"),
    ):
        with pytest.raises(ProtocolError, match=match) as caught:
            received(framed(payload, size_, 2), needs, ranks, hidden=HIDDEN, topk=TOPK)
        assert caught.value.member == 9
    for bad in (-1, 4):
        payload[size - 4 : size].view(np.int32)[:] = bad
        with pytest.raises(ProtocolError, match=r"outside 0\.\.3"):
            received(framed(payload, size, 2), needs, (0, 1), hidden=HIDDEN, topk=TOPK)


@pytest.mark.parametrize("seed", range(5))
def test_the_expected_share_is_that_of_all_choices_of_experts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    placement = placements(draw)
    needs = Needs(placement, EXPERTS)
    for ranks in ((0,), (1, 2), (0, 1, 2, 3)):
        found = Fraction(0)
        for layer in placement:
            hosted = {int(expert) for rank in ranks for expert in layer[rank]}
            hits = sum(bool(set(ids) & hosted) for ids in itertools.combinations(range(EXPERTS), TOPK))
            found += Fraction(hits, math.comb(EXPERTS, TOPK) * len(placement))
        assert needs.share(ranks, TOPK) == pytest.approx(float(found))


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


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_added_to_where_they_belong(seed: int) -> None:
    draw = np.random.default_rng(seed)
    whole = draw.normal(size=(12, 5))
    sums = whole[2:11]  # a view, as sums of one worker among others are
    rows = np.flatnonzero(draw.random(9) < 0.5)
    part = draw.normal(size=(len(rows), 5))
    expected = whole.copy()
    for row, values in zip(rows.tolist(), part, strict=True):
        expected[2 + row] += values
    add_rows(sums, rows, part)
    assert np.array_equal(whole, expected)


@pytest.mark.parametrize("size", [0, 11, 12 * 2 - 1, 24 + 47, 24 + 3 * 48])
def test_sizes_that_no_rows_have(size: int) -> None:
    """Two tokens of three ids; a row has 6 x 4 + 3 x 8 bytes."""
    assert packed_rows(size, 2, 6, 3) is None
    assert unpack(np.zeros(size, np.uint8), 2, 6, 3) is None
