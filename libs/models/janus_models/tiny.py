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
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
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
    """Write a random ``mixtral`` or ``qwen3_moe`` checkpoint with tokenizer and chat template.

    ``sizes`` are config.json fields and override the defaults (hidden 64, 3 layers, 4 heads, 2 kv heads,
    8 experts, top-2). Embeddings are N(0, 1) and matrices N(0, weight_scale / sqrt(columns)): experts differ,
    and greedy text wanders instead of repeating one token. About 3 s, nearly all importing transformers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    fields = {**_DEFAULTS, **sizes}
    experts = fields.pop("num_experts")
    if family == "mixtral":
        fields = {"intermediate_size": 96, "num_local_experts": experts, **fields}
    elif family == "qwen3_moe":
        fields = {
            "intermediate_size": 128,
            "moe_intermediate_size": 48,
            "num_experts": experts,
            "norm_topk_prob": True,
            **fields,
        }
    else:
        raise ConfigError(
            "no tiny checkpoint of this family",
            field="family",
            value=family,
            allowed="mixtral, qwen3_moe",
            reason="BAD_FIELD",
        )
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
        for name, weight in sorted(model.named_parameters()):
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
