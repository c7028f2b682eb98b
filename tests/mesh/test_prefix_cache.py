"""A shared prefix is computed once, and nobody can tell: bit for bit, whatever is preempted, cancelled or evicted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from janus_attention.engine import EngineOptions
from janus_models.reference import generate
from janus_testing.inprocess import Answer, InProcessMesh, settled

SHARED = [7 + 3 * i % 90 for i in range(37)]


def bits(answer: Answer) -> bytes:
    return b"".join(row.tobytes() for row in answer.logits)


def questions(seed: int, count: int) -> list[list[int]]:
    """Prompts that begin alike, some wholly, some in part."""
    draw = random.Random(seed)
    return [
        SHARED[: draw.choice([11, 24, 37])] + [draw.randrange(3, 99) for _ in range(draw.randrange(1, 14))]
        for _ in range(count)
    ]


def test_same_bits_with_and_without(tiny: Path) -> None:
    asked = questions(1, 6)
    results = []
    for cache in (False, True):
        options = EngineOptions(kv_tokens=2048, block_size=4, max_batch_tokens=24, prefix_cache=cache)
        with InProcessMesh(tiny, experts=2, attention_options=options) as mesh:
            alone = [mesh.answer(mesh.submit(prompt, max_tokens=6, logits=True)) for prompt in asked]
            crowd = mesh.generate(asked, max_tokens=6, logits=True)
            hits = settled(mesh, 72)["prefix_hit_tokens"]
        results.append([(a.tokens, bits(a)) for a in (*alone, *crowd)])
        assert (hits > 6 * 11) == cache
        # Neighbours, chunks and cached blocks change nothing.
        assert results[-1][:6] == results[-1][6:]
    assert results[0] == results[1]


def test_a_turn_finds_the_one_before(mixtral: Path) -> None:
    options = EngineOptions(kv_tokens=1024, block_size=4)
    with InProcessMesh(mixtral, experts=2, attention_options=options) as mesh:
        first = mesh.answer(mesh.submit(SHARED, max_tokens=12)).tokens
        turn = SHARED + first + [5, 6, 7]
        assert mesh.answer(mesh.submit(turn, max_tokens=8)).tokens == generate(mixtral, turn, 8).ids
        # All but the last block of prompt and answer: the answer's last token was never computed.
        assert settled(mesh, 20)["prefix_hit_tokens"] == (37 + 12 - 1) // 4 * 4


@pytest.mark.parametrize("seed", range(3))
def test_tiny_cache_with_cancellations_and_new_cohorts(mixtral: Path, seed: int) -> None:
    """Three sequences' worth of blocks for ten: preempted, evicted, found again, cancelled, stepped again."""
    draw = random.Random(seed)
    options = EngineOptions(kv_tokens=160, block_size=4, max_batch_tokens=16, max_sequences=6)
    asked = questions(seed + 10, 10)
    expected = [generate(mixtral, prompt, 20).ids for prompt in asked]
    with InProcessMesh(mixtral, attention=1, experts=2, attention_options=options) as mesh:
        numbers = [mesh.submit(prompt, max_tokens=20, priority=i % 2) for i, prompt in enumerate(asked)]
        doomed = set(draw.sample(range(10), 2))
        mesh.pump(lambda: sum(len(mesh.peek(n).tokens) for n in numbers) > 25, "some tokens")
        for i in doomed:
            mesh.cancel(numbers[i])
        mesh.form()
        answers = [mesh.answer(number) for number in numbers]
        mesh.pump(lambda: mesh.attention[0].stats.get("kv_tokens_used") == 0, "blocks given back")
        stats = mesh.attention[0].stats
    for i, (answer, tokens) in enumerate(zip(answers, expected, strict=True)):
        assert answer.tokens == tokens[: len(answer.tokens)]
        assert len(answer.tokens) == 20 or (i in doomed and answer.finish == "cancelled")
    assert stats["preemptions"] > 0 and stats["prefix_evictions"] > 0


