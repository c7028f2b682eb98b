"""The simulation against a slow one that takes every step alone; systems keep to their rules."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from janus_scaling import MODELS, PROFILES, Bounds, Demand, ScalingError, Target, synthetic_layers
from janus_simulator import (
    SYSTEMS,
    Planner,
    Scenario,
    Setting,
    Trace,
    picture,
    planner,
    rows,
    simulate,
    summarize,
    synthetic,
)


def setting(tpot_ms: float = 60.0, **changes: Any) -> Setting:
    model = MODELS["deepseek-v2"]
    made = Setting(
        model=model, routing=synthetic_layers(160, 6, layers=1, tokens=800), target=Target(tpot_s=tpot_ms / 1e3),
        attention=PROFILES["h100"], moe=PROFILES["h100"], bounds=Bounds(max_attention=4, max_moe=12), batches=4,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def obvious(trace: Trace, made: Planner, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One step after the other on fixed sizes; context exact."""
    seconds, budget = made.step_seconds(*sizes), made.setting.bounds.prefill_tokens * sizes[0]
    first, end = np.full(len(trace), np.nan), np.full(len(trace), np.nan)
    waiting = list(range(len(trace)))
    prefilling: list[list[int]] = []
    decoding: dict[int, int] = {}
    now = 0.0
    while waiting or prefilling or decoding:
        while waiting and trace.arrival_s[waiting[0]] <= now:
            r = waiting.pop(0)
            prefilling.append([r, int(trace.prompt[r])])
        if not prefilling and not decoding:
            now = float(trace.arrival_s[waiting[0]])
            continue
        prompts = min(budget, sum(p for _, p in prefilling))
        context = sum(int(trace.prompt[r]) + n - 1 for r, n in decoding.items()) / max(1, len(decoding))
        now += seconds(len(decoding), prompts, context)
        for r in list(decoding):
            decoding[r] += 1
            if decoding[r] == trace.output[r]:
                end[r] = now
                del decoding[r]
        while prompts:
            part = min(prompts, prefilling[0][1])
            prompts -= part
            prefilling[0][1] -= part
            if not prefilling[0][1]:
                r = prefilling.pop(0)[0]
                first[r] = now
                if trace.output[r] == 1:
                    end[r] = now
                else:
                    decoding[r] = 1
    return first, end


@pytest.mark.parametrize("seed", range(4))
def test_as_step_by_step(seed: int) -> None:
    trace = synthetic(
        ["steady", "bursty"][seed % 2],
        rate=3,
        duration_s=60,
        mean_prompt=300,
        mean_output=40,
        sigma=1.0,
        seed=seed,
    )
    made = planner("janus", setting(bounds=Bounds(max_attention=1, max_moe=6)))
    out = simulate(trace, made, Scenario(decide_s=86_400))
    first, end = obvious(trace, made, (1, 6))
    # Context goes into the step's time by 32s, and a jump over steps keeps it: the rest is exact.
    np.testing.assert_allclose(out.first_s, first, atol=2e-3 + 0.002 * 60)
    np.testing.assert_allclose(out.end_s, end, atol=2e-3 + 0.002 * 60)
    assert out.worker_seconds == pytest.approx(7 * out.until_s)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_serves_everything_and_repeats_itself(name: str) -> None:
    trace = synthetic("bursty", rate=2, duration_s=200, mean_output=60, seed=3)
    runs = []
    for _ in range(2):
        made = planner(name, setting())
        out = simulate(trace, made, Scenario(decide_s=50))
        runs.append(summarize(trace, out, made.setting.target))
        assert np.isfinite(out.end_s).all()
        assert (out.first_s >= trace.arrival_s).all() and (out.end_s >= out.first_s).all()
    assert json.dumps(runs[0]) == json.dumps(runs[1])
    assert runs[0]["output_tokens"] == trace.output.sum()


