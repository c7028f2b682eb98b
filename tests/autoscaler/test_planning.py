"""From observations to demand, from demand to sizes; bursts, silence and objectives out of reach."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from janus_autoscaler.demand import demand, idle
from janus_autoscaler.objective import Objective
from janus_autoscaler.observe import Observation
from janus_autoscaler.planning import AMaxTable, Mesh, Verdict, floor_of, mesh_of, plan_for
from janus_runtime.records import Lease, Role
from janus_scaling import Controller, Demand, PerformanceModel
from mesh_cases import CPU, TINY, truth

TABLE = AMaxTable(TINY, 32)
OBJECTIVE = Objective(tpot_ms=120.0, max_attention=6, max_moe=8)


def plan(
    asked: Demand,
    objective: Objective = OBJECTIVE,
    performance: PerformanceModel | None = None,
    **more: object,
) -> Verdict:
    known: dict[str, object] = {
        "performance": performance or truth(), "a_max": TABLE, "mesh": Mesh(slots=32), "hardware": (CPU, CPU),
        "spare": (0, 0), "margin": 1.0, **more,
    }  # fmt: skip
    return plan_for(asked, objective, **known)  # type: ignore[arg-type]


def seen(**fields: Any) -> Observation:
    calm = {
        "window_seconds": 30.0, "requests_per_second": 2.0, "recent_requests_per_second": 2.0, "finished": 60.0,
        "output_tokens_per_request": 50.0, "output_tokens_per_second": 100.0, "prompt_tokens_per_second": 40.0,
        "context": 80.0, "running": 8,
    }  # fmt: skip
    return Observation(**{**calm, **fields})  # type: ignore[arg-type]


def asked(observation: Observation) -> Demand:
    return demand(observation, target_s=0.1, lookback_s=30.0)


def test_arrivals_times_length() -> None:
    found = asked(seen())
    assert found.tokens_per_s == pytest.approx(100) and found.prompt_length == pytest.approx(20)
    assert found.backlog_tokens == 0 and found.context == 80


def test_a_mesh_that_is_too_small_does_not_hide_what_is_asked() -> None:
    found = asked(seen(output_tokens_per_second=30.0, waiting=20, running=64))
    assert found.tokens_per_s == pytest.approx(100)
    assert found.backlog_tokens == pytest.approx(20 * 50 + (64 - 10) * 25)


@pytest.mark.parametrize(("recent", "followed"), [(2.4, False), (1.2, False), (6.0, True), (40.0, True)])
def test_a_rise_counts_at_once_and_noise_does_not(recent: float, followed: bool) -> None:
    found = asked(seen(bursts=((10.0, recent), (2.5, 2.0))))
    assert found.tokens_per_s == pytest.approx(50 * (recent if followed else 2.0))
    assert found.prompt_tokens_per_s == pytest.approx(40 * (recent / 2 if followed else 1.0))


def test_before_any_request_ended_tokens_speak() -> None:
    found = asked(seen(finished=0.0, output_tokens_per_request=0.0))
    assert found.tokens_per_s == pytest.approx(100)
    # Few, long streams: no arrivals in the window.
    quiet = asked(seen(requests_per_second=0.0, recent_requests_per_second=0.0))
    assert quiet.tokens_per_s == pytest.approx(100)


def test_idle() -> None:
    assert idle(Observation()) and not idle(seen()) and not idle(Observation(running=1))
    assert asked(Observation()) == Demand(tokens_per_s=0.0, context=1.0, prompt_length=1.0)


@given(
    rate=st.floats(0, 1e4), recent=st.floats(0, 1e4), running=st.integers(0, 10**5), waiting=st.integers(0, 10**5),
    length=st.floats(0, 1e5), finished=st.floats(0, 1e6), generated=st.floats(0, 1e7), context=st.floats(0, 1e6),
)  # fmt: skip
def test_any_observation_is_a_demand_that_is_planned_for(
    rate: float, recent: float, running: int, waiting: int, length: float, finished: float, generated: float,
    context: float,
) -> None:  # fmt: skip
    found = asked(
        Observation(
            requests_per_second=rate, bursts=((10.0, recent),), running=running, waiting=waiting,
            output_tokens_per_request=length, finished=finished, output_tokens_per_second=generated,
            context=context,
        )
    )  # fmt: skip
    verdict = plan(found.with_backlog(30.0), dataclasses.replace(OBJECTIVE, max_attention=2, max_moe=2))
    assert verdict.best is not None and verdict.status
    assert 1 <= verdict.best.n_a <= 2 and 1 <= verdict.best.n_e <= 2


def test_more_demand_more_workers_and_the_objective_holds() -> None:
    sizes = []
    for rate in (0.0, 40.0, 120.0, 240.0):
        verdict = plan(Demand(tokens_per_s=rate, context=80))
        assert verdict.met and verdict.best is not None and verdict.best.tpot_s <= 0.12
        sizes.append(verdict.best.workers)
    assert sizes == sorted(sizes) and sizes[0] == 2 < sizes[-1]


def test_an_objective_that_nothing_meets_says_so_and_gives_what_comes_nearest() -> None:
    verdict = plan(Demand(tokens_per_s=60, context=80), dataclasses.replace(OBJECTIVE, tpot_ms=1.0))
    assert not verdict.met and verdict.best is not None and verdict.plan is not None
    assert "no size within bounds meets the objective" in verdict.status and "TPOT" in verdict.status
    least = min(c.tpot_s for c in verdict.plan.candidates)
    assert verdict.best.tpot_s <= 1.05 * least
    assert verdict.best.cost <= min(c.cost for c in verdict.plan.candidates if c.tpot_s <= 1.05 * least)


def test_workers_that_share_cores_are_not_added_in_vain() -> None:
    crowded = plan(Demand(tokens_per_s=400, context=80), performance=truth(shared_cores=2))
    assert not crowded.met and crowded.best is not None and crowded.best.n_e <= 4


def test_what_cannot_be_planned_is_a_status() -> None:
    tight = dataclasses.replace(OBJECTIVE, max_moe=2)
    verdict = plan(Demand(tokens_per_s=1), tight, a_max=AMaxTable(TINY, 8))
    assert verdict.best is None and "max_moe = 2" in verdict.status and "32 experts" in verdict.status


def test_floor_and_capacity_come_from_the_mesh() -> None:
    assert floor_of(TINY, 32, OBJECTIVE, (0, 0)) == (1, 1)
    assert floor_of(TINY, 12, OBJECTIVE, (1, 1)) == (2, 6)
    lease = Lease(worker_id="moe-0", member=1, role=Role.MOE, pid=1, grpc_address="a:1", slots=12)
    other = Lease(worker_id="attention-0", member=2, role=Role.ATTENTION, pid=1, grpc_address="a:1")
    found = mesh_of([lease, other], {"attention-0": {"sequences_capacity": 64, "kv_tokens_capacity": 4096}})
    assert found == Mesh(slots=12, streams_each=64, cached_each=4096)
    assert mesh_of([], {}) == Mesh(slots=0, streams_each=math.inf)
    few = plan(Demand(tokens_per_s=200, context=2000), mesh=found)
    assert few.best is not None and few.best.n_a >= few.best.batch * 2000 / 4096, "two streams fit a worker"


def test_hours_of_silence_reach_the_floor_and_a_burst_is_met_at_the_next_decision() -> None:
    controller = Controller(floor=(1, 1), ceiling=(6, 8), hold_s=120.0)
    state, sizes, at = controller.start((3, 6)), (3, 6), 0.0
    for _ in range(4 * 3600 // 15):  # nothing for four hours
        at += 15
        state, decision = controller.decide(state, at, (1, 1))
        sizes = decision.sizes
    assert sizes == (1, 1)
    before = plan(asked(seen(requests_per_second=0.2, recent_requests_per_second=0.2, running=1)))
    burst = plan(asked(seen(requests_per_second=0.2, bursts=((10.0, 4.0),), running=40)).with_backlog(30.0))
    assert before.best is not None and burst.best is not None
    state, decision = controller.decide(state, at + 15, (burst.best.n_a, burst.best.n_e))
    assert decision.sizes == (burst.best.n_a, burst.best.n_e) and sum(decision.add) > 0
    # One burst, however short: what it needed stays for hold_s and is then let go, once.
    changes = 0
    for _ in range(40):
        at += 15
        state, later = controller.decide(state, at + 15, (1, 1))
        changes += later.sizes != decision.sizes
        decision = later
    assert decision.sizes == (1, 1) and changes == 1
