"""What a MoE worker accepts: frames are checked before any byte of them is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from janus_moe.gather import check, gather, gather_packed
from janus_transport import Frame, Header, Kind
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.packing import Needs, Piece, pack

HIDDEN, TOPK, EXPERTS, LAYERS = 8, 2, 4, 3


def frame(count: int, **changes: Any) -> Frame:
    payload = np.arange(count * HIDDEN, dtype=np.float32).tobytes()
    fields: dict[str, Any] = {
        "kind": Kind.HIDDEN, "epoch": 1, "step": 5, "layer": 1, "source": 9, "tokens": count, "topk": TOPK,
        "payload_bytes": len(payload), **changes,
    }  # fmt: skip
    return Frame(Header(**fields), np.frombuffer(payload, np.uint8).copy())


def accept(item: Frame) -> None:
    check(item, step=5, layer=1, layers=LAYERS, hidden=HIDDEN, topk=TOPK)


def test_good_frames_become_one_batch() -> None:
    frames = [frame(3), frame(1), frame(2)]
    for item in frames:
        accept(item)
    batch = gather(frames, hidden=HIDDEN)
    assert batch.spans == ((0, 3), (3, 4), (4, 6))
    assert torch.equal(batch.x_TD[4:], torch.arange(16.0).view(2, HIDDEN))
    assert batch.ids_TK is None and batch.weights_TK is None and batch.rows_R is None


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (frame(2, kind=Kind.PARTIAL), "takes HIDDEN alone"),
        (frame(2, layer=LAYERS), r"MoE layers 0\.\.2"),
        (frame(2, step=4), "step 4 layer 1; expected step 5"),
        (frame(2, layer=2), "layer 2; expected step 5 layer 1"),
        (frame(2, lane=1), "lane 1 of step 5 layer 1; expected lane 0"),
        (frame(2, payload_bytes=63), "63 bytes for 2 tokens; expected 64"),
        (frame(2, tokens=3), "expected 96"),
        (frame(2, flags=int(Flag.GATED), topk=3), "3 experts per token; the model routes to 2"),
        (frame(2, flags=int(Flag.GATED), tokens=1, payload_bytes=17), "17 bytes of packed rows for 1 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(bad: Frame, match: str) -> None:
    with pytest.raises(ProtocolError, match=match) as caught:
        accept(bad)
    assert caught.value.member == 9


NEEDS = Needs([[[0, 1], [2, 3]]] * LAYERS, EXPERTS)


def packed(ids: list[list[int]], rows: list[int], **changes: Any) -> Frame:
    x = np.arange(len(ids) * HIDDEN, dtype=np.float32).reshape(-1, HIDDEN)
    table = np.array(ids, np.int32).reshape(-1, TOPK)
    payload = np.zeros(4096, np.uint8)
    piece = Piece.whole(x, np.full((len(ids), TOPK), 0.5), table)
    size = pack(payload, [(piece, np.array(rows, np.int64))])
    fields: dict[str, Any] = {
        "kind": Kind.HIDDEN, "epoch": 1, "step": 5, "layer": 1, "source": 9, "tokens": len(ids), "topk": TOPK,
        "flags": int(Flag.GATED), "payload_bytes": size, **changes,
    }  # fmt: skip
    return Frame(Header(**fields), payload[:size].copy())


def test_packed_frames_become_the_rows_of_one_worker() -> None:
    frames = [
        packed([[0, 2], [2, 3], [1, 0]], [0, 2]),
        packed([[3, 2]], []),
        packed([[2, 1], [0, 1]], [0, 1]),
    ]
    for item in frames:
        accept(item)
    batch = gather_packed(frames, NEEDS, 0, hidden=HIDDEN, topk=TOPK)
    assert batch.rows_R is not None and batch.rows_R.tolist() == [0, 2, 4, 5]
    assert batch.spans == ((0, 2), (2, 2), (2, 4))
    assert batch.ids_TK is not None and batch.ids_TK.tolist() == [
        [0, 2],
        [2, 3],
        [1, 0],
        [3, 2],
        [2, 1],
        [0, 1],
    ]
    assert batch.weights_TK is not None and batch.weights_TK.shape == (4, TOPK)
    assert batch.x_TD[:, 0].tolist() == [0, 16, 0, 8]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (packed([[0, 2], [2, 3]], [0, 1]), "sent 2 rows; 1 of its 2 are for this worker"),
        (packed([[0, 2], [2, 4]], [0]), r"outside 0\.\.3"),
        (packed([[0, 2], [2, -1]], [0]), r"outside 0\.\.3"),
        (frame(2), "gates where its peers do not"),
    ],
)
def test_packed_frames_that_are_refused(bad: Frame, match: str) -> None:
    accept(bad)
    good = packed([[0, 2]], [0])
    with pytest.raises(ProtocolError, match=match):
        gather_packed([good, bad], NEEDS, 0, hidden=HIDDEN, topk=TOPK)


def test_gated_and_plain_do_not_mix() -> None:
    with pytest.raises(ProtocolError, match="gates where its peers do not"):
        gather([frame(1), packed([[0, 2]], [0])], hidden=HIDDEN)