def test_rules_of_the_systems() -> None:
    demand = Demand(tokens_per_s=1000, context=150)
    for name, system in SYSTEMS.items():
        chosen = planner(name, setting(80.0)).plan(demand).chosen
        assert chosen is not None, name
        if system.colocated:
            assert chosen.workers in system.tiers and chosen.n_a == chosen.n_e == chosen.workers
        else:
            assert chosen.workers == chosen.n_a + chosen.n_e
        assert chosen.workers % system.step == 0
        if system.balanced:
            made = planner(name, setting(80.0))
            ratios = [
                abs(
                    math.log(
                        made.performance.step(n, chosen.n_e, chosen.batch, 1, chosen.a_max).attention
                        / chosen.time.moe
                    )
                )
                for n in range(1, 8)
            ]
            assert chosen.n_a == 1 + int(np.argmin(ratios))
    janus, aebs = (planner(n, setting(80.0)) for n in ("janus", "janus-aebs"))
    for n_e in (7, 9, 12):
        a, b = (
            next(c for c in p.plan(batch=64).candidates if (c.n_a, c.n_e) == (2, n_e)) for p in (janus, aebs)
        )
        assert a.a_max <= b.a_max


def test_a_tier_that_does_not_hold_the_model_is_none() -> None:
    sizes = {c.workers for c in planner("sglang", setting()).plan(batch=16).candidates}
    assert sizes == {16, 32, 64}, "20 experts a layer and all of attention are more than an H100 has"
    with pytest.raises(ScalingError, match="devices that hold"):
        planner("sglang", setting(attention=dataclasses.replace(PROFILES["h100"], memory_bytes=20e9)))
    with pytest.raises(ScalingError, match="for a slot"):
        planner("janus", setting(moe=dataclasses.replace(PROFILES["h100"], memory_bytes=2e9)))
    with pytest.raises(ScalingError, match="system = 'vllm'"):
        planner("vllm", setting())


def test_sizes_follow_the_day() -> None:
    trace = synthetic("diurnal", rate=1.2, duration_s=3200, peak=5, seed=1)
    common = setting(32.0, bounds=Bounds(max_attention=6, max_moe=16))
    results = {}
    for sight in ("oracle", "observed"):
        made = planner("janus", common)
        results[sight] = summarize(
            trace, simulate(trace, made, Scenario(decide_s=100, sight=sight)), common.target
        )
    gpus = [m["gpus"] for m in results["oracle"]["timeline"]]
    assert min(gpus) == 7 and max(gpus) > 8
    assert results["oracle"]["gpu_hours"] < max(gpus) * results["oracle"]["duration_s"] / 3600
    peak = max(results["oracle"]["timeline"], key=lambda m: m["tokens_per_s"])
    assert peak["gpus"] == max(gpus)


def test_added_workers_are_paid_for_while_they_start() -> None:
    trace = synthetic("diurnal", rate=1.2, duration_s=3200, peak=5, seed=1)
    common = setting(32.0, bounds=Bounds(max_attention=6, max_moe=16))
    quick, slow = (
        summarize(
            trace, simulate(trace, planner("janus", common), Scenario(decide_s=100, start_s=s)), common.target
        )
        for s in (0, 60)
    )
    assert slow["gpu_hours"] == pytest.approx(quick["gpu_hours"], rel=0.05)
    assert slow["slo_attainment"] <= quick["slo_attainment"] + 0.01


def test_overload_is_reported() -> None:
    common = setting(20.0, bounds=Bounds(max_attention=1, max_moe=6))
    trace = synthetic("steady", rate=50, duration_s=60)
    made = planner("janus", common)
    found = summarize(trace, simulate(trace, made, Scenario(overtime_s=5)), common.target)
    assert (
        found["unmet_decisions"] == 1
        and found["slo_attainment"] < 0.1
        and found["finished"] < found["requests"]
    )


