"""The whole model in one process: no mesh, no transport. Proves the parts and serves as their example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from janus_kernels.ops import ExpertSet, expert_ffn

from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.decoder import AttentionModel
from janus_models.experts import ExpertModel
from janus_models.kvcache import BatchMeta, KvCache


@dataclass(slots=True, kw_only=True)
class LocalSequence:
    """One sequence being generated."""

    ids: list[int]
    """prompt and what was generated"""
    prompt: int
    """length of the prompt"""
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    """tokens whose keys and values are in the cache"""


class LocalModel:
    """AttentionModel and ExpertModel side by side, with greedy generation over a paged cache."""

    def __init__(
        self,
        directory: str | Path,
        dtype: str = "float32",
        *,
        expert_dtype: str | None = None,
        attention_dtype: str | None = None,
        device: str = "cpu",
        kv_blocks: int = 256,
        block_size: int = 16,
    ) -> None:
        self.config = load_config(directory)
        checkpoint = Checkpoint(directory)
        self.attention = AttentionModel(self.config, checkpoint, dtype, device, attention_dtype)
        quantize = expert_dtype if expert_dtype in ("int8", "int4") else None
        self.experts = ExpertModel(
            self.config, checkpoint, dtype if quantize else expert_dtype or dtype, device, quantize
        )
        self._loaded = [
            ExpertSet({e: self.experts.load(layer, e) for e in range(self.config.moe.num_experts)})
            for layer in range(self.experts.num_layers)
        ]
        self._kv: KvCache = self.attention.new_kv_cache(kv_blocks, block_size)
        self._free = list(range(kv_blocks))

    def new_sequence(self, prompt: Sequence[int]) -> LocalSequence:
        """A sequence with nothing cached yet."""
        return LocalSequence(ids=list(prompt), prompt=len(prompt))

    def release(self, sequence: LocalSequence) -> None:
        """Give the sequence's cache blocks back."""
        self._free.extend(sequence.blocks)
        sequence.blocks = []

    def step(self, work: Sequence[tuple[LocalSequence, int]]) -> torch.Tensor:
        """Run each sequence's next ``count`` uncached tokens: fp32 [sum of counts, d] hidden states."""
        batch, ids = self._batch(work)
        with torch.inference_mode():
            device = self.attention.device
            batch = batch.to(device)
            h_TD = self.attention.embed(ids.to(device))
            moe_layer = 0
            for layer in range(self.config.num_layers):
                self.attention.attention(layer, h_TD, batch, self._kv)
                x_TD = self.attention.moe_norm(layer, h_TD)
                local = self.attention.local_ffn(layer, x_TD)
                if local is not None:
                    h_TD.add_(local)
                if self.attention.is_moe(layer):
                    h_TD.add_(self._routed(moe_layer, x_TD))
                    moe_layer += 1
        for sequence, count in work:
            sequence.cached += count
        return h_TD

    def route(self, moe_layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(expert ids int32 [T, k], weights fp64 [T, k]) of normed hidden states."""
        return self.experts.gate(moe_layer, x_TD)

    def _routed(self, moe_layer: int, x_TD: torch.Tensor) -> torch.Tensor:
        ids_TK, weights_TK = self.route(moe_layer, x_TD)
        out_TD = torch.empty(x_TD.shape, dtype=torch.float64, device=x_TD.device)
        expert_ffn(
            x_TD,
            ids_TK,
            weights_TK,
            torch.ones_like(ids_TK, dtype=torch.bool),
            self._loaded[moe_layer],
            out_TD,
            self.experts.activation,
        )
        return out_TD.float()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        chunk: int = 512,
        stop_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """Greedy continuations of several prompts at once, each prefilled ``chunk`` tokens per step."""
        sequences = [self.new_sequence(prompt) for prompt in prompts]
        running = list(sequences)
        while running:
            work = [(s, min(chunk, len(s.ids) - s.cached)) for s in running]
            h_TD = self.step(work)
            last = torch.tensor([count for _, count in work]).cumsum(0) - 1
            chosen = self.attention.logits(h_TD[last]).argmax(-1).tolist()
            for (sequence, _), token in zip(work, chosen, strict=True):
                if sequence.cached < len(sequence.ids):
                    continue  # the prompt is not through yet
                sequence.ids.append(token)
                if len(sequence.ids) - sequence.prompt == max_new_tokens or token in stop_ids:
                    running.remove(sequence)
                    self.release(sequence)
        return [s.ids[s.prompt :] for s in sequences]

    def _batch(self, work: Sequence[tuple[LocalSequence, int]]) -> tuple[BatchMeta, torch.Tensor]:
        size = self._kv.block_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for sequence, count in work:
            end = sequence.cached + count
            while len(sequence.blocks) * size < end:
                sequence.blocks.append(self._free.pop())
            span = range(sequence.cached, end)
            ids += sequence.ids[sequence.cached : end]
            positions += span
            slots += [sequence.blocks[p // size] * size + p % size for p in span]
            starts.append(len(ids))
        most = max(len(sequence.blocks) for sequence, _ in work)
        tables = [sequence.blocks + [0] * (most - len(sequence.blocks)) for sequence, _ in work]
        contexts = [sequence.cached + count for sequence, count in work]
        return BatchMeta(
            positions=torch.tensor(positions),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            slots=torch.tensor(slots),
        ), torch.tensor(ids)
