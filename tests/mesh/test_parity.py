"""The mesh computes what transformers computes: token for token, logits within 1e-4, at any m and n."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from janus_models.config import load_config
from janus_models.reference import generate
from janus_testing.inprocess import InProcessMesh

SHAPES = [(1, 1), (1, 3), (2, 2), (3, 2)]


def prompts(directory: Path, count: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    vocab = load_config(directory).vocab_size
    return [[draw.randrange(3, vocab) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("gating", ["moe", "attention"])
def test_greedy_equals_transformers(tiny: Path, shape: tuple[int, int], gating: str) -> None:
    asked = prompts(tiny, 5, seed=shape[0] * 10 + shape[1])
    with InProcessMesh(tiny, attention=shape[0], experts=shape[1], gating=gating) as mesh:
        answers = mesh.generate(asked, max_tokens=12, logits=True)
    for prompt, answer in zip(asked, answers, strict=True):
        expected = generate(tiny, prompt, 12)
        assert answer.tokens == list(expected.ids)
        assert answer.finish == "length"
        np.testing.assert_allclose(np.stack(answer.logits), np.asarray(expected.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduling", ["optimal", "aebs", "token-balanced", "random"])
def test_any_policy_and_replicas_give_the_same_tokens(mixtral: Path, scheduling: str) -> None:
    asked = prompts(mixtral, 4, seed=3)
    with InProcessMesh(mixtral, attention=2, experts=3, slots=6, scheduling=scheduling) as mesh:
        answers = mesh.generate(asked, max_tokens=8)
    assert [a.tokens for a in answers] == [generate(mixtral, p, 8).ids for p in asked]
