"""The demo model through the mesh against the dense original in transformers, on ShareGPT prompts."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from janus_models import reference
from janus_models.demo import build_demo
from janus_models.demo.source import find_gguf
from janus_testing.inprocess import InProcessMesh
from janus_testing.sharegpt import chat_prompts

DEMO = Path(__file__).parents[2] / ".janus" / "demo"
SHAPES = [(1, 1), (1, 3), (2, 2), (3, 2)]


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo checkpoint, built once (20 s, 2.8 GB) and kept."""
    build_demo(DEMO)
    return DEMO


@functools.lru_cache(maxsize=64)
def dense_ids(prompt: tuple[int, ...], tokens: int) -> list[int]:
    gguf = find_gguf()
    return reference.generate(gguf.parent, prompt, tokens, gguf_file=gguf.name).ids


def check(demo: Path, shape: tuple[int, int], count: int, tokens: int) -> None:
    prompts = chat_prompts(demo, count)
    with InProcessMesh(demo, attention=shape[0], experts=shape[1], slots=8, timeout_s=900) as mesh:
        answers = mesh.generate(prompts, max_tokens=tokens)
    wrong = [
        i
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if answer.tokens != dense_ids(tuple(prompt), tokens)
    ]
    assert not wrong, f"prompts {wrong} of {count} differ"


@pytest.mark.timeout(300)
def test_a_few_prompts(demo: Path) -> None:
    check(demo, (2, 2), count=3, tokens=12)


@pytest.mark.timeout(300)
def test_logits(demo: Path) -> None:
    gguf = find_gguf()
    prompt = chat_prompts(demo, 1)[0]
    expected = reference.generate(gguf.parent, prompt, 4, gguf_file=gguf.name)
    with InProcessMesh(demo, attention=1, experts=2, slots=8) as mesh:
        answer = mesh.answer(mesh.submit(prompt, max_tokens=4, logits=True))
    np.testing.assert_allclose(np.stack(answer.logits), expected.logits.numpy(), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_twenty_prompts(demo: Path, shape: tuple[int, int]) -> None:
    check(demo, shape, count=20, tokens=64)
