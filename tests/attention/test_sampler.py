"""Choosing a token: the whole chain against transformers' processors, seeds, and what cannot be chosen from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from janus_attention.sampler import BadLogits, choose
from janus_attention.sequence import Sampling, Sequence

VOCAB = 40


def sequence(prompt: list[int], output: list[int], **sampling: Any) -> Sequence:
    return Sequence(id=1, prompt=len(prompt), tokens=prompt + output, sampling=Sampling(**sampling))


def case(seed: int) -> tuple[torch.Tensor, list[int], list[int], dict[str, Any]]:
    draw = random.Random(seed)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    prompt = [draw.randrange(VOCAB) for _ in range(5)]
    output = [draw.randrange(VOCAB) for _ in range(draw.randint(0, 12))]
    options = {
        "temperature": draw.choice([0.5, 1.0, 1.7]),
        "top_k": draw.choice([0, 3, 12]),
        "top_p": draw.choice([1.0, 0.9, 0.4]),
        "min_p": draw.choice([0.0, 0.05, 0.4]),
        "repetition_penalty": draw.choice([1.0, 1.2, 0.7]),
        "frequency_penalty": draw.choice([0.0, 0.8]),
        "presence_penalty": draw.choice([0.0, -0.6]),
        "logit_bias": tuple((t, draw.uniform(-4, 4)) for t in draw.sample(range(VOCAB), draw.randint(0, 6))),
        "min_tokens": draw.choice([0, 6]),
        "stop_token_ids": frozenset(draw.sample(range(VOCAB), 3)),
    }
    return logits, prompt, output, options


def probabilities(
    logits: torch.Tensor, prompt: list[int], output: list[int], options: dict[str, Any]
) -> torch.Tensor:
    """What transformers (and OpenAI's formula for its two penalties) makes of it, fp64 [V]."""
    import transformers as hf

    ids, scores = torch.tensor([prompt + output]), logits[None].clone()
    scores = hf.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])(ids, scores)
    for token in range(VOCAB):
        count = output.count(token)
        scores[0, token] -= options["frequency_penalty"] * count + options["presence_penalty"] * float(
            count > 0
        )
    if options["logit_bias"]:
        scores = hf.SequenceBiasLogitsProcessor([[[t], b] for t, b in options["logit_bias"]])(ids, scores)
    if len(output) < options["min_tokens"]:
        scores[0, sorted(options["stop_token_ids"])] = float("-inf")
    scores = hf.TemperatureLogitsWarper(options["temperature"])(ids, scores)
    if options["top_k"]:
        scores = hf.TopKLogitsWarper(options["top_k"])(ids, scores)
    if options["top_p"] < 1:
        scores = hf.TopPLogitsWarper(options["top_p"])(ids, scores)
    if options["min_p"]:
        scores = hf.MinPLogitsWarper(options["min_p"])(ids, scores)
    return scores[0].double().softmax(0)


@pytest.mark.parametrize("seed", range(20))
def test_the_whole_chain_has_the_distribution_of_transformers(seed: int) -> None:
    logits, prompt, output, options = case(seed)
    expected = probabilities(logits, prompt, output, options).numpy()
    count = 4000
    tokens = [choose(sequence(prompt, output, seed=s, **options), logits).token for s in range(count)]
    found = np.bincount(tokens, minlength=VOCAB)
    assert not found[expected == 0].any(), "a token that transformers forbids"
    # Pearson's chi-squared over the tokens that can be expected at all, the others as one.
    usual = expected * count >= 5
    pairs = [*zip(found[usual], expected[usual] * count, strict=True)]
    if expected[~usual].sum() > 0:
        pairs.append((found[~usual].sum(), expected[~usual].sum() * count))
    statistic = sum((f - e) ** 2 / e for f, e in pairs)
    freedom = max(1, len(pairs) - 1)
    # Mean and variance of the distribution are freedom and 2 freedom: five sigma, and room for its tail.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("seed", range(20))
def test_greedy_takes_the_likeliest_of_what_the_chain_leaves(seed: int) -> None:
    logits, prompt, output, options = case(seed)
    open_ended = {**options, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    expected = int(probabilities(logits, prompt, output, {**open_ended, "temperature": 1.0}).argmax())
    assert choose(sequence(prompt, output, **{**options, "temperature": 0.0}), logits).token == expected


def test_draws_at_different_places_and_of_different_seeds_are_independent() -> None:
    """Pairs of neighbouring draws cover the product of their distributions."""
    logits = torch.zeros(4)
    for pairs in (
        [(choose(sequence([1], [1] * i, seed=3), logits).token,
          choose(sequence([1], [1] * (i + 1), seed=3), logits).token) for i in range(0, 4000, 2)],
        [(choose(sequence([1], [], seed=s), logits).token,
          choose(sequence([1], [], seed=s + 1), logits).token) for s in range(2000)],
    ):  # fmt: skip
        counts = np.zeros((4, 4))
        for a, b in pairs:
            counts[a, b] += 1
        assert ((counts - 125) ** 2 / 125).sum() < 15 + 5 * 30**0.5


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    logits, prompt, output, options = case(3)
    chosen = choose(sequence(prompt, output, logprobs=5, **options), logits)
    raw = logits.double().log_softmax(0)
    assert chosen.logprob == pytest.approx(float(raw[chosen.token]), abs=1e-5)
    best = raw.topk(5)
    assert [t for t, _ in chosen.top] == best.indices.tolist()
    np.testing.assert_allclose([p for _, p in chosen.top], best.values.numpy(), atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.zeros(VOCAB)
    logits[7] = bad
    for options in ({}, {"repetition_penalty": 1.5, "logit_bias": ((7, -100.0),)}):
        with pytest.raises(BadLogits):
            choose(sequence([7], [], **options), logits)
    with pytest.raises(BadLogits):
        choose(sequence([7], []), torch.full((VOCAB,), float("-inf")))
