"""Frames of the cohort's attention workers into one batch, checked before use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from janus_transport import Frame, Kind
from janus_worker.lockstep import Flag, ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One layer's batch, tokens of all active attention workers in rank order."""

    x_TD: torch.Tensor
    """fp32 [T, d]"""
    ids_TK: torch.Tensor | None
    """int32 [T, k] when the senders gated (AGate), else None."""
    weights_TK: torch.Tensor | None
    """fp64 [T, k] likewise."""
    spans: tuple[tuple[int, int], ...]
    """Each sender's rows [start, end)."""


def check(frame: Frame, *, step: int, layer: int, layers: int, hidden: int, topk: int) -> None:
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
    gated = bool(header.flags & Flag.GATED)
    if gated and header.topk != topk:
        refuse(f"{header.topk} experts per token; the model routes to {topk}")
    expected = header.tokens * (4 * hidden + (12 * topk if gated else 0))
    if header.payload_bytes != expected:
        refuse(f"{header.payload_bytes} bytes for {header.tokens} tokens; expected {expected}")


def gather(frames: Sequence[Frame], *, hidden: int, topk: int, num_experts: int) -> Gathered:
    """Concatenate checked HIDDEN frames, all gated or none.

    Raises ProtocolError for expert ids outside [0, num_experts) and for a mix of gated and plain frames.
    """
    total = sum(frame.header.tokens for frame in frames)
    gated = bool(frames[0].header.flags & Flag.GATED)
    x_TD = torch.empty(total, hidden)
    ids_TK = torch.empty(total, topk, dtype=torch.int32) if gated else None
    weights_TK = torch.empty(total, topk, dtype=torch.float64) if gated else None
    spans = []
    row = 0
    for frame in frames:
        count = frame.header.tokens
        if bool(frame.header.flags & Flag.GATED) != gated:
            raise ProtocolError(frame.header.source, "gates where its peers do not (or the reverse)")
        payload = torch.from_numpy(frame.payload)
        size = 4 * hidden * count
        x_TD[row : row + count] = payload[:size].view(torch.float32).view(count, hidden)
        if ids_TK is not None and weights_TK is not None:
            middle = size + 8 * topk * count
            ids = payload[middle : middle + 4 * topk * count].view(torch.int32).view(count, topk)
            if count and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
                raise ProtocolError(frame.header.source, f"sent expert ids outside 0..{num_experts - 1}")
            ids_TK[row : row + count] = ids
            weights_TK[row : row + count] = payload[size:middle].view(torch.float64).view(count, topk)
        spans.append((row, row + count))
        row += count
    return Gathered(x_TD=x_TD, ids_TK=ids_TK, weights_TK=weights_TK, spans=tuple(spans))
