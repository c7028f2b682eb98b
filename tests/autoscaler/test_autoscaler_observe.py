from __future__ import annotations

import random
from typing import Any

import pytest
from janus_autoscaler.observe import Observation, increase, observe
from janus_runtime.coordination import StatsSample
from janus_runtime.records import Lease, Role


def sample(time_s: float, **values: float) -> StatsSample:
    return StatsSample(time_s=time_s, values=values)


def lease(name: str, **more: Any) -> Lease:
    return Lease(worker_id=name, member=1, role=Role(name.split("-")[0]), pid=1, grpc_address="a:1", **more)


def test_increase_over_restarts() -> None:
    values = [5, 9, 2, 4, 4, 0, 1]
    assert increase([sample(n, x=v) for n, v in enumerate(values)], "x") == 4 + 2 + 2 + 0 + 0 + 1
    assert increase([], "x") == 0
    assert increase([sample(0, x=5)], "x") == 0
    assert increase([sample(0, y=5), sample(1, x=1), sample(2, x=4)], "x") == 3


def test_increase_equals_what_was_counted() -> None:
    rng = random.Random(1)
    for _ in range(100):
        value, counted, samples = rng.randrange(100), 0, []
        for n in range(rng.randrange(1, 30)):
            samples.append(sample(n, x=value))
            step = rng.randrange(10)
            if rng.random() < 0.1:
                value = 0  # restart; what comes before the next sample is seen only when it is below the last
                step = min(step, samples[-1].values["x"] - 1) if samples[-1].values["x"] > 0 else 0
            value += step
            counted += step
        samples.append(sample(len(samples), x=value))
        assert increase(samples, "x") == counted


def test_observation() -> None:
    leases = [
        lease("attention-0", running=2, waiting=1), lease("attention-1", running=3), lease("moe-0"), lease("gateway-0"),
    ]  # fmt: skip
    samples = {
        "attention-0": [
            sample(100, requests=0, prompt_tokens=0, generated_tokens=0, steps=10, step_seconds=1,
                   attention_seconds=0.4, exchange_seconds=0.5),
            sample(110, requests=5, prompt_tokens=50, generated_tokens=100, steps=60, step_seconds=2.0,
                   attention_seconds=0.7, exchange_seconds=1.1),
        ],
        "attention-1": [
            sample(105, requests=1, prompt_tokens=7, generated_tokens=30, steps=0, step_seconds=0, attention_seconds=0,
                   exchange_seconds=0),
            sample(110, requests=2, prompt_tokens=17, generated_tokens=80, steps=50, step_seconds=1.0,
                   attention_seconds=0.3, exchange_seconds=0.6),
        ],
        "moe-0": [
            sample(100, steps=0, moe_seconds=0, a_max_sum=0, layer_passes=0),
            sample(110, steps=50, moe_seconds=0.5, a_max_sum=300, layer_passes=100),
        ],
    }  # fmt: skip
    seen = observe(leases, samples, now_s=120.0, window_s=30.0)
    assert seen.window_seconds == 20
    assert (seen.running, seen.waiting) == (5, 1)
    assert seen.requests_per_second == pytest.approx(5 / 20 + 1 / 15)
    assert seen.prompt_tokens_per_second == pytest.approx(50 / 20 + 10 / 15)
    assert seen.output_tokens_per_second == pytest.approx(100 / 20 + 50 / 15)
    assert seen.step_ms_mean == pytest.approx(1000 * (1.0 + 1.0) / 100)
    assert seen.attention_ms_mean == pytest.approx(1000 * (0.3 + 0.3) / 100)
    assert seen.exchange_ms_mean == pytest.approx(1000 * (0.6 + 0.6) / 100)
    assert seen.moe_ms_mean == pytest.approx(10)
    assert seen.a_max_mean == pytest.approx(3)


def test_nothing_to_see() -> None:
    assert observe([], {}, now_s=1, window_s=30) == Observation()
    one = observe([lease("attention-0")], {"attention-0": [sample(5, steps=3)]}, now_s=5, window_s=30)
    assert one == Observation()
    # A clock a little behind Redis's must not make rates negative.
    behind = observe(
        [lease("attention-0")],
        {"attention-0": [sample(5, requests=1), sample(6, requests=2)]},
        now_s=4,
        window_s=9,
    )
    assert behind.requests_per_second == 0 and behind.window_seconds == 0
