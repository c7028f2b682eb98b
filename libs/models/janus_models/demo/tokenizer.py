"""tokenizer.json and its settings from the GGUF's vocabulary. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from janus_models.demo.source import DenseSource

CONTROL = 3
"""GGUF's token type of special tokens."""


def build_tokenizer(source: DenseSource) -> Tokenizer:
    """The byte-level BPE tokenizer that the GGUF describes.

    Text is split as transformers splits it when it reads this GGUF, so that ids agree with it exactly. (The
    original also splits every digit off before that, which only matters for blanks in front of digits.)
    """
    tokens: list[str] = source.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in source.field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    types = source.field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL
        ]
    )
    return tokenizer


def write_tokenizer(source: DenseSource, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json (chat template inside) and generation_config.json."""
    build_tokenizer(source).save(str(directory / "tokenizer.json"))
    tokens: list[str] = source.field("tokenizer.ggml.tokens")
    special = source.special_ids
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": tokens[special["bos_token_id"]],
        "eos_token": tokens[special["eos_token_id"]],
        "pad_token": tokens[special["pad_token_id"]],
        "unk_token": tokens[int(source.field("tokenizer.ggml.unknown_token_id"))],
        "chat_template": source.field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(source.field("llama.context_length")),
    }
    generation = {**special, "eos_token_id": [special["eos_token_id"]]}
    for name, content in (("tokenizer_config.json", settings), ("generation_config.json", generation)):
        (directory / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
