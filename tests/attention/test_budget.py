"""The prefill budget learns what prompts cost, and prompts share it fairly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from janus_attention.budget import PrefillBudget, share


@given(
    budget=st.integers(0, 600),
    quantum=st.integers(1, 32),
    wants=st.lists(st.integers(1, 3000), min_size=1, max_size=9),
)
def test_shares(budget: int, quantum: int, wants: list[int]) -> None:
    shares = share(budget, wants, quantum)
    assert all(0 <= got <= want for got, want in zip(shares, wants, strict=True))
    # Nothing is left over while someone wants more.
    assert sum(shares) == min(budget, sum(wants))
    served = [i for i, got in enumerate(shares) if got]
    for i in served:
        small = shares[i] < min(wants[i], quantum)
        # Only where the budget is one quantum for one prompt, or for what the others left.
        assert not small or len(served) == 1 or i == max(served)
    hungry = [got for got, want in zip(shares, wants, strict=True) if got < want]
    if len(wants) * quantum <= budget:
        assert max(hungry, default=0) - min(hungry, default=0) <= len(wants)


def drive(budget: PrefillBudget, alone: float, cost: float, steps: int, noise: random.Random) -> list[float]:
    """Steps of 4 streams with endless prompts; their lengths as multiples of one without prompts."""
    lengths = []
    for _ in range(steps):
        tokens = budget.tokens(4)
        seconds = (alone + cost * tokens) * noise.uniform(0.95, 1.05)
        budget.observe(decoding=4, prompt_tokens=tokens, seconds=seconds)
        lengths.append(seconds / alone)
    return lengths


@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.01])
def test_steps_stay_within_the_stall_asked_for_and_use_it(cost: float) -> None:
    noise = random.Random(3)
    budget = PrefillBudget(most=512, max_stall=1.7)
    for _ in range(8):
        budget.observe(decoding=4, prompt_tokens=0, seconds=0.1)
    drive(budget, 0.1, cost, 40, noise)
    later = drive(budget, 0.1, cost, 200, noise)
    assert max(later) < 2.0
    most = 1 + 512 * cost / 0.1
    assert sorted(later)[len(later) // 2] > min(1.5, 0.85 * most)


def test_a_slower_step_is_learnt_of_while_prompts_go_on() -> None:
    noise = random.Random(4)
    budget = PrefillBudget(most=512, max_stall=1.7)
    drive(budget, 0.1, 0.001, 300, noise)
    drive(budget, 0.4, 0.001, 3000, noise)
    assert budget.tokens(4) > 150


def test_steps_that_were_slow_for_a_moment_before_the_prompts_do_not_raise_the_budget_for_long() -> None:
    noise = random.Random(5)
    budget = PrefillBudget(most=512, max_stall=1.7)
    for _ in range(40):
        budget.observe(decoding=4, prompt_tokens=0, seconds=0.25)
    drive(budget, 0.1, 0.005, 90, noise)
    later = drive(budget, 0.1, 0.005, 300, noise)
    assert max(later) < 2.0
    assert sorted(later)[150] > 1.45


def test_one_quick_step_lowers_it_for_a_few_steps_only() -> None:
    noise = random.Random(6)
    budget = PrefillBudget(most=512, max_stall=1.7)
    drive(budget, 0.1, 0.001, 300, noise)
    before = budget.tokens(4) or budget.tokens(4)
    while budget.tokens(4):
        budget.observe(decoding=4, prompt_tokens=60, seconds=0.16)
    budget.observe(decoding=4, prompt_tokens=0, seconds=0.05)
    lengths = drive(budget, 0.1, 0.001, 40, noise)
    assert budget.tokens(4) > 0.8 * before and max(lengths) < 2.0


def test_fixed_and_idle() -> None:
    budget = PrefillBudget(most=512, fixed=64)
    assert budget.tokens(3) == 64
    assert budget.tokens(0) == 512
    assert PrefillBudget(most=8).tokens(2) == 8


@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.01])
def test_moved_streams_may_make_a_step_longer_by_a_quarter_of_a_second(cost: float) -> None:
    budget = PrefillBudget(most=512)
    assert budget.moved(4) == 64  # nothing is known yet
    budget.observe(decoding=0, prompt_tokens=512, seconds=0.01 + 512 * cost)  # of no step alone
    assert budget.moved(4) == pytest.approx(min(512, 0.25 * 512 / (0.01 + 512 * cost)), abs=1)
    budget.observe(decoding=4, prompt_tokens=0, seconds=0.1)
    budget.observe(decoding=4, prompt_tokens=20, seconds=0.1 + 20 * cost)
    assert budget.moved(4) == pytest.approx(min(512, 0.25 / cost), abs=1)
    for _ in range(
        32
    ):  # small shares that noise makes dear; the large ones before them are forgotten after a while
        budget.observe(decoding=4, prompt_tokens=2, seconds=0.3)
    assert budget.moved(4) == 2
    budget.observe(decoding=4, prompt_tokens=40, seconds=0.1)  # one that is not
    assert budget.moved(4) == 100
    assert budget.moved(0) == 512
    assert PrefillBudget(most=512, fixed=64).moved(4) == 64
