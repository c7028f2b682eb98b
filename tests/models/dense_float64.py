"""The dense original in float64: slow, obvious, and what both transformers and we are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from torch.nn import functional


def logits(directory: Path, ids: Sequence[int]) -> torch.Tensor:
    """float64 [T, V] of one prompt; each FFN is expert 0 of the demo checkpoint, all eight being the dense one."""
    config, checkpoint = load_config(directory), Checkpoint(directory)
    dim, count = config.head_dim, len(ids)

    def weight(name: str) -> torch.Tensor:
        return checkpoint.tensor(name).double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weight(name) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps)

    steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.outer(torch.arange(count, dtype=torch.float64), config.rope.theta**-steps)
    cos, sin = torch.cat([angles, angles], -1).cos()[:, None], torch.cat([angles, angles], -1).sin()[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin

    mask = torch.full((count, count), float("-inf"), dtype=torch.float64).triu(1)
    h = weight("model.embed_tokens.weight")[torch.tensor(ids)]
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        x = norm(h, at + "input_layernorm.weight")
        q, k, v = ((x @ weight(f"{at}self_attn.{p}_proj.weight").T).view(count, -1, dim) for p in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(config.num_heads // config.num_kv_heads, 1) for t in (k, v))
        attention = (torch.einsum("shd,thd->hst", q, k) * dim**-0.5 + mask).softmax(-1)
        mixed = torch.einsum("hst,thd->shd", attention, v).reshape(count, -1)
        h = h + mixed @ weight(at + "self_attn.o_proj.weight").T
        x = norm(h, at + "post_attention_layernorm.weight")
        gate, up, down = (weight(f"{at}block_sparse_moe.experts.0.{w}.weight") for w in ("w1", "w3", "w2"))
        h = h + (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    return norm(h, "model.norm.weight") @ weight("model.embed_tokens.weight").T
