"""AGate: the rows of attention workers that some MoE workers need, and how they lie in a frame.

Every MoE worker gets all ids, as each computes the schedule of the whole cohort, but hidden states and weights of
those tokens alone that are routed to an expert it hosts; on the way there a frame carries what any of the MoE workers
beyond it needs. Both sides work out which rows these are from ids and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from janus_transport import Frame

from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.rows import put, row_bytes, take

_NARROW = int(Flag.NARROW)
Array = np.ndarray[Any, np.dtype[Any]]


class Needs:
    """Rows that MoE workers need, under one layout."""

    def __init__(self, placement: Sequence[Sequence[Sequence[int]]], num_experts: int) -> None:
        """``placement``: experts by MoE layer and MoE rank."""
        self.num_experts = num_experts
        self._hosted = [np.zeros((len(layer), num_experts), bool) for layer in placement]
        for hosted, layer in zip(self._hosted, placement, strict=True):
            for rank, experts in enumerate(layer):
                hosted[rank, list(experts)] = True
        self._masks: dict[tuple[int, tuple[int, ...]], Array] = {}

    def rows(self, layer: int, ranks: tuple[int, ...], ids_TK: Array) -> Array:
        """int64 [R], ascending: tokens with an expert that one of these MoE ranks hosts; ids int32 [T, k] in range."""
        mask = self._masks.get((layer, ranks))
        if mask is None:
            mask = self._masks[layer, ranks] = np.any(
                self._hosted[layer][list(ranks)], axis=0, keepdims=False
            )
        found: Array = np.flatnonzero(mask[ids_TK].any(axis=1))
        return found

    def share(self, ranks: Sequence[int], topk: int) -> float:
        """Part of all rows that these ranks need, the mean over layers, where all experts are as likely."""
        layers = []
        for hosted in self._hosted:
            others = self.num_experts - int(hosted[list(ranks)].any(axis=0).sum())
            # None of k different experts is hosted: drawn one after the other.
            none = np.prod([max(0, others - i) / (self.num_experts - i) for i in range(topk)])
            layers.append(1.0 - float(none))
        return float(np.mean(layers)) if layers else 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one attention worker, or of several in rank order, and the ids of all their tokens."""

    x_RD: Array
    """fp32"""
    weights_RK: Array
    """fp64"""
    ids_TK: Array
    """int32"""
    rows_R: Array
    """int64, ascending: which of the tokens these rows are."""

    @classmethod
    def whole(cls, x_TD: Array, weights_TK: Array, ids_TK: Array) -> Piece:
        """All rows."""
        return cls(x_TD, weights_TK, ids_TK, np.arange(len(ids_TK)))

    def places(self, rows: Array) -> Array:
        """Where ``rows``, tokens that are all here, lie in ``x_RD``."""
        return rows if len(self.rows_R) == len(self.ids_TK) else np.searchsorted(self.rows_R, rows)

    def part(self, first: int, end: int) -> Piece:
        """Of the tokens [first, end) alone, counted from ``first``."""
        low, high = np.searchsorted(self.rows_R, (first, end))
        return Piece(
            self.x_RD[low:high],
            self.weights_RK[low:high],
            self.ids_TK[first:end],
            self.rows_R[low:high] - first,
        )


def packed_bytes(rows: int, tokens: int, hidden: int, topk: int, *, narrow: bool = False) -> int:
    """Of a payload: hidden states [R, d] and weights fp64 [R, k] of the rows, ids int32 [T, k] of all tokens."""
    return rows * (row_bytes(hidden, narrow) + 8 * topk) + 4 * topk * tokens


def packed_rows(size: int, tokens: int, hidden: int, topk: int, *, narrow: bool = False) -> int | None:
    """How many rows a payload of this size has; None where there is no such payload."""
    rows, rest = divmod(size - 4 * topk * tokens, row_bytes(hidden, narrow) + 8 * topk)
    return rows if rest == 0 and 0 <= rows <= tokens else None


def pack(payload: Array, parts: Sequence[tuple[Piece, Array]], *, narrow: bool = False) -> int:
    """Write a payload, uint8, of pieces in rank order, of each the rows named; its size in bytes."""
    hidden, topk = parts[0][0].x_RD.shape[1], parts[0][0].ids_TK.shape[1]
    count = sum(len(rows) for _, rows in parts)
    middle = row_bytes(hidden, narrow) * count
    end = middle + 8 * topk * count
    weights = payload[middle:end].view(np.float64).reshape(count, topk)
    at = 0
    for piece, rows in parts:
        to = at + len(rows)
        places = piece.places(rows)
        if narrow:
            put(payload[row_bytes(hidden, True) * at :], torch.from_numpy(piece.x_RD[places]), True)
        else:
            x = payload[4 * hidden * at : 4 * hidden * to].view(np.float32).reshape(-1, hidden)
            # Places are in range; any other mode goes through a buffer.
            np.take(piece.x_RD, places, axis=0, out=x, mode="clip")
        np.take(piece.weights_RK, places, axis=0, out=weights[at:to], mode="clip")
        size = piece.ids_TK.nbytes
        payload[end : end + size].view(np.int32).reshape(piece.ids_TK.shape)[:] = piece.ids_TK
        at, end = to, end + size
    return end


def unpack(
    payload: Array, tokens: int, hidden: int, topk: int, *, narrow: bool = False
) -> tuple[Array, Array, Array] | None:
    """Hidden states [R, d], weights [R, k] and ids [T, k], on the payload's memory; None where its size is wrong."""
    count = packed_rows(payload.nbytes, tokens, hidden, topk, narrow=narrow)
    if count is None:
        return None
    middle = row_bytes(hidden, narrow) * count
    end = middle + 8 * topk * count
    return (
        take(payload, count, hidden, narrow),
        payload[middle:end].view(np.float64).reshape(count, topk),
        payload[end:].view(np.int32).reshape(tokens, topk),
    )


def received(frame: Frame, needs: Needs, ranks: tuple[int, ...], *, hidden: int, topk: int) -> Piece:
    """Rows of a gated frame, on its memory: those that MoE ``ranks`` need of its tokens.

    Raises ProtocolError for another size, for expert ids outside [0, num_experts), and for other rows.
    """
    header = frame.header
    found = unpack(frame.payload, header.tokens, hidden, topk, narrow=bool(header.flags & _NARROW))
    if found is None:
        raise ProtocolError(
            header.source,
            f"sent {header.payload_bytes} bytes of packed rows for {header.tokens} tokens; no rows are that many",
        )
    x, weights, ids = found
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < needs.num_experts:
        raise ProtocolError(header.source, f"sent expert ids outside 0..{needs.num_experts - 1}")
    rows = needs.rows(header.layer, ranks, ids)
    if len(rows) != len(x):
        whom = "this worker" if len(ranks) == 1 else f"MoE ranks {', '.join(map(str, ranks))}"
        raise ProtocolError(
            header.source, f"sent {len(x)} rows; {len(rows)} of its {header.tokens} are for {whom}"
        )
    return Piece(x, weights, ids, rows)
