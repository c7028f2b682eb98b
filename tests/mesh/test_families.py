"""Every family through the mesh at two attention and three MoE workers: what transformers computes, both gatings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from janus_models.config import load_config
from janus_models.families import FAMILIES
from janus_models.reference import greedy_ids, prompt_logits
from janus_models.tiny import make_tiny
from janus_testing.inprocess import InProcessMesh
from janus_testing.quantise import to_fp8, to_mxfp4

OTHERS = sorted(set(FAMILIES) - {"mixtral", "qwen3_moe"})  # those go through every shape in test_parity.py
VARIANTS = ["deepseek_v3 fp8", "gpt_oss mxfp4", "mixtral window"]
SIZES = {"mxfp4": {"intermediate_size": 64}, "window": {"sliding_window": 12}}


@pytest.fixture(scope="module", params=OTHERS + VARIANTS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, _, variant = request.param.partition(" ")
    plain = make_tiny(tmp_path_factory.mktemp(name), family=name, seed=21, **SIZES.get(variant, {}))
    if variant == "fp8":
        return to_fp8(plain, tmp_path_factory.mktemp(variant), (8, 8))
    return to_mxfp4(plain, tmp_path_factory.mktemp(variant)) if variant == "mxfp4" else plain


@pytest.mark.parametrize("gating", ["moe", "attention"])
def test_greedy_equals_transformers(family: Path, gating: str) -> None:
    draw = random.Random(gating)
    vocab = load_config(family).vocab_size
    prompts = [[draw.randrange(3, vocab) for _ in range(draw.randrange(1, 50))] for _ in range(4)]
    with InProcessMesh(family, attention=2, experts=3, gating=gating) as mesh:
        answers = mesh.generate(prompts, max_tokens=10, logits=True)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == greedy_ids(family, prompt, answer.tokens) and len(answer.tokens) == 10
        expected = prompt_logits(family, [*prompt, *answer.tokens[:-1]])[len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack(answer.logits), expected.numpy(), atol=1e-4, rtol=0)
