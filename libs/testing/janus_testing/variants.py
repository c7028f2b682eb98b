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
VARIANTS |= {
    "olmoe": {"family": "olmoe"},
    "olmoe-clip-norm": {"family": "olmoe", "seed": 1, "clip_qkv": 0.8, "norm_topk_prob": True},
    "olmoe-bias-yarn": {
        "family": "olmoe",
        "seed": 2,
        "attention_bias": True,
        "rope_parameters": YARN,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 4,
    },
    "olmoe-float16": {"family": "olmoe", "seed": 3, "dtype": "float16", "clip_qkv": 2.0},
}
MSCALE = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.9}
VARIANTS |= {
    "deepseek2": {"family": "deepseek_v2"},
    "deepseek2-direct-query-scaled": {
        "family": "deepseek_v2",
        "seed": 1,
        "q_lora_rank": None,
        "routed_scaling_factor": 1.7,
        "first_k_dense_replace": 0,
        "n_shared_experts": 1,
    },
    "deepseek2-groups": {
        "family": "deepseek_v2",
        "seed": 2,
        "topk_method": "group_limited_greedy",
        "num_experts": 16,
        "n_group": 8,
        "topk_group": 3,
        "num_experts_per_tok": 4,
    },
    "deepseek2-yarn": {"family": "deepseek_v2", "seed": 3, "rope_parameters": MSCALE, "norm_topk_prob": True},
    "deepseek2-yarn-direct-bias": {
        "family": "deepseek_v2",
        "seed": 4,
        "q_lora_rank": None,
        "attention_bias": True,
        "rope_parameters": YARN,
    },
    "deepseek2-bfloat16": {
        "family": "deepseek_v2",
        "seed": 5,
        "dtype": "bfloat16",
        "rope_parameters": MSCALE,
    },
}
VARIANTS |= {
    "deepseek3": {"family": "deepseek_v3"},
    "deepseek3-yarn-no-norm": {
        "family": "deepseek_v3",
        "seed": 1,
        "rope_parameters": MSCALE,
        "norm_topk_prob": False,
        "num_experts_per_tok": 3,
    },
    "deepseek3-direct-query-halves": {
        "family": "deepseek_v3",
        "seed": 2,
        "q_lora_rank": None,
        "rope_interleave": False,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "num_hidden_layers": 2,
    },
    "deepseek3-bias-many-experts": {
        "family": "deepseek_v3",
        "seed": 3,
        "attention_bias": True,
        "num_experts": 32,
        "n_group": 8,
        "topk_group": 3,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
    },
    "deepseek3-float16": {"family": "deepseek_v3", "seed": 4, "dtype": "float16"},
}
VARIANTS |= {
    "gpt-oss": {"family": "gpt_oss"},
    "gpt-oss-plain-rope": {
        "family": "gpt_oss",
        "seed": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
        "attention_bias": False,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 7,
    },
    "gpt-oss-clamped": {
        "family": "gpt_oss",
        "seed": 2,
        "swiglu_limit": 1.5,
        "swiglu_alpha": 1.2,
        "num_experts_per_tok": 4,
        "rope_parameters": {**YARN, "truncate": False},
    },
    "gpt-oss-bfloat16": {"family": "gpt_oss", "seed": 3, "dtype": "bfloat16"},
}
