"""Sampled streams on a mesh: same seed, same tokens, in any company and on any worker; one's failure is its own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from janus_models.config import load_config
from janus_models.tiny import make_tiny
from janus_testing.inprocess import InProcessMesh
from safetensors.torch import load_file, save_file

VOCAB = 512


def options(draw: random.Random) -> dict[str, Any]:
    return {
        "temperature": draw.choice([0.0, 0.7, 1.3]),
        "seed": draw.getrandbits(64),
        "top_k": draw.choice([0, 50]),
        "top_p": draw.choice([1.0, 0.9]),
        "repetition_penalty": draw.choice([1.0, 1.3]),
        "frequency_penalty": draw.choice([0.0, 0.9]),
        "presence_penalty": draw.choice([0.0, -0.5]),
        "logit_bias": [[draw.randrange(VOCAB), draw.uniform(-5, 5)] for _ in range(1)],
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_same_seed_same_tokens_in_any_company_and_resumed_anywhere(mixtral: Path, seed: int) -> None:
    draw = random.Random(seed)
    asked = [
        ([draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 30))], options(draw)) for _ in range(6)
    ]
    alone = []
    with InProcessMesh(mixtral) as mesh:
        for prompt, sampling in asked:
            alone.append(mesh.answer(mesh.submit(prompt, max_tokens=14, **sampling)).tokens)
    with InProcessMesh(mixtral, attention=2, experts=3) as mesh:
        numbers = [mesh.submit(p, worker=i % 2, max_tokens=14, **s) for i, (p, s) in enumerate(asked)]
        assert [mesh.answer(n).tokens for n in numbers] == alone
        # As after a worker's loss: another one gets what the client already has, and goes on.
        cuts = [draw.randint(1, 13) for _ in asked]
        numbers = [
            mesh.submit(p, worker=(i + 1) % 2, max_tokens=14, resumed=alone[i][: cuts[i]], **s)
            for i, (p, s) in enumerate(asked)
        ]
        assert [alone[i][: cuts[i]] + mesh.answer(n).tokens for i, n in enumerate(numbers)] == alone


def test_bias_forces_and_forbids(mixtral: Path) -> None:
    with InProcessMesh(mixtral) as mesh:
        free, forced, frequent = mesh.generate([[5, 6, 7]], max_tokens=6) + [
            mesh.answer(mesh.submit([5, 6, 7], max_tokens=6, **more))
            for more in (
                {"logit_bias": [[99, 100.0]]},
                {"frequency_penalty": 2.0, "logit_bias": [[99, 100.0]]},
            )
        ]
        banned = mesh.answer(mesh.submit([5, 6, 7], max_tokens=6, logit_bias=[[free.tokens[0], -100.0]]))
    assert forced.tokens == [99] * 6
    assert frequent.tokens == [99] * 6, "100 outweighs 2 per use"
    assert free.tokens[0] not in banned.tokens


def test_a_stream_that_reaches_the_context_ends_with_length(tmp_path: Path) -> None:
    make_tiny(tmp_path, family="mixtral", seed=5, max_position_embeddings=32)
    assert load_config(tmp_path).max_positions == 32
    with InProcessMesh(tmp_path) as mesh:
        long, short = mesh.generate([[5] * 29, [6] * 3], max_tokens=12)
    assert (long.finish, len(long.tokens)) == ("length", 3)
    assert (short.finish, len(short.tokens)) == ("length", 12)


def test_logits_that_are_no_numbers_fail_their_own_request_alone(tmp_path: Path) -> None:
    make_tiny(tmp_path, family="mixtral", seed=5)
    prompts = [[5, 6, 7], [8, 9], [10] * 20]
    with InProcessMesh(tmp_path, attention=2, experts=2) as mesh:
        expected = [a.tokens for a in mesh.generate(prompts, max_tokens=12)]
    poison = next(t for t in range(3, VOCAB) if all(t not in tokens for tokens in [*prompts, *expected]))
    file = next(tmp_path.glob("*.safetensors"))
    weights = load_file(file)
    weights["model.embed_tokens.weight"][poison] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with InProcessMesh(tmp_path, attention=2, experts=2) as mesh:
        numbers = [mesh.submit(p, worker=i % 2, max_tokens=12) for i, p in enumerate(prompts)]
        bad = [mesh.submit([5, poison, 7], worker=w, max_tokens=12) for w in (0, 1)]
        assert [mesh.answer(n).tokens for n in numbers] == expected
        for answer in map(mesh.answer, bad):
            assert (answer.finish, answer.tokens) == ("error", [])
            assert "not finite" in answer.error
        assert mesh.generate(prompts[:1], max_tokens=12)[0].tokens == expected[0]
