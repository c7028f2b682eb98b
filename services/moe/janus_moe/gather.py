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

# A plain number: operators of IntFlag cost microseconds each, in every layer.
_GATED = int(Flag.GATED)
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One layer's batch, tokens of all active attention workers in rank order.

    With a single sender the tensors are views on its frame, valid until that is consumed.
    """

    x_TD: torch.Tensor
    """fp32 [T, d]"""
    ids_TK: torch.Tensor | None
    """int32 [T, k] when the senders gated (AGate), else None."""
    weights_TK: torch.Tensor | None
    """fp64 [T, k] likewise."""
    spans: tuple[tuple[int, int], ...]
    """Each sender's rows [start, end)."""


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
    expected = header.tokens * (4 * hidden + (12 * topk if gated else 0))
    if header.payload_bytes != expected:
        refuse(f"{header.payload_bytes} bytes for {header.tokens} tokens; expected {expected}")


def gather(frames: Sequence[Frame], *, hidden: int, topk: int, num_experts: int) -> Gathered:
    """Concatenate checked HIDDEN frames, all gated or none.

    Raises ProtocolError for expert ids outside [0, num_experts) and for a mix of gated and plain frames.
    """
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


def views(frame: Frame, hidden: int, topk: int, num_experts: int) -> list[Array]:
    """Hidden states fp32 [t, d] and, gated, weights fp64 [t, k] and ids int32 [t, k], on the frame's memory."""
    count, payload = frame.header.tokens, frame.payload
    size = 4 * hidden * count
    x = payload[:size].view(np.float32).reshape(count, hidden)
    if not frame.header.flags & _GATED:
        return [x]
    middle = size + 8 * topk * count
    ids = payload[middle : middle + 4 * topk * count].view(np.int32).reshape(count, topk)
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
        raise ProtocolError(frame.header.source, f"sent expert ids outside 0..{num_experts - 1}")
    return [x, payload[size:middle].view(np.float64).reshape(count, topk), ids]
