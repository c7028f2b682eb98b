"""Configurations whose parity with transformers is tested; each is make_tiny's arguments."""

from __future__ import annotations

from typing import Any

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 5e5,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}

VARIANTS: dict[str, dict[str, Any]] = {
    "mixtral": {"family": "mixtral"},
    "mixtral-seed1": {"family": "mixtral", "seed": 1},
    "mixtral-window": {"family": "mixtral", "seed": 2, "sliding_window": 12},
    "mixtral-mha-tied": {
        "family": "mixtral",
        "seed": 3,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "mixtral-linear-rope": {"family": "mixtral", "seed": 4, "rope_parameters": LINEAR},
    "mixtral-sharded": {"family": "mixtral", "seed": 5, "max_shard_size": "400KB", "num_experts_per_tok": 3},
    "qwen3": {"family": "qwen3_moe"},
    "qwen3-seed1": {"family": "qwen3_moe", "seed": 1, "norm_topk_prob": False},
    "qwen3-dense-layers": {
        "family": "qwen3_moe",
        "seed": 2,
        "num_hidden_layers": 5,
        "mlp_only_layers": [0, 3],
    },
    "qwen3-sparse-step": {"family": "qwen3_moe", "seed": 3, "num_hidden_layers": 4, "decoder_sparse_step": 2},
    "qwen3-bias-window": {
        "family": "qwen3_moe",
        "seed": 4,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "head_dim": 32,
    },
    "qwen3-yarn": {"family": "qwen3_moe", "seed": 5, "rope_parameters": YARN},
    "qwen3-many-experts": {"family": "qwen3_moe", "seed": 6, "num_experts": 32, "num_experts_per_tok": 8},
    "qwen3-bfloat16": {"family": "qwen3_moe", "seed": 7, "dtype": "bfloat16"},
    "mixtral-float16": {"family": "mixtral", "seed": 8, "dtype": "float16"},
}
VARIANTS |= {
    "qwen2": {"family": "qwen2_moe"},
    "qwen2-dense-layers-norm": {
        "family": "qwen2_moe",
        "seed": 1,
        "norm_topk_prob": True,
        "num_hidden_layers": 5,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    },
    "qwen2-window-no-bias": {
        "family": "qwen2_moe",
        "seed": 2,
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 11,
        "max_window_layers": 2,
        "num_hidden_layers": 4,
    },
    "qwen2-yarn-bfloat16": {"family": "qwen2_moe", "seed": 3, "rope_parameters": YARN, "dtype": "bfloat16"},
}
