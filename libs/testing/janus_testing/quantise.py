"""Quantised checkpoints made from plain ones, as DeepSeek-V3 (FP8 blocks) and gpt_oss (MXFP4) are published."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from janus_models.checkpoint import Checkpoint
from safetensors.torch import save_file

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MATRIX = re.compile(r"\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight$")


def to_fp8(source: Path, target: Path, block: tuple[int, int] = (128, 128)) -> Path:
    """Every projection in float8 e4m3 with a scale per block; embeddings, norms, routers and the head stay plain."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in _tensors(source):
        if _MATRIX.search(name):
            tensors[name], tensors[f"{name}_scale_inv"] = _fp8(weight.float(), block)
        else:
            tensors[name] = weight
    extra = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    return _write(source, target, tensors, {**extra, "activation_scheme": "dynamic"})


def to_mxfp4(source: Path, target: Path) -> Path:
    """The packed experts in blocks of 32 4-bit floats, rows and columns exchanged, as gpt_oss is published."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in _tensors(source):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales = _mxfp4(weight.float().transpose(1, 2))
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        else:
            tensors[name] = weight
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return _write(source, target, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": kept})


def _tensors(directory: Path) -> list[tuple[str, torch.Tensor]]:
    checkpoint = Checkpoint(directory)
    return [(name, checkpoint.tensor(name).clone()) for name in checkpoint.names()]


def _write(
    source: Path, target: Path, tensors: dict[str, torch.Tensor], quantisation: dict[str, Any]
) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    # As the library wants it for transformers; each tensor its own memory.
    save_file({n: t.contiguous() for n, t in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    return target


def _fp8(weight_NK: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight_NK.shape
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales = torch.empty(grid)
    out = torch.empty(weight_NK.shape, dtype=torch.float8_e4m3fn)
    for i in range(grid[0]):
        for j in range(grid[1]):
            where = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight_NK[where].abs().max() / torch.finfo(out.dtype).max
            out[where] = (weight_NK[where] / scales[i, j]).to(out.dtype)
    return out, scales


def _mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., K] -> uint8 blocks [..., K/32, 16] and scales [..., K/32]."""
    groups = weight.unflatten(-1, (-1, 32))
    exponents = (
        groups.abs().amax(-1).clamp_min(1e-30).log2().floor() - 2
    )  # the largest element is 6 = 1.5 * 2^2
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled.abs()[..., None] - torch.tensor(FP4)).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents + 127).to(torch.uint8)
