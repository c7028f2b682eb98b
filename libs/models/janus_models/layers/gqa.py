"""Grouped-query attention: query heads share key/value heads; MHA and MQA are its ends.

Shapes: T tokens, d hidden, H query heads, K key/value heads, h head dimension.
"""

from __future__ import annotations

import torch
from janus_kernels.ops import apply_rotary, linear, paged_attention, rms_norm

from janus_models.config import ModelConfig
from janus_models.kvcache import BatchMeta, KvCache
from janus_models.layers.base import Load


class GroupedAttention:
    """See :class:`janus_models.layers.base.Attention`."""

    def __init__(self, config: ModelConfig, load: Load, layer: int) -> None:
        names, d = config.family.tensors, config.hidden
        self._layer = layer
        self._heads, self._kv_heads = config.num_heads, config.num_kv_heads
        query, keys = self._heads * config.head_dim, self._kv_heads * config.head_dim
        shapes = {"q": (query, d), "k": (keys, d), "v": (keys, d), "o": (d, query)}
        bases = {part: names.projection.format(layer=layer, part=part) for part in shapes}
        self._weights = {part: load.matrix(base + ".weight", shapes[part]) for part, base in bases.items()}
        self._biases = {part: load(bases[part] + ".bias", shapes[part][:1]) for part in config.biases}
        self._norm_rows = config.family.qk_norm == "row"
        self._norm_eps = config.norm_eps
        self._norms: dict[str, torch.Tensor] = {}
        if config.family.qk_norm:
            head = (config.head_dim,)
            self._norms = {
                "q": load(names.query_norm.format(layer=layer), (query,) if self._norm_rows else head),
                "k": load(names.key_norm.format(layer=layer), (keys,) if self._norm_rows else head),
            }
        sinks = names.sinks.format(layer=layer)
        self._sinks = load(sinks, (self._heads,)).float() if sinks else None
        self._clip = config.clip_qkv
        self._window = config.windows[layer]
        self._scale: float = config.head_dim**-0.5

    def __call__(
        self, x_TD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: BatchMeta, kv: KvCache
    ) -> torch.Tensor:
        """See :class:`janus_models.layers.base.Attention`."""
        query = apply_rotary(self._heads_of("q", x_TD, self._heads), cos, sin, batch.positions)
        key = apply_rotary(self._heads_of("k", x_TD, self._kv_heads), cos, sin, batch.positions)
        kv.write(self._layer, key, self._heads_of("v", x_TD, self._kv_heads), batch.slots)
        mixed_THh = paged_attention(
            query,
            *kv.layers[self._layer],
            query_starts=batch.query_starts,
            context_lens=batch.context_lens,
            block_tables=batch.block_tables,
            scale=self._scale,
            window=self._window,
            sinks=self._sinks,
        )
        return linear(mixed_THh.flatten(1), self._weights["o"], self._biases.get("o"))

    def _heads_of(self, part: str, x_TD: torch.Tensor, heads: int) -> torch.Tensor:
        """fp32 [T, heads, h]: projected, normed and clamped."""
        y = linear(x_TD, self._weights[part], self._biases.get(part))
        norm = self._norms.get(part)
        if norm is not None and self._norm_rows:
            y = rms_norm(y, norm, self._norm_eps)
        if self._clip is not None:
            y = y.clamp(-self._clip, self._clip)
        y_THh = y.view(y.shape[0], heads, y.shape[1] // heads)
        return y_THh if norm is None or self._norm_rows else rms_norm(y_THh, norm, self._norm_eps)