def test_hours_of_nothing_cost_the_floor_and_no_time() -> None:
    """A trace with a gap of eight hours, then twenty times what was before it."""
    before = synthetic("steady", rate=0.5, duration_s=600, seed=1)
    after = synthetic("steady", rate=10.0, duration_s=600, seed=2)
    gap = 8 * 3600.0
    trace = Trace(
        np.concatenate([before.arrival_s, 600 + gap + after.arrival_s]),
        np.concatenate([before.prompt, after.prompt]), np.concatenate([before.output, after.output]),
    )  # fmt: skip
    common = setting(32.0, bounds=Bounds(max_attention=6, max_moe=16))
    began = time.monotonic()
    found = summarize(
        trace,
        simulate(trace, planner("janus", common), Scenario(decide_s=60, sight="observed")),
        common.target,
    )
    assert time.monotonic() - began < 20
    assert found["finished"] == found["requests"] == len(trace)
    by_time = {m["at_s"]: m["gpus"] for m in found["timeline"]}
    silent = [gpus for at, gpus in by_time.items() if 1500 < at < 600 + gap]
    assert silent and set(silent) == {7}, "the floor: 1 attention and 6 MoE workers"
    burst = [gpus for at, gpus in by_time.items() if at > 600 + gap + 120]
    assert max(burst) > 7


def test_a_table_and_a_picture(tmp_path: Path) -> None:
    trace = synthetic("steady", rate=1, duration_s=30, mean_output=20)
    made = planner("janus", setting())
    found = {"janus": summarize(trace, simulate(trace, made), made.setting.target)}
    assert not any(math.isnan(v) for v in found["janus"]["tpot_ms"].values())
    table = rows(found)
    assert len(table) == 2 and len(table[0]) == len(table[1])
    picture(found, tmp_path / "p.png", "t")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "field"),
    [({"decide_s": 0}, "decide_s"), ({"sight": "none"}, "sight"), ({"headroom": math.nan}, "headroom")],
)
def test_bad_scenarios_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ScalingError, match=field):
        Scenario(**change)


def test_another_objective_shares_the_tables() -> None:
    made = planner("megascale", setting(60.0))
    for ms in (30.0, 90.0):
        target = Target(tpot_s=ms / 1e3)
        again, fresh = made.under(target).plan(batch=64), planner("megascale", setting(ms)).plan(batch=64)
        assert again.candidates == fresh.candidates
    fresh = planner("megascale", setting(60.0)).plan(batch=64)
    assert made.plan(batch=64).candidates == fresh.candidates


@pytest.mark.parametrize("name", ["janus", "sglang", "megascale"])
def test_other_step_times_share_the_tables(name: str) -> None:
    made = planner(name, setting())
    coefficients = dataclasses.replace(made.performance.coefficients, alpha=9e-6, comm_fixed=1e-4)
    again = made.timed(dataclasses.replace(made.performance, coefficients=coefficients))
    fresh = planner(name, setting(coefficients=coefficients))
    assert again.plan(batch=64).candidates == fresh.plan(batch=64).candidates
    assert again._problems[0].a_max is made._problems[0].a_max
    n_a, n_e = (16, 16) if name == "sglang" else (2, 8)
    assert again.step_seconds(n_a, n_e)(64, 0, 100) == fresh.step_seconds(n_a, n_e)(64, 0, 100)
    assert made.plan(batch=64).candidates == planner(name, setting()).plan(batch=64).candidates


def test_a_forecast_knows_the_ramp_of_the_day_before() -> None:
    """Two equal days: the second ramp is planned for before it comes."""
    one = synthetic("diurnal", rate=1.0, duration_s=2000, peak=5, burstiness=1.0, seed=2)
    both = Trace(
        np.concatenate([one.arrival_s, one.arrival_s + 2000]),
        *(np.tile(x, 2) for x in (one.prompt, one.output)),
    )
    common = setting(32.0, bounds=Bounds(max_attention=6, max_moe=16))
    gpus = {}
    for sight in ("observed", "forecast", "oracle"):
        out = simulate(both, planner("janus", common), Scenario(decide_s=100, sight=sight, season_s=2000))
        gpus[sight] = {round(m.at_s / 100): m.workers for m in out.moments}
    first, second = (max(range(d, d + 20), key=lambda i: gpus["oracle"].get(i, 0)) for d in (0, 20))
    assert gpus["forecast"][first] == gpus["observed"][first] < gpus["oracle"][first]
    assert gpus["observed"][second] < gpus["forecast"][second] >= gpus["oracle"][second] - 1
