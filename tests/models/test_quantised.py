"""Quantised checkpoints: arithmetic against slow loops, whole models against transformers reading the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_models import reference
from janus_models.checkpoint import Checkpoint, CheckpointError
from janus_models.config import load_config
from janus_models.decoder import AttentionModel
from janus_models.errors import ConfigError
from janus_models.experts import ExpertModel
from janus_models.local import LocalModel
from janus_models.quantised import from_fp8, from_mxfp4
from janus_testing.quantise import to_fp8, to_mxfp4


@pytest.mark.parametrize("seed", range(4))
def test_fp8_blocks(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns, height, width = torch.randint(1, 40, (4,), generator=generator).tolist()
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // height), -(-columns // width), generator=generator)
    got = from_fp8(weight, scales, (height, width))
    for i in range(rows):
        for j in range(columns):
            assert got[i, j] == weight[i, j].float() * scales[i // height, j // width]


def test_mxfp4_is_exact() -> None:
    """Every byte, at scales from the smallest that a float32 holds to the largest: the number, not its rounding."""
    values = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for exponent in (1, 64, 127, 130, 250):
        got = from_mxfp4(blocks, torch.full((1, 16), exponent, dtype=torch.uint8))
        assert got.dtype == torch.bfloat16 and got.shape == (1, 512)
        expected = [
            (-1.0 if code & 8 else 1.0) * values[code & 7] * 2.0 ** (exponent - 127)
            for byte in range(256)
            for code in (byte & 15, byte >> 4)
        ]
        assert got[0].double().tolist() == expected


def make(tiny: Callable[..., Path], kind: str, target: Path) -> Path:
    if kind == "fp8":
        return to_fp8(tiny("deepseek_v3", 31), target, (8, 8))  # transformers wants blocks that divide
    if kind == "fp8-qwen3":
        return to_fp8(tiny("qwen3_moe", 32), target, (16, 16))
    return to_mxfp4(tiny("gpt_oss", 33, intermediate_size=64, dtype="bfloat16"), target)


@pytest.mark.parametrize("kind", ["fp8", "fp8-qwen3", "mxfp4"])
def test_parity_with_transformers(tiny: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    directory = make(tiny, kind, tmp_path / "quantised")
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randint(0, 512, (length,), generator=generator).tolist() for length in (3, 40, 70)]
    model = LocalModel(directory)
    sequences = [model.new_sequence(prompt) for prompt in batch]
    rows = model.attention.logits(model.step([(s, len(s.ids)) for s in sequences]))
    for prompt, ours in zip(batch, rows.split([len(p) for p in batch]), strict=True):
        torch.testing.assert_close(ours, reference.prompt_logits(directory, prompt), atol=1e-4, rtol=0)
    for prompt, ids in zip(batch, LocalModel(directory).generate(batch, 16), strict=True):
        assert ids == reference.greedy_ids(directory, prompt, ids)


def test_blocks_that_do_not_divide(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Against the same values in a plain checkpoint."""
    directory = to_fp8(tiny("deepseek_v2", 34), tmp_path / "quantised", (24, 20))
    stored, model = Checkpoint(directory), LocalModel(directory)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    weight = stored.tensor(name, dtypes={"F8_E4M3": "float8_e4m3fn"})
    expected = from_fp8(weight, stored.tensor(f"{name}_scale_inv"), (24, 20))
    assert torch.equal(model.experts.load(0, 3).down, expected)
    plain = Checkpoint(tiny("deepseek_v2", 34)).tensor(name)
    assert (plain - expected).abs().max() < plain.abs().max() / 16


def test_memory_of_an_expert(tiny: Callable[..., Path], tmp_path: Path) -> None:
    fp8, mxfp4 = make(tiny, "fp8", tmp_path / "a"), make(tiny, "mxfp4", tmp_path / "b")
    for directory, dtype, each in ((fp8, "float32", 4), (fp8, "bfloat16", 2), (mxfp4, "float32", 2)):
        model = ExpertModel(load_config(directory), Checkpoint(directory), dtype)
        expert = model.load(0, 0)
        assert expert.gate.itemsize == each and expert.gate.is_contiguous() and expert.down.is_contiguous()
        parts = [expert.gate, expert.up, expert.down, expert.gate_bias, expert.up_bias, expert.down_bias]
        assert model.bytes_per_expert == sum(p.numel() * p.itemsize for p in parts if p is not None)


def edit(directory: Path, **quantisation: Any) -> Path:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(quantisation)
    path.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("fp8", {"quant_method": "gptq"}, "quant_method.*gptq.*fp8"),
        ("fp8", {"quant_method": "mxfp4"}, "quant_method.*mxfp4.*fp8"),
        ("fp8", {"fmt": "e5m2"}, "fmt.*e5m2.*e4m3"),
        ("fp8", {"activation_scheme": "static"}, "activation_scheme.*static.*dynamic"),
        ("fp8", {"weight_block_size": [0, 8]}, "weight_block_size"),
        ("mxfp4", {"quant_method": "fp8"}, "quant_method.*fp8.*mxfp4"),
    ],
)
def test_refusals(
    tiny: Callable[..., Path], tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(edit(make(tiny, kind, tmp_path / "quantised"), **changes))


def test_scales_that_do_not_fit(tiny: Callable[..., Path], tmp_path: Path) -> None:
    directory = edit(make(tiny, "fp8", tmp_path / "quantised"), weight_block_size=[16, 8])
    with pytest.raises(CheckpointError, match=r"weight_scale_inv has shape \[6, 8\].*\[3, 8\]"):
        ExpertModel(load_config(directory), Checkpoint(directory))
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has dtype F8_E4M3.*quantization_config"):
        AttentionModel(load_config(directory), Checkpoint(directory))


def test_mxfp4_needs_whole_blocks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    directory = make(tiny, "mxfp4", tmp_path / "quantised")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ConfigError, match=r"intermediate_size.*48.*multiple of 32"):
        load_config(directory)
