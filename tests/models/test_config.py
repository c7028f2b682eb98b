from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from janus_models.config import load_config, parse_config
from janus_models.errors import ConfigError
from janus_models.specs import LatentSpec, RouterSpec, SharedSpec

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 32,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}


DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
}
DEEPSEEK3 = {**DEEPSEEK, "model_type": "deepseek_v3"}


def parse(base: dict[str, Any], **changes: Any) -> Any:
    return parse_config({**base, **changes}, Path("model"))


def test_mixtral() -> None:
    config = parse(MIXTRAL, rope_theta=5e5, sliding_window=128, eos_token_id=[2, 7])
    assert config.head_dim == 16 and config.moe_layers == (0, 1, 2) and config.dense_hidden == 0
    assert config.moe.expert_hidden == 96 and config.moe.router.renormalize and config.rope.theta == 5e5
    assert config.windows == (128,) * 3 and config.eos_ids == (2, 7) and config.norm_eps == 1e-5
    assert config.expert_parameters == 3 * 64 * 96


def test_qwen3_moe_dense_layers_and_flags() -> None:
    config = parse(QWEN, mlp_only_layers=[1], decoder_sparse_step=2, sliding_window=64, attention_bias=True)
    assert config.moe_layers == (3, 5) and config.dense_hidden == 128 and not config.is_moe(1)
    assert config.head_dim == 32 and not config.moe.router.renormalize and config.windows == (None,) * 6
    assert config.biases == {"q", "k", "v", "o"} and config.family.qk_norm == "head"
    assert parse(QWEN, use_sliding_window=True, sliding_window=64).windows == (64,) * 6


def test_qwen2_moe_shared_expert_biases_and_windows() -> None:
    base = {**QWEN, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 80, "head_dim": None}
    config = parse(base)
    assert config.moe.shared == SharedSpec(hidden=80, gated=True) and config.biases == {"q", "k", "v"}
    assert config.windows == (None,) * 6 and config.head_dim == 16 and not config.moe.router.renormalize
    sliding = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}
    assert parse(base, **sliding).windows == (9, None, 9, None, None, None)
    kinds = ["full_attention", "sliding_attention"] * 3
    assert parse(base, **sliding, layer_types=kinds).windows == (None, 9) * 3
    with pytest.raises(ConfigError, match=r"layer_types.*a list of 6 of sliding_attention, full_attention"):
        parse(base, **sliding, layer_types=["chunked_attention"] * 6)
    assert not parse(base, qkv_bias=False).biases


def test_olmoe() -> None:
    base = {**MIXTRAL, "model_type": "olmoe", "num_experts": 8, "num_local_experts": None}
    config = parse(base, clip_qkv=8.0)
    assert config.clip_qkv == 8.0 and config.family.qk_norm == "row" and config.norm_eps == 1e-5
    assert not config.moe.router.renormalize and config.moe.expert_hidden == 96 and not config.biases
    assert parse(base).clip_qkv is None


def test_deepseek_v2() -> None:
    config = parse(DEEPSEEK, first_k_dense_replace=1, attention_bias=True)
    assert config.latent == LatentSpec(rank=32, query_rank=1536, plain_dim=16, rope_dim=8, value_dim=12)
    assert config.head_dim == 24 and config.rope_dim == 8 and config.kv_values_per_token == 4 * 40
    assert config.moe_layers == (1, 2, 3) and config.moe.shared == SharedSpec(hidden=96)
    assert config.moe.router == RouterSpec(renormalize=False) and config.biases == {"q_a", "kv_a", "o"}
    direct = parse(DEEPSEEK, q_lora_rank=None, n_shared_experts=None)
    assert direct.latent.query_rank is None and direct.moe.shared is None
    grouped = {
        "topk_method": "group_limited_greedy",
        "n_group": 8,
        "topk_group": 3,
        "routed_scaling_factor": 16.0,
    }
    assert parse(DEEPSEEK, **grouped).moe.router == RouterSpec(
        renormalize=False, scale=16.0, groups=8, groups_kept=3, group_score="max"
    )


