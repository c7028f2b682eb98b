"""`janus model inspect` on a checkpoint of every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from janus_cli.main import main
from janus_models.families import FAMILIES
from janus_models.tiny import make_tiny
from janus_testing.quantise import to_fp8, to_mxfp4

EXPECTED = {
    "deepseek_v2": {"attention": "latent, 32 + 8 per token", "shared_expert_hidden": 96, "moe_layers": 2},
    "deepseek_v3": {"attention": "latent, 32 + 8 per token", "shared_expert_hidden": 48, "moe_layers": 2},
    "gpt_oss": {"attention": "grouped-query", "windows": "24 full", "shared_expert_hidden": 0},
    "qwen2_moe": {"attention": "grouped-query", "windows": "full", "shared_expert_hidden": 80},
}


def inspect(directory: Path) -> dict[str, object]:
    result = CliRunner().invoke(main, ["model", "inspect", str(directory), "--json"])
    assert result.exit_code == 0, result.output
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    facts = inspect(make_tiny(tmp_path, family))
    assert {name: facts[name] for name in EXPECTED.get(family, {})} == EXPECTED.get(family, {})
    latent = family.startswith("deepseek")
    assert facts["kv_bytes_per_token_float32"] == 4 * 3 * ((32 + 8) if latent else 2 * 2 * 16)
    each, count, layers = facts["bytes_per_expert"], facts["experts"], facts["moe_layers"]
    assert facts["model_type"] == family and facts["expert_bytes"] == each * count * layers  # type: ignore[operator]
    assert facts["bytes"] == facts["expert_bytes"] + facts["attention_worker_bytes"]  # type: ignore[operator]
    assert facts["bytes_per_expert_loaded_float32"] == each and facts["quantisation"] == "none"


def test_quantised(tmp_path: Path) -> None:
    fp8 = inspect(to_fp8(make_tiny(tmp_path / "v3", "deepseek_v3"), tmp_path / "fp8", (8, 8)))
    assert fp8["quantisation"] == "fp8" and fp8["bytes_per_expert_loaded_float32"] == 4 * 3 * 64 * 48
    assert fp8["bytes_per_expert"] == 3 * 64 * 48 + 4 * 3 * 64 * 48 // 64
    plain = make_tiny(tmp_path / "oss", "gpt_oss", intermediate_size=64)
    mxfp4 = inspect(to_mxfp4(plain, tmp_path / "mxfp4"))
    assert mxfp4["quantisation"] == "mxfp4" and mxfp4["bytes_per_expert_loaded_float32"] == 2 * 3 * 64 * 64


def test_layers_after_the_last_are_not_counted(tmp_path: Path) -> None:
    make_tiny(tmp_path, "deepseek_v3", num_hidden_layers=4)
    whole = inspect(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    facts = inspect(tmp_path)
    assert facts["bytes_per_expert"] == whole["bytes_per_expert"] and facts["unused_bytes"] > 0  # type: ignore[operator]
