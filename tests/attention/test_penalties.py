"""Penalties, bias and masks against loops over one token at a time, and against transformers' processors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from janus_attention.history import TokenHistory
from janus_kernels.ops import add_bias, allow, forbid, penalize

SEEDS = range(12)
F32 = np.float32


def inputs(seed: int) -> tuple[torch.Tensor, list[int], int, random.Random]:
    """Logits, tokens (prompt and output), length of the prompt."""
    draw = random.Random(seed)
    vocab = draw.choice([3, 50, 1000])
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 5
    logits[draw.randrange(vocab)] = float("-inf")
    tokens = [draw.randrange(vocab) for _ in range(draw.choice([1, 40, 700]))]
    return logits, tokens, draw.randint(1, len(tokens)), draw


def reference(
    logits: torch.Tensor, tokens: list[int], prompt: int, repetition: float, frequency: float, presence: float
) -> torch.Tensor:
    """Each token by itself, in float32."""
    out = [F32(x) for x in logits.tolist()]
    for token in range(len(out)):
        if token in tokens:
            out[token] = out[token] * F32(repetition) if out[token] < 0 else out[token] / F32(repetition)
        count = tokens[prompt:].count(token)
        if count:
            out[token] = out[token] - (F32(frequency) * F32(count) + F32(presence))
    return torch.tensor(np.array(out, F32))


@pytest.mark.parametrize("seed", SEEDS)
def test_penalties(seed: int) -> None:
    logits, tokens, prompt, draw = inputs(seed)
    before = logits.clone()
    repetition = draw.choice([1.0, 0.5, 1.3, 2.0])
    frequency, presence = (draw.choice([0.0, -2.0, 0.37, 1.1]) for _ in range(2))
    ids, counts = TokenHistory().update(tokens, prompt)
    got = penalize(logits, ids, counts, repetition=repetition, frequency=frequency, presence=presence)
    expected = reference(logits, tokens, prompt, repetition, frequency, presence)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(logits, before), "the input stays as it was"


@pytest.mark.parametrize("seed", SEEDS)
def test_repetition_and_bias_as_transformers(seed: int) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

    logits, tokens, prompt, draw = inputs(seed)
    ids, counts = TokenHistory().update(tokens, prompt)
    penalty = draw.uniform(0.5, 2.0)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits[None].clone())[0]
    torch.testing.assert_close(penalize(logits, ids, counts, repetition=penalty), theirs)
    vocab = logits.shape[0]
    bias = {token: draw.uniform(-100, 100) for token in draw.sample(range(vocab), min(vocab, 20))}
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    theirs = processor(torch.tensor([tokens]), logits[None].clone())[0]
    ours = add_bias(logits, torch.tensor(list(bias)), torch.tensor(list(bias.values())))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_masks(seed: int) -> None:
    logits, _, _, draw = inputs(seed)
    vocab = logits.shape[0]
    allowed = {token for token in range(vocab) if draw.random() < 0.3}
    bits = bytearray(4 * -(-vocab // 32))
    for token in allowed:
        bits[token // 8] |= 1 << token % 8
    expected = torch.tensor([x if v in allowed else float("-inf") for v, x in enumerate(logits.tolist())])
    assert torch.equal(allow(logits, bytes(bits)), expected)
    banned = sorted(set(range(vocab)) - allowed)
    assert torch.equal(forbid(logits, torch.tensor(banned, dtype=torch.int64)), expected)
    short = {token for token in allowed if token < 8 * (len(bits) // 2)}
    expected = torch.tensor([x if v in short else float("-inf") for v, x in enumerate(logits.tolist())])
    assert torch.equal(allow(logits, bytes(bits[: len(bits) // 2])), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_history_grows_as_its_tokens_do(seed: int) -> None:
    _, tokens, prompt, draw = inputs(seed)
    history, given = TokenHistory(), prompt
    while True:
        ids, counts = history.update(tokens[:given], prompt)
        seen = {int(i): int(c) for i, c in zip(ids, counts, strict=True)}
        assert seen == {t: tokens[prompt:given].count(t) for t in tokens[:given]}
        assert len(seen) == len(ids)
        if given == len(tokens):
            break
        given = min(len(tokens), given + draw.randint(1, 90))