def test_deepseek_v3() -> None:
    config = parse(DEEPSEEK3, rope_interleave=False, scoring_func="sigmoid", topk_method="noaux_tc")
    assert config.moe.router == RouterSpec(
        scoring="sigmoid", scale=2.5, groups=8, groups_kept=4, group_score="top2"
    )
    assert config.latent is not None and not config.latent.interleaved and config.moe_layers == (3,)


def test_gpt_oss_defaults() -> None:
    config = parse({**MIXTRAL, "model_type": "gpt_oss"})
    assert (
        config.windows == (128, None, 128) and config.biases == {"q", "k", "v", "o"} and config.head_dim == 64
    )
    assert (config.rope.kind, config.rope.factor, config.rope.theta) == ("yarn", 32.0, 150_000.0)
    assert not config.rope.truncate and config.moe.activation.limit == 7.0 and config.moe.router.renormalize
    assert parse({**MIXTRAL, "model_type": "gpt_oss"}, sliding_window=None).windows == (None,) * 3


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        (DEEPSEEK, {"topk_method": "noaux_tc"}, "topk_method"),
        (DEEPSEEK, {"topk_method": "group_limited_greedy", "n_group": 5, "topk_group": 3}, "n_group"),
        (DEEPSEEK, {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 9}, "topk_group"),
        (
            DEEPSEEK,
            {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 1},
            "num_experts_per_tok",
        ),
        (DEEPSEEK, {"topk_method": "group_limited_greedy"}, "n_group"),
        (DEEPSEEK, {"scoring_func": "sigmoid"}, "scoring_func"),
        (DEEPSEEK, {"mlp_bias": True}, "mlp_bias"),
        (DEEPSEEK, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK, {"kv_lora_rank": None}, "kv_lora_rank"),
        (DEEPSEEK, {"q_lora_rank": 0}, "q_lora_rank"),
        (DEEPSEEK, {"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
        (DEEPSEEK, {"first_k_dense_replace": 4}, "num_hidden_layers"),
        (DEEPSEEK3, {"topk_method": "greedy"}, "topk_method"),
        (DEEPSEEK3, {"scoring_func": "softmax"}, "scoring_func"),
        (DEEPSEEK3, {"n_group": 16, "topk_group": 16}, "n_group"),
        (DEEPSEEK3, {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type"),
        ({**MIXTRAL, "model_type": "gpt_oss"}, {"swiglu_limit": 0.0}, "swiglu_limit"),
        ({**MIXTRAL, "model_type": "gpt_oss"}, {"layer_types": ["full_attention"]}, "layer_types"),
        ({**QWEN, "model_type": "olmoe"}, {"clip_qkv": -1.0}, "clip_qkv"),
        ({**QWEN, "model_type": "olmoe"}, {"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_bad_fields_of_families_are_named(base: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed|missing") as caught:
        parse(base, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "spelling",
    [
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
            }
        },
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            "rope_theta": 1e4,
        },
    ],
)
def test_rope_spellings(spelling: dict[str, Any]) -> None:
    rope = parse(MIXTRAL, **spelling).rope
    assert (rope.kind, rope.factor, rope.theta, rope.original_max_positions) == ("yarn", 4.0, 1e4, 32)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method"),
        ({"quantization_config": {}}, "quant_method"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_local_experts": -1}, "num_local_experts"),
        ({"hidden_size": 66}, "hidden_size"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(MIXTRAL, **changes)
    assert caught.value.field == field and caught.value.code.name == "INVALID_ARGUMENT"
    assert "config.json" in str(caught.value)


def test_every_layer_dense_is_refused() -> None:
    with pytest.raises(ConfigError, match="routed experts"):
        parse(QWEN, mlp_only_layers=list(range(6)))


def test_unknown_family_lists_the_supported_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(MIXTRAL, model_type="llama")
    supported = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss")
    assert all(name in str(caught.value) for name in supported)


def test_absent_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model directory"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{'model_type': 1}")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    assert load_config(tmp_path).directory == tmp_path


def test_torch_free_modules_do_not_import_torch() -> None:
    """The gateway's image has no torch: these must work without it."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import janus_models, janus_models.config, janus_models.checkpoint, janus_models.tokenizer\n"
        "import janus_models.fingerprint, janus_models.demo, janus_models.demo.source, janus_models.tiny"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
