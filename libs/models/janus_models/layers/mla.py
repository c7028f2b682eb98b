"""Multi-head latent attention, absorbed (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Shapes: T tokens, d hidden, H heads, r latent rank, n plain and p rotary width of a head, v value width.
A head's key is W_k c (plain part, c the latent) beside one rotary part that all heads share, its value W_v c.
Instead of
expanding every cached latent, the query goes through W_k transposed and the mix through W_v afterwards: scores and
result are the same numbers, and the cache holds r + p numbers per token and layer.
"""

from __future__ import annotations

import torch
from janus_kernels.ops import apply_rotary, linear, paged_attention, rms_norm

from janus_models.config import ModelConfig
from janus_models.kvcache import BatchMeta, KvCache
from janus_models.layers.base import Load
from janus_models.rope import score_scale


class LatentAttention:
    """See :class:`janus_models.layers.base.Attention`."""

    def __init__(self, config: ModelConfig, load: Load, layer: int) -> None:
        spec = config.latent
        assert spec is not None
        names, d = config.family.tensors, config.hidden
        self._layer, self._spec, self._heads = layer, spec, config.num_heads
        rows = config.num_heads * config.head_dim

        def projection(part: str) -> str:
            return names.projection.format(layer=layer, part=part)

        latent_down = names.latent_down.format(layer=layer)
        bases = {"kv_a": latent_down, "o": projection("o")}
        shapes = {"kv_a": (spec.rank + spec.rope_dim, d), "o": (d, config.num_heads * spec.value_dim)}
        self._query_norm = None
        if spec.query_rank is None:
            bases["q"], shapes["q"] = projection("q"), (rows, d)
        else:
            bases["q_a"], shapes["q_a"] = projection("q_a"), (spec.query_rank, d)
            bases["q"], shapes["q"] = projection("q_b"), (rows, spec.query_rank)
            self._query_norm = load(names.latent_query_norm.format(layer=layer), (spec.query_rank,))
        self._weights = {part: load.matrix(base + ".weight", shapes[part]) for part, base in bases.items()}
        self._biases = {
            part: load(bases[part] + ".bias", shapes[part][:1]) for part in config.biases if part in bases
        }
        self._latent_norm = load(names.latent_norm.format(layer=layer), (spec.rank,))
        up_HRr = load(
            projection("kv_b") + ".weight", (config.num_heads * (spec.plain_dim + spec.value_dim), spec.rank)
        ).unflatten(0, (config.num_heads, -1))
        # Of each head: [r, n], transposed and therefore a copy, and [v, r], a view.
        self._key_up = [up[: spec.plain_dim].T.contiguous() for up in up_HRr]
        self._value_up = [up[spec.plain_dim :] for up in up_HRr]
        self._scale: float = config.head_dim**-0.5 * score_scale(config.rope)

    def __call__(
        self, x_TD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: BatchMeta, kv: KvCache
    ) -> torch.Tensor:
        """See :class:`janus_models.layers.base.Attention`."""
        spec = self._spec
        query_THh = self._query(x_TD).unflatten(1, (self._heads, -1))
        plain_THn, turned_THp = query_THh.split([spec.plain_dim, spec.rope_dim], dim=-1)
        latent_TR, key_Tp = linear(x_TD, self._weights["kv_a"], self._biases.get("kv_a")).split(
            [spec.rank, spec.rope_dim], dim=-1
        )
        latent_TR = rms_norm(latent_TR, self._latent_norm, spec.norm_eps)
        key_T1p = apply_rotary(self._halves(key_Tp[:, None]), cos, sin, batch.positions)
        kv.write_latent(self._layer, torch.cat((latent_TR[:, None], key_T1p), dim=-1), batch.slots)

        absorbed_THR = torch.stack(
            [linear(plain_THn[:, head], up) for head, up in enumerate(self._key_up)], dim=1
        )
        turned_THp = apply_rotary(self._halves(turned_THp), cos, sin, batch.positions)
        mixed_THR = paged_attention(
            torch.cat((absorbed_THR, turned_THp), dim=-1),
            *kv.layers[self._layer],
            query_starts=batch.query_starts,
            context_lens=batch.context_lens,
            block_tables=batch.block_tables,
            scale=self._scale,
        )
        mixed_TV = torch.cat(
            [linear(mixed_THR[:, head], up) for head, up in enumerate(self._value_up)], dim=1
        )
        return linear(mixed_TV, self._weights["o"], self._biases.get("o"))

    def _query(self, x_TD: torch.Tensor) -> torch.Tensor:
        if self._query_norm is not None:
            x_TD = linear(x_TD, self._weights["q_a"], self._biases.get("q_a"))
            x_TD = rms_norm(x_TD, self._query_norm, self._spec.norm_eps)
        return linear(x_TD, self._weights["q"])

    def _halves(self, x_THp: torch.Tensor) -> torch.Tensor:
        """Rotary pairs laid out as apply_rotary takes them; keys and queries alike, so that scores stay the same."""
        if not self._spec.interleaved:
            return x_THp
        return x_THp.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
