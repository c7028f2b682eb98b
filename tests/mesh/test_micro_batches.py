"""Two micro-batches in flight: the same bits as one, at any m and n, whoever splits and whatever goes wrong."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from janus_attention.engine import EngineOptions
from janus_kernels import Schedule
from janus_models.reference import generate
from janus_models.tiny import make_tiny
from janus_moe.compute import MoeCompute
from janus_moe.lanes import LaneAdvisor
from janus_testing.inprocess import Answer, InProcessMesh

OPTIONS = EngineOptions(kv_tokens=4096, max_batch_tokens=48)


def prompts(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randrange(3, 500) for _ in range(rng.randrange(1, 70))] for _ in range(count)]


def run(
    directory: Path, shape: tuple[int, int], choice: str, work: list[list[int]], **options: Any
) -> list[Answer]:
    chosen = dataclasses.replace(OPTIONS, micro_batches=choice)
    with InProcessMesh(
        directory, attention=shape[0], experts=shape[1], attention_options=chosen, **options
    ) as mesh:
        answers = mesh.generate(work, max_tokens=10, logits=True)
        count = lambda: sum(w.stats.get("split_steps", 0) for w in mesh.attention)  # noqa: E731
        if choice == "2":
            mesh.pump(lambda: count() > 0, "a split step")
        elif choice == "1":
            assert count() == 0
    return answers


def same(found: list[Answer], expected: list[Answer]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.tokens == b.tokens
        assert all(np.array_equal(x, y) for x, y in zip(a.logits, b.logits, strict=True)), "a bit differs"


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2"])
def test_the_same_bits_at_any_shape(tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    """Shared experts, a first dense layer, latent attention; prompts longer than a step."""
    directory = tmp_path_factory.mktemp(family)
    make_tiny(directory, family=family, seed=23)
    work = prompts(random.Random(family), 5)
    expected = run(directory, (1, 1), "1", work)
    assert [a.tokens for a in expected] == [list(generate(directory, p, 10).ids) for p in work]
    for shape, gating in (((1, 1), "moe"), ((2, 3), "moe"), ((3, 2), "attention")):
        same(run(directory, shape, "2", work, gating=gating), expected)


def test_workers_that_split_beside_workers_that_do_not(mixtral: Path) -> None:
    work = prompts(random.Random(4), 6)
    expected = run(mixtral, (1, 1), "1", work)
    with InProcessMesh(
        mixtral, attention=2, experts=2, attention_options=dataclasses.replace(OPTIONS, micro_batches="2")
    ) as mesh:
        mesh._attention_options = dataclasses.replace(OPTIONS, micro_batches="1")
        mesh.add_attention()
        mesh.form()
        same(mesh.generate(work, max_tokens=10, logits=True), expected)


def test_the_coordinator_s_advice_is_followed(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice that changes at every step: split and whole steps in turns, and idle workers in between."""
    turns = iter(random.Random(8).choices([True, False], k=100_000))
    monkeypatch.setattr(LaneAdvisor, "split", property(lambda self: next(turns)))
    work = prompts(random.Random(5), 6)
    expected = run(mixtral, (1, 1), "1", work)
    with InProcessMesh(mixtral, attention=3, experts=2, attention_options=OPTIONS) as mesh:
        numbers = [mesh.submit(p, worker=i % 2, max_tokens=10, logits=True) for i, p in enumerate(work)]
        same([mesh.answer(n) for n in numbers], expected)
        mesh.pump(
            lambda: all(w.stats.get("generated_tokens", 0) == 30 for w in mesh.attention[:2]), "reports"
        )
        stats = [w.stats for w in mesh.attention[:2]]
    assert all(0 < s["split_steps"] < s["steps"] for s in stats)


def test_the_coordinator_counts_both_lanes(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def observe(self: LaneAdvisor, *, tokens: int, split: bool, seconds: float, waited: float) -> None:
        assert 0 <= waited <= seconds
        seen.append((tokens, split))

    monkeypatch.setattr(LaneAdvisor, "observe", observe)
    work = prompts(random.Random(5), 6)
    for choice in ("1", "2"):
        seen.clear()
        run(mixtral, (2, 1), choice, work)
        # All but the steps before and after a sleep; six streams decode together for some of them.
        assert (6, choice == "2") in seen and {split for tokens, split in seen if tokens > 3} == {
            choice == "2"
        }


@pytest.mark.parametrize("choice", ["1", "2"])
def test_digests_that_differ_in_either_lane(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """A router that rounds differently on one worker now and then: those layers are repeated, lane by lane."""
    work = prompts(random.Random(6), 4)
    expected = run(mixtral, (1, 1), "1", work)
    rng = random.Random(9)
    gate, compute = MoeCompute.gate, MoeCompute.run
    odd: set[int] = set()

    def gate_oddly(self: MoeCompute, layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if rng.random() < 0.3:
            odd.add(id(self))
        return gate(self, layer, x_TD)

    def run_oddly(self: MoeCompute, *args: Any) -> Schedule:
        plan = compute(self, *args)
        if id(self) in odd:
            odd.discard(id(self))
            return dataclasses.replace(plan, digest=plan.digest ^ 1)
        return plan

    monkeypatch.setattr(MoeCompute, "gate", gate_oddly)
    monkeypatch.setattr(MoeCompute, "run", run_oddly)
    options = dataclasses.replace(OPTIONS, micro_batches=choice)
    with InProcessMesh(mixtral, attention=2, experts=3, attention_options=options) as mesh:
        same(mesh.generate(work, max_tokens=10, logits=True), expected)
        mesh.pump(lambda: all(w.stats.get("digest_mismatches", 0) > 9 for w in mesh.attention), "repeats")


def test_lanes_survive_lost_workers_and_new_cohorts(mixtral: Path) -> None:
    work = prompts(random.Random(7), 6)
    expected = run(mixtral, (1, 1), "1", work)
    options = dataclasses.replace(OPTIONS, micro_batches="2")
    with InProcessMesh(mixtral, attention=2, experts=3, attention_options=options) as mesh:
        numbers = [mesh.submit(p, worker=i % 2, max_tokens=10, logits=True) for i, p in enumerate(work)]
        for least in (4, 12, 24, 36, 48):
            mesh.pump(lambda least=least: sum(len(mesh.peek(n).tokens) for n in numbers) >= least, "tokens")
            mesh.stop(mesh.moe[least % 3])
            mesh.add_moe()
            mesh.form()
        same([mesh.answer(n) for n in numbers], expected)
