"""Steps that check several guessed tokens of a stream: same tokens, fewer steps where guesses are right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from janus_attention.batch import build
from janus_attention.batcher import Piece
from janus_attention.drafter import PromptLookup
from janus_attention.engine import EngineOptions
from janus_attention.sequence import Sampling
from janus_attention.sequence import Sequence as Stream
from janus_testing.inprocess import InProcessMesh, settled

PROMPTS = [[5, 9, 14, 3, 77, 21, 5, 9], [40, 41, 42], [8, 8, 8, 8, 8, 8]]


class Oracle:
    """Knows the answers, and errs at random."""

    def __init__(self, answers: Sequence[Sequence[int]], wrong: float) -> None:
        self.known = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, answers, strict=True)]
        self.wrong = wrong
        self.random = random.Random(1)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        size = len(tokens)
        whole = next(known for known in self.known if known[:size] == list(tokens))
        guesses = whole[size : size + self.random.randint(0, most)]
        return [3 if self.random.random() < self.wrong else token for token in guesses]


SAMPLINGS = [{"temperature": 0.0}, {"temperature": 0.9, "seed": 4, "top_p": 0.95, "frequency_penalty": 0.3}]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_guesses_change_nothing_but_the_number_of_steps(
    mixtral: Path, wrong: float, sampling: dict[str, float]
) -> None:
    ask = {"max_tokens": 24, "logits": True, **sampling}
    options = EngineOptions(kv_tokens=2048, block_size=4, max_batch_tokens=16)
    with InProcessMesh(mixtral, experts=2, attention_options=options) as mesh:
        plain = mesh.generate(PROMPTS, **ask)
        steps = settled(mesh, 3 * 24)["steps"]
    options = EngineOptions(kv_tokens=2048, block_size=4, max_batch_tokens=16, draft_tokens=4)
    oracle = Oracle([answer.tokens for answer in plain], wrong)
    with InProcessMesh(mixtral, experts=2, attention_options=options, drafter=oracle) as mesh:
        drafted = mesh.generate(PROMPTS, **ask)
        stats = settled(mesh, 3 * 24)
    for a, b in zip(plain, drafted, strict=True):
        assert a.tokens == b.tokens
        assert np.array_equal(np.stack(a.logits), np.stack(b.logits))
    assert stats["generated_tokens"] == 3 * 24
    assert 0 < stats["accepted_tokens"] <= stats["drafted_tokens"]
    assert (stats["accepted_tokens"] == stats["drafted_tokens"]) == (wrong == 0.0)
    assert stats["steps"] < 0.8 * steps


def test_prompt_lookup_through_the_engine(mixtral: Path) -> None:
    prompt = [11, 12, 13, 14, 15] * 4
    tokens = []
    for count in (0, 3):
        options = EngineOptions(kv_tokens=512, draft_tokens=count)
        with InProcessMesh(mixtral, experts=2, attention_options=options) as mesh:
            tokens.append(mesh.answer(mesh.submit(prompt, max_tokens=30)).tokens)
            assert (settled(mesh, 30)["drafted_tokens"] > 0) == (count > 0)
    assert tokens[0] == tokens[1]


def test_prompt_lookup() -> None:
    drafter = PromptLookup(longest=3, shortest=2)
    assert drafter.propose([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    # The latest occurrence, and the longest match, come first.
    assert drafter.propose([5, 1, 2, 7, 0, 1, 2, 8, 5, 1, 2], 1) == [7]
    assert drafter.propose([1, 2, 3], 4) == []
    assert drafter.propose([], 4) == []


def test_rows_of_a_batch_with_drafts() -> None:
    def stream(number: int, tokens: list[int], computed: int, blocks: list[int]) -> Stream:
        return Stream(
            id=number,
            prompt=len(tokens),
            tokens=tokens,
            sampling=Sampling(),
            computed=computed,
            blocks=blocks,
        )

    pieces = [
        Piece(stream(1, [10, 11, 12], 2, [3, 0]), 3, (13, 14)),
        Piece(stream(2, [20, 21, 22, 23], 0, [5]), 2),
        Piece(stream(3, [30, 31], 0, [6]), 2),
    ]
    step = build(pieces, block_size=4)
    assert step.token_ids.tolist() == [12, 13, 14, 20, 21, 30, 31]
    assert step.lanes[0].positions.tolist() == [2, 3, 4, 0, 1, 0, 1]
    assert step.lanes[0].slots.tolist() == [14, 15, 0, 20, 21, 24, 25]
    assert step.lanes[0].context_lens.tolist() == [5, 2, 2]
    assert torch.equal(step.last_rows, torch.tensor([0, 1, 2, 6]))
    assert [piece.rows for piece in pieces] == [3, 0, 1]
