"""The controller: never below the floor, down to it at zero traffic, up at once, no flapping."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from janus_scaling import Controller, ControllerState, Demand, ScalingError, SeasonalForecast, solve
from scaling_cases import problem

sizes = st.tuples(st.integers(1, 20), st.integers(1, 30))
controllers = st.builds(
    Controller, floor=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    ceiling=st.tuples(st.integers(10, 20), st.integers(10, 30)),
    hold_s=st.floats(0, 1000), change_price=st.floats(0, 2), max_step=st.integers(1, 30),
)  # fmt: skip


def run(c: Controller, wanted: list[tuple[int, int] | None], step: float = 60.0) -> list[tuple[int, int]]:
    state, path = c.start(), []
    for i, want in enumerate(wanted):
        state, decision = c.decide(state, i * step, want)
        assert decision.sizes == state.sizes and decision.reason
        path.append(decision.sizes)
    return path


@given(c=controllers, wanted=st.lists(st.one_of(st.none(), sizes), min_size=1, max_size=40))
def test_bounds_steps_and_enough(c: Controller, wanted: list[tuple[int, int] | None]) -> None:
    before = c.start().sizes
    for want, now in zip(wanted, run(c, wanted), strict=True):
        for p in range(2):
            assert c.floor[p] <= now[p] <= c.ceiling[p]
            assert abs(now[p] - before[p]) <= c.max_step
            needed = c.ceiling[p] if want is None else min(c.ceiling[p], max(c.floor[p], want[p]))
            assert now[p] >= min(needed, before[p] + c.max_step), "up at once"
        before = now


@settings(deadline=None, max_examples=25)
@given(c=controllers, wanted=st.lists(sizes, max_size=20), last=sizes)
def test_constant_demand_settles_and_stays(
    c: Controller, wanted: list[tuple[int, int]], last: tuple[int, int]
) -> None:
    steps = int(c.change_price * 60) + int(c.hold_s / 60) + 2
    path = run(c, [*wanted, *[last] * (31 * steps)])
    goal = tuple(min(c.ceiling[p], max(c.floor[p], last[p])) for p in range(2))
    assert path[-1] == goal
    tail = path[len(wanted) :]
    for p in range(2):
        moves = [b[p] - a[p] for a, b in itertools.pairwise(tail) if b[p] != a[p]]
        assert all(m > 0 for m in moves) or all(m < 0 for m in moves), "one direction only"


@settings(deadline=None, max_examples=25)
@given(c=controllers, wanted=st.lists(sizes, max_size=20))
def test_the_floor_is_reached_at_zero_traffic(c: Controller, wanted: list[tuple[int, int]]) -> None:
    steps = int(c.change_price * 60) + int(c.hold_s / 60) + 2
    assert run(c, [*wanted, *[(1, 1)] * (31 * steps)])[-1] == c.floor


@given(
    wanted=st.lists(sizes, min_size=2, max_size=60), hold=st.integers(1, 10), price=st.floats(0, 1),
    step=st.sampled_from([30.0, 60.0]),
)  # fmt: skip
def test_down_only_after_it_sufficed(
    wanted: list[tuple[int, int]], hold: int, price: float, step: float
) -> None:
    c = Controller(hold_s=hold * 60.0, change_price=price)
    path = [c.floor, *run(c, wanted, step)]
    for i in range(1, len(path)):
        for p in range(2):
            if path[i][p] < path[i - 1][p]:
                recent = [wanted[j][p] for j in range(i) if (i - 1 - j) * step < c.hold_s]
                assert path[i][p] >= max(recent)


@given(st.lists(st.booleans(), min_size=4, max_size=60))
def test_noise_at_a_threshold_changes_nothing(noise: list[bool]) -> None:
    """Demand that the solver answers with one size or the next, peaks no further apart than hold_s."""
    wanted = [(2, 7) if high or i % 4 == 0 else (1, 6) for i, high in enumerate(noise)]
    path = run(Controller(hold_s=300), wanted)
    assert set(path) == {(2, 7)}


def test_a_dear_change_waits_until_the_surplus_has_cost_as_much() -> None:
    c = Controller(hold_s=0, change_price=0.5)
    path = run(c, [(3, 6), *[(1, 6)] * 40], step=60)
    assert path[29] == (3, 6) and path[31] == (1, 6), (
        "2 workers too many for half an hour are worth 2 changes at 0.5"
    )


def test_with_the_solver_over_a_day() -> None:
    p, c = problem(30), Controller(floor=(1, 6), hold_s=900)
    state, changes = c.start(), 0
    for i in range(96):
        rate = 3000 * max(0.0, 1 - abs(i - 40) / 40)
        chosen = solve(p, Demand(tokens_per_s=rate)).chosen
        before = state.sizes
        state, decision = c.decide(state, i * 900.0, (chosen.n_a, chosen.n_e) if chosen else None)
        changes += decision.sizes != before
        if chosen:
            assert (
                decision.sizes >= (0, 0)
                and decision.sizes[0] >= chosen.n_a
                and decision.sizes[1] >= chosen.n_e
            )
    assert state.sizes == (1, 6) and changes > 4


def test_time_runs_forwards() -> None:
    c = Controller()
    with pytest.raises(ScalingError, match="now_s"):
        c.decide(ControllerState(sizes=(1, 1), at_s=10.0), 9.0, (1, 1))


def test_seasonal_forecast() -> None:
    f = SeasonalForecast(season_s=100, phases=10)
    for at in range(0, 300, 10):
        f = f.observe(at, 100 if at % 100 >= 50 else 10)
    f = f.observe(340, 10)
    assert f.predict(340, 10) == pytest.approx(100) and f.observe(390, 100).predict(390, 10) == pytest.approx(
        10
    )
    busier = f.observe(340, 20)
    assert busier.predict(340, 10) > 150
    assert SeasonalForecast().observe(0, 7).predict(0, 900) == 7
