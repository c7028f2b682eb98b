"""The dense model's hidden states on the sample text, layer by layer."""

from __future__ import annotations

import torch
from janus_kernels.ops import swiglu_ffn

from janus_models.checkpoint import Checkpoint
from janus_models.config import ModelConfig
from janus_models.decoder import AttentionModel
from janus_models.demo.source import Array
from janus_models.kvcache import BatchMeta

BLOCK = 16


class SampleRun:
    """All passages as one batch of sequences, moved through the layers in order."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, passages: list[list[int]]) -> None:
        self._model = AttentionModel(config, checkpoint)
        tables: list[list[int]] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, blocks = [0], 0
        for ids in passages:
            tables.append(list(range(blocks, blocks + -(-len(ids) // BLOCK))))
            positions += range(len(ids))
            slots += range(blocks * BLOCK, blocks * BLOCK + len(ids))
            starts.append(starts[-1] + len(ids))
            blocks += len(tables[-1])
        longest = max(map(len, tables))
        self._batch = BatchMeta(
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor([len(ids) for ids in passages], dtype=torch.int32),
            block_tables=torch.tensor([t + [0] * (longest - len(t)) for t in tables], dtype=torch.int32),
        )
        self._kv = self._model.new_kv_cache(blocks, BLOCK)
        # The first token of a sequence is an attention sink with a state like no other's.
        self._usable = self._batch.positions > 0
        self._hidden = self._model.embed(torch.tensor([i for ids in passages for i in ids]))
        self.layer = 0

    def advance(self, ffn: dict[str, Array]) -> torch.Tensor:
        """Run the next layer with its dense FFN: the states at its MoE norm, fp32 [tokens, d]."""
        with torch.inference_mode():
            self._model.attention(self.layer, self._hidden, self._batch, self._kv)
            x_TD = self._model.moe_norm(self.layer, self._hidden)
            gate, up, down = (torch.from_numpy(ffn[part]) for part in ("gate", "up", "down"))
            self._hidden += swiglu_ffn(x_TD, gate, up, down)
        self.layer += 1
        return x_TD[self._usable].clone()
