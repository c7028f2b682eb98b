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
from janus_worker.packing import Needs, packed_rows, unpack
from janus_worker.rows import row_bytes, take

# A plain number: operators of IntFlag cost microseconds each, in every layer.
_GATED, _PACKED, _NARROW = int(Flag.GATED), int(Flag.PACKED), int(Flag.NARROW)
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One layer's batch, tokens of all active attention workers in rank order.

    With a single sender the tensors are views on its frame, valid until that is consumed.
    """

    x_TD: torch.Tensor
    """fp32 [T, d]; packed: [R, d]"""
    ids_TK: torch.Tensor | None
    """int32 [T, k] when the senders gated (AGate), else None."""
    weights_TK: torch.Tensor | None
    """fp64 [T, k] likewise; packed: [R, k]"""
    spans: tuple[tuple[int, int], ...]
    """Each sender's rows [start, end) of ``x_TD``."""
    rows_R: Array | None = None
    """int64, packed: which tokens the rows of ``x_TD`` are."""


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
    gated = bool(header.flags & _GATED)
    if gated and header.topk != topk:
        refuse(f"{header.topk} experts per token; the model routes to {topk}")
    if header.flags & _PACKED:
        if not gated:
            refuse("rows packed for a routing that it does not tell")
        narrow = bool(header.flags & _NARROW)
        if packed_rows(header.payload_bytes, header.tokens, hidden, topk, narrow=narrow) is None:
            refuse(
                f"{header.payload_bytes} bytes of packed rows for {header.tokens} tokens; no rows are that many"
            )
        return
    row = row_bytes(hidden, bool(header.flags & _NARROW))
    expected = header.tokens * (row + (12 * topk if gated else 0))
    if header.payload_bytes != expected:
        refuse(f"{header.payload_bytes} bytes for {header.tokens} tokens; expected {expected}")


def gather(frames: Sequence[Frame], *, hidden: int, topk: int, num_experts: int) -> Gathered:
    """Concatenate checked HIDDEN frames, all gated or none.

    Raises ProtocolError for expert ids outside [0, num_experts) and for a mix of gated and plain frames.
    """
    packed = next((frame for frame in frames if frame.header.flags & _PACKED), None)
    if packed is not None:
        raise ProtocolError(packed.header.source, "packs rows where its peers do not")
    parts = [views(frame, hidden, topk, num_experts) for frame in frames]
    if len({len(part) for part in parts}) > 1:
        odd = next(f for f, part in zip(frames, parts, strict=True) if len(part) != len(parts[0]))
        raise ProtocolError(odd.header.source, "gates where its peers do not (or the reverse)")
    ends = list(itertools.accumulate(frame.header.tokens for frame in frames))
    columns = [
        torch.from_numpy(column[0] if len(column) == 1 else np.concatenate(column))
        for column in zip(*parts, strict=True)
    ]
    x_TD, weights_TK, ids_TK = columns if len(columns) == 3 else (columns[0], None, None)
    return Gathered(
        x_TD=x_TD, ids_TK=ids_TK, weights_TK=weights_TK, spans=tuple(zip([0, *ends], ends, strict=False))
    )


def gather_packed(
    frames: Sequence[Frame], needs: Needs, layer: int, rank: int, *, hidden: int, topk: int, num_experts: int
) -> Gathered:
    """Concatenate checked HIDDEN frames of packed rows, for MoE ``rank``.

    Raises ProtocolError for expert ids outside [0, num_experts), for other rows than this rank needs, and for a
    frame that is not packed.
    """
    parts, rows, first = [], [], 0
    for frame in frames:
        header = frame.header
        narrow = bool(header.flags & _NARROW)
        packed = header.flags & _PACKED
        found = unpack(frame.payload, header.tokens, hidden, topk, narrow=narrow) if packed else None
        if found is None:
            raise ProtocolError(header.source, "packs no rows where its peers do")
        _check_ids(frame, found[2], num_experts)
        needed = needs.rows(layer, rank, found[2])
        if len(needed) != len(found[0]):
            raise ProtocolError(
                header.source,
                f"sent {len(found[0])} rows; {len(needed)} of its {header.tokens} are for this worker",
            )
        parts.append(found)
        rows.append(needed + first)
        first += header.tokens
    ends = list(itertools.accumulate(len(part) for part in rows))
    x, weights, ids = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    return Gathered(
        x_TD=x, ids_TK=ids, weights_TK=weights, spans=tuple(zip([0, *ends], ends, strict=False)),
        rows_R=np.concatenate(rows),
    )  # fmt: skip


def _check_ids(frame: Frame, ids: Array, num_experts: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
        raise ProtocolError(frame.header.source, f"sent expert ids outside 0..{num_experts - 1}")


def views(frame: Frame, hidden: int, topk: int, num_experts: int) -> list[Array]:
    """Hidden states fp32 [t, d] and, gated, weights fp64 [t, k] and ids int32 [t, k], on the frame's memory."""
    count, payload = frame.header.tokens, frame.payload
    narrow = bool(frame.header.flags & _NARROW)
    size = row_bytes(hidden, narrow) * count
    x = take(payload, count, hidden, narrow)
    if not frame.header.flags & _GATED:
        return [x]
    middle = size + 8 * topk * count
    ids = payload[middle : middle + 4 * topk * count].view(np.int32).reshape(count, topk)
    _check_ids(frame, ids, num_experts)
    return [x, payload[size:middle].view(np.float64).reshape(count, topk), ids]
