"""Tiny random checkpoints for tests, made and saved by transformers itself."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

from janus_models.errors import ConfigError

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_LATENT: dict[str, Any] = {
    **_SIZES,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**_GROUPED, "head_dim": 16, "intermediate_size": 96, "num_local_experts": 8},
    "qwen3_moe": {
        **_GROUPED,
        "head_dim": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "norm_topk_prob": True,
    },
    "qwen2_moe": {
        **_GROUPED,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "num_experts": 8,
    },
    "olmoe": {**_GROUPED, "intermediate_size": 48, "num_experts": 8},
    "deepseek_v2": {**_LATENT, "q_lora_rank": 24, "n_shared_experts": 2},
    "deepseek_v3": {**_LATENT, "q_lora_rank": 24, "n_group": 4, "topk_group": 2},
    "gpt_oss": {
        **_GROUPED,
        "head_dim": 16,
        "intermediate_size": 48,
        "num_local_experts": 8,
        "sliding_window": 24,
    },
}


def make_tiny(
    directory: str | Path,
    family: str = "mixtral",
    seed: int = 0,
    *,
    dtype: str = "float32",
    vocab_size: int = 512,
    weight_scale: float = 1.2,
    max_shard_size: str = "5GB",
    **sizes: Any,
) -> Path:
    """Write a random checkpoint of one of the families, with tokenizer and chat template.

    ``sizes`` are config.json fields (``num_experts`` in every family) and override the defaults: hidden 64,
    3 layers, 4 heads, 2 kv heads, 8 experts, top-2. Embeddings are N(0, 1) and matrices N(0, weight_scale /
    sqrt(columns)): experts differ, and greedy text wanders instead of repeating one token. About 3 s, nearly all
    importing transformers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if family not in _FAMILIES:
        raise ConfigError(
            "no tiny checkpoint of this family",
            field="family",
            value=family,
            allowed=", ".join(_FAMILIES),
            reason="BAD_FIELD",
        )
    fields = dict(_FAMILIES[family])
    if "num_experts" in sizes:
        spelled = next(
            key for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in fields
        )
        sizes[spelled] = sizes.pop("num_experts")
    fields.update(sizes)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    eos = SPECIAL.index("<|im_end|>")
    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, bos_token_id=0, eos_token_id=eos, pad_token_id=0, **fields
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # The global random generator must not notice, nor decide: every weight is drawn again from our own.
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config)
        # Buffers too where they are saved: DeepSeek-V3's correction bias.
        named = {**dict(model.named_parameters()), **_saved_buffers(model)}
        for name, weight in sorted(named.items()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_((1 if "norm" in name else 0) + 0.1 * noise)
            else:
                # A tied head would find the input token again in the residual: let the layers outweigh it.
                embedding = 0.1 if config.tie_word_embeddings else 1.0
                spread = embedding if "embed" in name else weight_scale / weight.shape[-1] ** 0.5
                weight.copy_(spread * noise)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[eos, 0], pad_token_id=0)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    write_tokenizer(directory, vocab_size)
    return directory


def _saved_buffers(model: Any) -> dict[str, Any]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def write_tokenizer(directory: Path, vocab_size: int = 512) -> None:
    """A byte-level BPE tokenizer of at most ``vocab_size`` ids (at least 259) with a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < len(SPECIAL) + 256:
        raise ConfigError(
            "too few ids for a byte-level tokenizer",
            field="vocab_size",
            value=vocab_size,
            allowed=f"at least {len(SPECIAL) + 256}",
            reason="BAD_FIELD",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )
    text = importlib.resources.files("janus_models").joinpath("sample.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
