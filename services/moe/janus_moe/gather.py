"""Frames of the cohort's attention workers into one batch, checked before use."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from janus_transport import Frame, Kind
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.packing import Needs, packed_rows, received
from janus_worker.rows import row_bytes, take

# Plain numbers: operators of IntFlag cost microseconds each, in every layer.
_GATED, _NARROW = int(Flag.GATED), int(Flag.NARROW)
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One layer's batch, tokens of all active attention workers in rank order.

    With a single sender the tensors are views on its frame, valid until that is consumed.
    """

    x_TD: torch.Tensor
    """fp32 [T, d]; gated: [R, d]"""
    ids_TK: torch.Tensor | None
    """int32 [T, k] when the senders gated (AGate), else None."""
    weights_TK: torch.Tensor | None
    """fp64 [R, k] likewise."""
    spans: tuple[tuple[int, int], ...]
    """Each sender's rows [start, end) of ``x_TD``."""
    rows_R: Array | None = None
    """int64, gated: which tokens the rows of ``x_TD`` are."""


def check(frame: Frame, *, step: int, layer: int, layers: int, hidden: int, topk: int, lane: int = 0) -> None:
    """Raises ProtocolError unless ``frame`` is the next thing its sender may send."""
    header = frame.header

    def refuse(what: str) -> None:
        raise ProtocolError(header.source, f"sent {what}")

    if header.kind is not Kind.HIDDEN:
        refuse(f"kind {header.kind!r} to a MoE worker, which takes HIDDEN alone")
    if header.layer >= layers:
        refuse(f"layer {header.layer}; the model has MoE layers 0..{layers - 1}")
    if (header.step, header.layer) != (step, layer):
        refuse(f"step {header.step} layer {header.layer}; expected step {step} layer {layer}")
    if header.lane != lane:
        refuse(f"lane {header.lane} of step {step} layer {layer}; expected lane {lane}")
    narrow = bool(header.flags & _NARROW)
    if header.flags & _GATED:
        if header.topk != topk:
            refuse(f"{header.topk} experts per token; the model routes to {topk}")
        if packed_rows(header.payload_bytes, header.tokens, hidden, topk, narrow=narrow) is None:
            refuse(
                f"{header.payload_bytes} bytes of packed rows for {header.tokens} tokens; no rows are that many"
            )
        return
    expected = header.tokens * row_bytes(hidden, narrow)
    if header.payload_bytes != expected:
        refuse(f"{header.payload_bytes} bytes for {header.tokens} tokens; expected {expected}")


def gather(frames: Sequence[Frame], *, hidden: int) -> Gathered:
    """Concatenate checked HIDDEN frames that are not gated. Raises ProtocolError for one that is."""
    _alike(frames, 0)
    parts = [
        take(frame.payload, frame.header.tokens, hidden, bool(frame.header.flags & _NARROW))
        for frame in frames
    ]
    ends = list(itertools.accumulate(frame.header.tokens for frame in frames))
    x_TD = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
    return Gathered(x_TD=x_TD, ids_TK=None, weights_TK=None, spans=tuple(zip([0, *ends], ends, strict=False)))


def gather_packed(frames: Sequence[Frame], needs: Needs, rank: int, *, hidden: int, topk: int) -> Gathered:
    """Concatenate checked, gated HIDDEN frames for MoE ``rank``.

    Raises ProtocolError for expert ids that the model does not have, for other rows than this rank needs, and for a
    frame that is not gated.
    """
    _alike(frames, _GATED)
    parts, rows, first = [], [], 0
    for frame in frames:
        piece = received(frame, needs, (rank,), hidden=hidden, topk=topk)
        parts.append((piece.x_RD, piece.weights_RK, piece.ids_TK))
        rows.append(piece.rows_R + first)
        first += frame.header.tokens
    ends = list(itertools.accumulate(len(part) for part in rows))
    x, weights, ids = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    return Gathered(
        x_TD=x, ids_TK=ids, weights_TK=weights, spans=tuple(zip([0, *ends], ends, strict=False)),
        rows_R=np.concatenate(rows),
    )  # fmt: skip


def _alike(frames: Sequence[Frame], gated: int) -> None:
    for frame in frames:
        if frame.header.flags & _GATED != gated:
            raise ProtocolError(frame.header.source, "gates where its peers do not (or the reverse)")