def test_priorities_and_queue_time(mixtral: Path) -> None:
    options = EngineOptions(kv_tokens=512, max_sequences=1)
    with InProcessMesh(mixtral, attention_options=options) as mesh:
        first = mesh.submit(SHARED, max_tokens=30)
        mesh.pump(lambda: bool(mesh.peek(first).tokens), "a first token")
        low = mesh.submit(SHARED[:5], max_tokens=4)
        high = mesh.submit(SHARED[:9], max_tokens=4, priority=-5)
        # It takes the place of the running one, which goes on exactly afterwards.
        assert mesh.answer(high).tokens == generate(mixtral, SHARED[:9], 4).ids
        assert not mesh.peek(low).tokens and not mesh.peek(first).finish
        assert mesh.answer(first).tokens == generate(mixtral, SHARED, 30).ids
        mesh.answer(low)
        mesh.pump(lambda: mesh.attention[0].stats.get("requests_started") == 3, "the last report")
        assert mesh.attention[0].stats["queue_seconds"] > 0


def test_an_urgent_request_overtakes_where_memory_is_short(mixtral: Path) -> None:
    """Blocks for two streams, and eight in line: the last to come has a lower number and ends first; none is lost."""
    options = EngineOptions(kv_tokens=112, block_size=8, prefix_cache=False)
    asked = questions(31, 8)
    with InProcessMesh(mixtral, attention=1, experts=2, attention_options=options) as mesh:
        numbers = [mesh.submit(prompt, max_tokens=30, priority=2) for prompt in asked]
        mesh.pump(lambda: any(len(mesh.peek(n).tokens) > 3 for n in numbers), "some tokens")
        urgent = mesh.submit(SHARED, max_tokens=30, priority=-1)
        assert mesh.answer(urgent).tokens == generate(mixtral, SHARED, 30).ids
        assert sum(1 for n in numbers if not mesh.peek(n).finish) > 5
        answers = [mesh.answer(number) for number in numbers]
        mesh.pump(lambda: mesh.attention[0].stats.get("preemptions", 0) > 0, "a preemption")
    assert [a.tokens for a in answers] == [generate(mixtral, p, 30).ids for p in asked]


def test_long_prompts_do_not_change_or_stop_a_stream(mixtral: Path) -> None:
    options = EngineOptions(kv_tokens=4096, max_batch_tokens=64)
    draw = np.random.default_rng(2)
    with InProcessMesh(mixtral, attention=2, experts=3, attention_options=options) as mesh:
        alone = mesh.answer(mesh.submit(SHARED, max_tokens=40, logits=True))
        stream = mesh.submit(SHARED, max_tokens=40, logits=True)
        long = [mesh.submit(draw.integers(3, 99, 400).tolist(), max_tokens=2) for _ in range(3)]
        streamed = mesh.answer(stream)
        for number in long:
            assert mesh.answer(number).finish == "length"
    assert streamed.tokens == alone.tokens
    assert bits(streamed) == bits(alone)


@pytest.mark.parametrize("crowded", [False, True])
def test_a_prompt_does_not_hold_up_streams_of_other_workers(mixtral: Path, crowded: bool) -> None:
    options = EngineOptions(kv_tokens=4096, max_batch_tokens=64, prefill_tokens=8)
    prompt = np.random.default_rng(1).integers(3, 99, 256).tolist()
    with InProcessMesh(mixtral, attention=2, experts=2, attention_options=options) as mesh:
        if crowded:
            stream = mesh.submit(SHARED, worker=1, max_tokens=2000)
            mesh.pump(lambda: len(mesh.peek(stream).tokens) > 3, "a stream")
        assert mesh.answer(mesh.submit(prompt, max_tokens=2)).tokens == generate(mixtral, prompt, 2).ids
        steps = settled(mesh, 2)["steps"]
    # 256 tokens by eight while the other worker's stream decodes, by 64 while nobody does.
    assert (steps > 30) if crowded else (steps < 8)
