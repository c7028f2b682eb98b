"""AGate in one phase: which of its rows an attention worker sends to which MoE worker, and how they lie in a frame.

Every MoE worker gets all ids, as each computes the schedule of the whole cohort, but hidden states and weights of
those tokens alone that are routed to an expert it hosts. Both sides work out which these are from ids and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from janus_worker.rows import put, row_bytes, take

Array = np.ndarray[Any, np.dtype[Any]]


class Needs:
    """Rows that each MoE worker needs, under one layout."""

    def __init__(self, placement: Sequence[Sequence[Sequence[int]]], num_experts: int) -> None:
        """``placement``: experts by MoE layer and MoE rank."""
        self._hosted = [np.zeros((len(layer), num_experts), bool) for layer in placement]
        for hosted, layer in zip(self._hosted, placement, strict=True):
            for rank, experts in enumerate(layer):
                hosted[rank, list(experts)] = True

    @property
    def hosted(self) -> float:
        """Share of a layer's experts that a MoE worker hosts, on average."""
        return float(np.mean([hosted.mean() for hosted in self._hosted])) if self._hosted else 0.0

    def rows(self, layer: int, rank: int, ids_TK: Array) -> Array:
        """int64 [R], ascending: tokens with an expert that MoE ``rank`` hosts; ids int32 [T, k] within range."""
        found: Array = np.flatnonzero(self._hosted[layer][rank][ids_TK].any(axis=1))
        return found


def packed_bytes(rows: int, tokens: int, hidden: int, topk: int, *, narrow: bool = False) -> int:
    """Of a payload: hidden states [R, d] and weights fp64 [R, k] of the rows, ids int32 [T, k] of all tokens."""
    return rows * (row_bytes(hidden, narrow) + 8 * topk) + 4 * topk * tokens


def packed_rows(size: int, tokens: int, hidden: int, topk: int, *, narrow: bool = False) -> int | None:
    """How many rows a payload of this size has; None where there is no such payload."""
    rows, rest = divmod(size - 4 * topk * tokens, row_bytes(hidden, narrow) + 8 * topk)
    return rows if rest == 0 and 0 <= rows <= tokens else None


def pack(
    payload: Array, x_TD: Array, weights_TK: Array, ids_TK: Array, rows: Array, *, narrow: bool = False
) -> int:
    """Write a payload, uint8; its size in bytes."""
    count, (tokens, topk) = len(rows), ids_TK.shape
    middle = put(payload, torch.from_numpy(x_TD[rows]), narrow)
    end = middle + 8 * topk * count
    size = end + 4 * topk * tokens
    np.take(weights_TK, rows, axis=0, out=payload[middle:end].view(np.float64).reshape(count, topk))
    payload[end:size].view(np.int32).reshape(tokens, topk)[:] = ids_TK
    return size


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
