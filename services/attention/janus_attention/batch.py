"""Pieces of a step into the tensors that the model takes, whole or as two micro-batches."""

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
    lanes: tuple[BatchMeta, ...]
    """The micro-batches, one or two: the step's tokens in order."""
    last_rows: torch.Tensor
    """int64 [N]: rows whose logits choose a token: the last ``piece.rows`` of each piece, in order."""
    decodes: bool
    """Whether a stream decodes in it."""

    def to(self, device: str) -> StepInput:
        """The same on ``device``; itself where it is there already."""
        if self.token_ids.device.type == device:
            return self
        return StepInput(
            self.token_ids.to(device),
            tuple(lane.to(device) for lane in self.lanes),
            self.last_rows.to(device),
            self.decodes,
        )


def build(pieces: Pieces[Piece], block_size: int, *, split: bool = False) -> StepInput:
    """Tensors of a step over ``pieces``; each sequence has blocks for its tokens.

    ``split``: in two micro-batches, where there are two tokens or more.
    """
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
        lanes=halves(meta) if split and len(tokens) > 1 else (meta,),
        last_rows=torch.tensor(last_rows, dtype=torch.int64),
        decodes=any(piece.decodes for piece in pieces),
    )


def halves(meta: BatchMeta) -> tuple[BatchMeta, BatchMeta]:
    """The first half of the tokens, and the rest.

    A sequence may fall into both: its later tokens then find the earlier ones' keys and values in the cache,
    since the first lane's attention comes first in every layer.
    """
    middle = meta.positions.shape[0] // 2
    starts = meta.query_starts
    # Sequences that begin before the middle; the last of them may go on after it.
    first = int(torch.searchsorted(starts[:-1], middle))
    ends = int(torch.searchsorted(starts[1:], middle, right=True))
    contexts = meta.context_lens[:first].clone()
    contexts[-1] -= max(0, int(starts[first]) - middle)
    return BatchMeta(
        positions=meta.positions[:middle], slots=meta.slots[:middle],
        query_starts=starts[: first + 1].clamp(max=middle), context_lens=contexts,
        block_tables=meta.block_tables[:first],
    ), BatchMeta(
        positions=meta.positions[middle:], slots=meta.slots[middle:],
        query_starts=(starts[ends:] - middle).clamp(min=0), context_lens=meta.context_lens[ends:],
        block_tables=meta.block_tables[ends:],
    )  # fmt: skip
