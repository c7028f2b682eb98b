"""The solver against a slow, obvious one; Little's law against stepping through all batches; sizes that bear losses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from janus_scaling import (
    AMaxEstimator,
    Bounds,
    Demand,
    Exchange,
    PerformanceModel,
    ScalingError,
    StepTime,
    Target,
    evaluate,
    little,
    solve,
    synthetic_layers,
)
from janus_scaling.solver import Candidate, Problem
from scaling_cases import DEEPSEEK, H100, a_max, problem, random_problem


def obvious(p: Problem, demand: Demand) -> tuple[int, int] | None:
    """Every size, B by stepping up one stream at a time."""
    best: tuple[tuple[float, ...], tuple[int, int]] | None = None
    for n_a in range(p.bounds.min_attention, p.bounds.max_attention + 1):
        for n_e in range(p.bounds.min_moe, p.bounds.max_moe + 1):
            a, e = n_a - p.bounds.spare_attention, n_e - p.bounds.spare_moe
            if a < 1 or e < 1 or n_e * p.slots < 160 * (1 + p.bounds.spare_moe):
                continue

            def tpot(streams: float, a: int = a, e: int = e) -> float:
                tokens = streams * (1 + demand.prompt_share)
                return p.performance.step(
                    a, e, streams, demand.context, p.a_max(e, tokens), prompt=tokens - streams
                ).total

            room = H100.usable_bytes - DEEPSEEK.attention_bytes
            fit = a * (room // (DEEPSEEK.cache_bytes_per_token * demand.context))
            streams = 1.0
            while demand.tokens_per_s * tpot(streams) > streams and streams <= min(fit, p.bounds.max_batch):
                streams += 0.25
            if streams > min(fit, p.bounds.max_batch) or tpot(streams) > p.target.tpot_s:
                continue
            cost = n_a * p.attention.price + n_e * p.moe.price
            order = (round(cost, 9), n_a + n_e, tpot(streams), n_a)
            if best is None or order < best[0]:
                best = order, (n_a, n_e)
    return best[1] if best else None


class SlowExchange(Exchange):
    """Of a kind that the search in numpy does not know."""

    def seconds(self, n_a: int, n_e: int, tokens: float) -> float:
        return 5 * super().seconds(n_a, n_e, tokens)


class SlowModel(PerformanceModel):
    """The same of steps."""

    def step(self, *args: float, **more: float) -> StepTime:  # type: ignore[override]
        time = super().step(*args, **more)  # type: ignore[arg-type]
        return dataclasses.replace(time, moe=2 * time.moe)


def test_a_model_of_another_kind_is_asked() -> None:
    layers = synthetic_layers(160, 6, layers=1)
    p = problem(60.0, a_max=AMaxEstimator(layers, 27, batches=4, largest=64))
    x, of = p.performance.exchange, p.performance
    slow = SlowExchange(row_bytes=x.row_bytes, top_k=x.top_k, hardware=x.hardware)
    twice = SlowModel(model=of.model, coefficients=of.coefficients, exchange=x)
    for performance in (dataclasses.replace(of, exchange=slow), twice):
        changed = dataclasses.replace(p, performance=performance)
        demand = Demand(tokens_per_s=3000.0, context=200)
        plan = solve(changed, demand)
        assert plan.chosen == evaluate(changed, plan.chosen.n_a, plan.chosen.n_e, demand)
        assert plan.chosen.order > solve(p, demand).chosen.order


@pytest.mark.parametrize("seed", range(12))
def test_the_quick_search_is_the_one_by_one_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = synthetic_layers(160, 6, layers=1, seed=seed)
    table = AMaxEstimator(layers, 27, batches=8, largest=256)
    p = dataclasses.replace(random_problem(rng), a_max=table)
    if seed % 3 == 2:
        p = dataclasses.replace(p, rule=lambda c: "odd" if (c.n_a + c.n_e) % 2 else "")
    burst, cached = float(rng.choice([0, 1.5])), float(rng.choice([0, 40_000]))
    p = dataclasses.replace(
        p, bounds=dataclasses.replace(p.bounds, burst=burst, cached_each=cached, streams_each=300.0),
        target=Target(tpot_s=p.target.tpot_s, ttft_s=float(rng.choice([math.inf, 0.3]))),
        performance=dataclasses.replace(p.performance, shared_cores=float(rng.choice([math.inf, 4]))),
    )  # fmt: skip
    demand = Demand(
        tokens_per_s=float(rng.uniform(0, 6000)), prompt_tokens_per_s=float(rng.uniform(0, 3000)), context=300,
        prompt_length=float(rng.uniform(1, 2000)), streams=float(rng.choice([0, rng.uniform(0, 800)])),
    )  # fmt: skip
    for batch in (None, float(rng.uniform(1, 600))):
        quick = solve(p, demand, batch=batch)
        slow = solve(
            dataclasses.replace(p, a_max=table.__call__), demand, batch=batch
        )  # no table to the solver
        if quick.chosen:
            assert quick.best_effort() is quick.chosen
            assert "candidates" not in vars(quick)  # thousands that nobody asked for
        assert len(quick.candidates) == len(slow.candidates)
        ours = {(c.n_a, c.n_e): c for c in quick.candidates}
        for c in slow.candidates:
            same = ours[c.n_a, c.n_e]
            assert same.batch == pytest.approx(c.batch, rel=3e-3) and same.tpot_s == pytest.approx(
                c.tpot_s, rel=3e-3
            )
            assert same.cost == c.cost and (
                same.reason[:4] == c.reason[:4] or abs(c.tpot_s / p.target.tpot_s - 1) < 0.01
            )
        assert (quick.chosen is None) == (slow.chosen is None)
        if quick.chosen and slow.chosen:
            assert quick.chosen.cost == slow.chosen.cost
            assert quick.candidates[0] is quick.chosen


@pytest.mark.parametrize("seed", range(12))
def test_as_the_obvious_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = random_problem(rng)
    demand = Demand(
        tokens_per_s=float(rng.uniform(10, 6000)),
        prompt_tokens_per_s=float(rng.uniform(0, 3000)),
        context=300,
    )
    chosen = solve(p, demand).chosen
    expected = obvious(p, demand)
    if expected is None or chosen is None:
        assert (chosen and (chosen.n_a, chosen.n_e)) == expected
        return
    # The obvious one's B is coarser: a candidate within a percent of the objective may fall either side.
    price = lambda s: s[0] * p.attention.price + s[1] * p.moe.price  # noqa: E731
    assert (chosen.n_a, chosen.n_e) == expected or abs(chosen.cost - price(expected)) <= 0.02 * chosen.cost


def test_chosen_is_the_cheapest_feasible_and_every_loser_has_a_reason() -> None:
    plan = solve(problem(), Demand(tokens_per_s=2000))
    assert plan.chosen is not None
    for c in plan.candidates:
        if c is plan.chosen:
            assert plan.why_not(c) == ""
            continue
        assert plan.why_not(c)
        assert not c.feasible or c.order >= plan.chosen.order


def test_fixed_batch() -> None:
    plan = solve(problem(), batch=256)
    assert plan.chosen is not None and plan.chosen.batch == 256
    assert plan.chosen.tokens_per_s_per_worker == pytest.approx(
        256 / plan.chosen.tpot_s / (plan.chosen.n_a + plan.chosen.n_e)
    )


@given(
    floor=st.floats(1e-3, 0.1), slope=st.floats(1e-6, 1e-3), rate=st.floats(0, 1e5),
    most=st.integers(2, 4000),
)  # fmt: skip
def test_littles_law(floor: float, slope: float, rate: float, most: int) -> None:
    def tpot(streams: float) -> float:
        return floor + slope * streams

    found = little(tpot, rate, most)
    if found is None:
        assert rate * tpot(most) > most
    elif found == 1.0:
        assert rate * tpot(1) <= 1.0 + 1e-9
    else:
        assert found == pytest.approx(rate * floor / (1 - rate * slope), rel=3e-3)


def test_more_demand_never_costs_less() -> None:
    plans = [solve(problem(), Demand(tokens_per_s=rate)).chosen for rate in (0, 500, 2000, 8000, 64000)]
    costs = [c.cost if c else math.inf for c in plans]
    assert costs == sorted(costs)
    assert costs[0] == 7.0, "at no traffic: one attention worker and the fewest that hold every expert"


def test_losses_are_borne() -> None:
    safe = problem(bounds=Bounds(max_attention=8, max_moe=16, spare_attention=1, spare_moe=1))
    for c in solve(safe, Demand(tokens_per_s=2000)).candidates:
        assert c.n_a >= 2 and c.n_e * 27 >= 320
    chosen = solve(safe, Demand(tokens_per_s=2000)).chosen
    assert chosen is not None
    assert evaluate(problem(), chosen.n_a - 1, chosen.n_e - 1, Demand(tokens_per_s=2000)).feasible


def test_backlog_counts() -> None:
    calm = Demand(tokens_per_s=1000)
    queued = dataclasses.replace(calm, backlog_tokens=300_000)
    assert queued.with_backlog(60).tokens_per_s == pytest.approx(6000)
    queued = dataclasses.replace(queued, backlog_tokens=120_000)
    some, more = (solve(problem(40), d.with_backlog(60)).chosen for d in (calm, queued))
    assert some and more and more.cost > some.cost


def test_streams_that_are_there_count() -> None:
    """More than the rate explains: the target is to hold for them too, up to what fits."""
    p = problem(50)
    calm = solve(p, Demand(tokens_per_s=100)).chosen
    same = solve(p, Demand(tokens_per_s=100, streams=1.0)).chosen
    piled = solve(p, Demand(tokens_per_s=100, streams=300.0)).chosen
    assert calm is not None and same is not None and piled is not None
    assert (same.n_a, same.n_e, same.batch) == (calm.n_a, calm.n_e, calm.batch)
    assert piled.cost > calm.cost and piled.batch == 300 and piled.tpot_s <= 0.05


def test_prompts_count() -> None:
    quiet, busy = (
        Demand(tokens_per_s=1000),
        Demand(tokens_per_s=1000, prompt_tokens_per_s=2000, prompt_length=2000),
    )
    a, b = solve(problem(40), quiet).candidates, solve(problem(40), busy).candidates
    by = {(c.n_a, c.n_e): c for c in a}
    assert all(c.tpot_s >= by[c.n_a, c.n_e].tpot_s - 1e-12 for c in b)
    late = solve(problem(40, target=Target(tpot_s=0.04, ttft_s=0.05)), busy)
    assert any("TTFT" in c.reason for c in late.candidates)


@pytest.mark.parametrize("context", [256, 60_000])
def test_memory_of_attention(context: int) -> None:
    plan = solve(problem(5000), Demand(tokens_per_s=4000, context=context))
    reasons = " ".join(c.reason for c in plan.candidates)
    assert ("fit" in reasons) == (context > 1000)


def test_weights_that_do_not_fit_are_named() -> None:
    plan = solve(problem(slots=30), Demand(tokens_per_s=10))
    assert plan.chosen is None and "memory: the weights of a MoE worker" in plan.candidates[0].reason


def test_a_rule_speaks() -> None:
    def odd(candidate: Candidate) -> str:
        return "odd" if (candidate.n_a + candidate.n_e) % 2 else ""

    chosen = solve(problem(rule=odd), batch=64).chosen
    assert chosen is not None and (chosen.n_a + chosen.n_e) % 2 == 0


def test_heterogeneous_prices_shift_the_mix() -> None:
    def mix(price: float) -> int:
        dear = dataclasses.replace(H100, price=price)
        chosen = solve(problem(60, attention=dear), batch=512).chosen
        assert chosen is not None
        return chosen.n_a

    assert mix(10) < mix(0.1)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Target(tpot_s=0), "tpot_s"),
        (lambda: Target(tpot_s=math.nan), "tpot_s"),
        (lambda: Bounds(min_moe=5, max_moe=4), "max_moe"),
        (lambda: Demand(tokens_per_s=-1), "tokens_per_s"),
        (lambda: solve(problem(), batch=0), "batch"),
        (lambda: solve(problem()), "demand and batch"),
        (lambda: solve(problem(bounds=Bounds(max_moe=5)), batch=1), "max_moe"),
    ],
)
def test_bad_input_is_named(make: object, field: str) -> None:
    with pytest.raises(ScalingError, match=field) as caught:
        make()  # type: ignore[operator]
    assert caught.value.field == field and caught.value.allowed


def test_a_max_of_the_cases_falls_with_instances() -> None:
    assert a_max(6, 64) > a_max(12, 64)


def test_the_nearest_come_first_when_none_is_feasible() -> None:
    plan = solve(problem(1.0), batch=256)
    assert plan.chosen is None
    times = [c.tpot_s for c in plan.candidates]
    assert times == sorted(times)
    plan = solve(problem(50), Demand(tokens_per_s=1e7))
    assert plan.chosen is None
    rates = [c.batch / c.tpot_s for c in plan.candidates]
    assert rates == sorted(rates, reverse=True) and "cannot sustain" in plan.candidates[0].reason
