"""Pieces of a step into the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Sequence as Pieces
from dataclasses import dataclass

import numpy as np
import torch
from janus_models.decoder import BatchMeta

from janus_attention.batcher import Piece


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step's tokens and where each sequence's last one stands."""

    token_ids: torch.Tensor
    """int64 [T]"""
    meta: BatchMeta
    last_rows: torch.Tensor
    """int64 [N]: rows whose logits choose a token: the last ``piece.rows`` of each piece, in order."""
    decodes: bool
    """Whether a stream decodes in it."""


def build(pieces: Pieces[Piece], block_size: int) -> StepInput:
    """Tensors of a step over ``pieces``; each sequence has blocks for its tokens."""
    tokens: list[int] = []
    positions, slots, starts, contexts = [], [], [0], []
    last_rows: list[int] = []
    widest = max(len(piece.seq.blocks) for piece in pieces)
    tables = np.zeros((len(pieces), widest), np.int32)
    for i, piece in enumerate(pieces):
        seq, first = piece.seq, piece.seq.computed
        end = first + piece.count
        tokens += piece.tokens
        where = np.arange(first, end)
        blocks = np.asarray(seq.blocks, np.int64)
        positions.append(where)
        slots.append(blocks[where // block_size] * block_size + where % block_size)
        starts.append(starts[-1] + piece.count)
        contexts.append(end)
        tables[i, : len(blocks)] = blocks
        last_rows += range(starts[-1] - piece.rows, starts[-1])
    meta = BatchMeta(
        positions=torch.from_numpy(np.concatenate(positions)),
        query_starts=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
        slots=torch.from_numpy(np.concatenate(slots)),
    )
    return StepInput(
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        meta=meta,
        last_rows=torch.tensor(last_rows, dtype=torch.int64),
        decodes=any(piece.decodes for piece in pieces),
    )
