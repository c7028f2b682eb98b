"""The oracle: transformers' own greedy generation. For tests and comparisons; imports transformers lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One greedy continuation."""

    ids: list[int]
    """new token ids; an end-of-sequence token is included and ends them"""
    logits: torch.Tensor
    """fp32 [len(ids), V]: what each id is the argmax of"""


@lru_cache(maxsize=2)
def load_model(model_dir: str | Path, gguf_file: str | None = None) -> Any:
    """transformers' model in float32 on the CPU; ``gguf_file`` names a GGUF in the directory."""
    from transformers import AutoModelForCausalLM

    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    return AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, **extra).eval()


def generate(
    model_dir: str | Path,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    gguf_file: str | None = None,
    stop_ids: Sequence[int] = (),
) -> Generation:
    """Greedy continuation of one prompt; ends after ``max_new_tokens`` or with the first of ``stop_ids``."""
    model = load_model(model_dir, gguf_file)
    ids: list[int] = []
    rows: list[torch.Tensor] = []
    step, cache = torch.tensor([list(prompt_ids)]), None
    with torch.inference_mode():
        while len(ids) < max_new_tokens and not (ids and ids[-1] in stop_ids):
            output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            rows.append(output.logits[0, -1].float())
            ids.append(int(rows[-1].argmax()))
            step = torch.tensor([[ids[-1]]])
    return Generation(ids=ids, logits=torch.stack(rows) if rows else torch.empty(0, model.config.vocab_size))


def prompt_logits(model_dir: str | Path, prompt_ids: Sequence[int]) -> torch.Tensor:
    """fp32 [len(prompt_ids), V]: logits at every position of one prompt."""
    with torch.inference_mode():
        logits: torch.Tensor = (
            load_model(model_dir)(input_ids=torch.tensor([list(prompt_ids)])).logits[0].float()
        )
    return logits


def greedy_ids(model_dir: str | Path, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[int]:
    """What transformers chooses after the prompt and each proper prefix of ``ids``, in one pass.

    Equal to ``ids`` exactly when ``ids`` is its greedy continuation: as :func:`generate`, but many times quicker.
    """
    logits = prompt_logits(model_dir, [*prompt_ids, *ids[:-1]])
    chosen: list[int] = logits[len(prompt_ids) - 1 :].argmax(-1).tolist()
    return chosen
