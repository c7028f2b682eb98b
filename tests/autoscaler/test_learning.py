"""Steps measured from reports, and coefficients learnt from them, against a mesh whose truth is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from janus_autoscaler.learn import ASSUMED, MEASURED, PROFILE, Learner
from janus_autoscaler.measure import Interval, intervals, tpot_quantile
from janus_runtime.coordination import StatsSample
from janus_scaling import PerformanceModel, roofline
from mesh_cases import CPU, TINY, Reports, truth, uniform_a_max


def learner(shared_cores: float = math.inf) -> Learner:
    return Learner(TINY, roofline(TINY, CPU, CPU), truth().exchange, shared_cores=shared_cores)


def grid(
    model: PerformanceModel, sizes: list[tuple[int, int]], batches: list[float], seed: int = 0
) -> list[Interval]:
    found = []
    for n_a, n_e in sizes:
        for batch in batches:
            reports = Reports(seed)
            reports.run(model, n_a, n_e, batch, 6)
            found += intervals(
                reports.side("attention"), reports.side("moe"), moe_layers=3, epoch=1, n_a=n_a, n_e=n_e
            )
    return found


def test_intervals_are_what_the_mesh_did() -> None:
    reports = Reports(noise=0.0)
    reports.run(truth(), 2, 3, 12.0, 5)
    made = intervals(reports.side("attention"), reports.side("moe"), moe_layers=3, epoch=1, n_a=2, n_e=3)
    assert len(made) == 8  # pairs of five reports, of two workers
    time = truth().step(2, 3, 12.0, 60.0, uniform_a_max(3, 12.0))
    for i in made:
        assert i.step_s == pytest.approx(time.total) and i.moe_s == pytest.approx(time.moe)
        assert i.exchange_s == pytest.approx(time.comm) and i.attention_s == pytest.approx(time.attention)
        assert i.tokens == pytest.approx(6) and i.cohort_tokens == pytest.approx(12)
        assert i.a_max == pytest.approx(uniform_a_max(3, 12)) and i.context == pytest.approx(60)
    assert tpot_quantile(made, 0.95) == pytest.approx(time.total)
    assert tpot_quantile([], 0.95) == 0.0


def test_what_says_nothing_is_left_out() -> None:
    reports = Reports()
    reports.run(truth(), 1, 1, 4.0, 3)
    attention, moe = reports.side("attention"), reports.side("moe")
    count = lambda **sides: len(  # noqa: E731
        intervals(
            sides.get("a", attention),
            sides.get("e", moe),
            moe_layers=3,
            epoch=1,
            n_a=1,
            n_e=1,
            since_s=sides.get("since", 0.0),
        )
    )
    assert count() == 2
    assert count(since=reports.now) == 0 and count(since=reports.now - 1) == 1
    assert count(e={}) == 0, "nobody told of a_max"
    first, second, third = attention["attention-0"]
    fallen = dataclasses.replace(third, values={**third.values, "steps": 1.0})
    assert count(a={"attention-0": [first, second, fallen]}) == 1, "a restart"
    poor = StatsSample(time_s=third.time_s, values={"steps": 99.0})
    assert count(a={"attention-0": [first, poor]}) == 0, "an older worker that reports less"
    other = dataclasses.replace(third, values={**third.values, "epoch": 2.0})
    assert count(a={"attention-0": [first, second, other]}) == 1, "another cohort's"
    late = dataclasses.replace(second, time_s=second.time_s + 60)
    assert count(a={"attention-0": [first, late]}) == 0, "it slept in between"


def test_steps_in_two_micro_batches_count_both() -> None:
    reports = Reports(noise=0.0)
    reports.run(truth(), 1, 2, 12.0, 4)
    moe = {
        name: [
            dataclasses.replace(
                s, values={**s.values, **{k: 2 * s.values[k] for k in ("layer_passes", "a_max_sum")}}
            )
            for s in samples
        ]
        for name, samples in reports.side("moe").items()
    }
    whole = intervals(reports.side("attention"), reports.side("moe"), moe_layers=3, epoch=1, n_a=1, n_e=2)
    split = intervals(reports.side("attention"), moe, moe_layers=3, epoch=1, n_a=1, n_e=2)
    assert all(i.split for i in split) and not any(i.split for i in whole)
    assert split[0].a_max == pytest.approx(2 * whole[0].a_max) and split[0].step_s == whole[0].step_s
    assert split[0].cohort_tokens == pytest.approx(whole[0].cohort_tokens)


def test_before_anything_is_measured_the_profile_speaks() -> None:
    made = learner()
    assert set(made.fit().sources.values()) == {PROFILE} and made.error == 0.0
    assert made.learnt.coefficients == roofline(TINY, CPU, CPU)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cores", [math.inf, 2.0])
def test_unseen_sizes_and_loads_are_predicted(seed: int, cores: float) -> None:
    model, made = truth(cores), learner(cores)
    made.add(grid(model, [(1, 1), (1, 2), (2, 2)], [2, 6, 12, 24], seed), uniform_a_max)
    found = made.fit()
    assert found.sources["beta"] == MEASURED and found.sources["alpha"] == MEASURED
    assert found.coefficients.beta == pytest.approx(2e-3, rel=0.15)
    unseen = grid(model, [(2, 4), (3, 3), (1, 4)], [4, 16, 32], seed + 100)
    errors = [abs(made.predict(i, uniform_a_max) / i.step_s - 1) for i in unseen]
    assert np.median(errors) < 0.1, np.round(errors, 2)
    made.add(unseen, uniform_a_max)
    assert 0 < made.error < 0.3, "told before it is learnt from"


def test_one_load_alone_leaves_hope() -> None:
    """At one size and one batch nothing says what more workers would do: enough, until they are there."""
    made = learner()
    only = grid(truth(), [(1, 1)], [8.0])
    made.add(only * 3, uniform_a_max)
    found = made.fit()
    assert found.sources["beta"] == ASSUMED and found.coefficients.beta > 0
    here = made.predict(only[0], uniform_a_max)
    assert here == pytest.approx(only[0].step_s, rel=0.15)
    wider = dataclasses.replace(only[0], n_e=4)
    true = truth().step(1, 4, 8.0, 60.0, uniform_a_max(4, 8.0)).total
    assert made.predict(wider, uniform_a_max) <= 1.02 * true < here
    made.add(grid(truth(), [(1, 4)], [8.0]), uniform_a_max)
    assert made.fit().sources["beta"] == MEASURED
    assert made.predict(wider, uniform_a_max) == pytest.approx(true, rel=0.1)


def test_disturbed_steps_count_little() -> None:
    made = learner()
    known = grid(truth(), [(1, 1), (1, 2), (2, 3)], [2, 6, 12, 24])
    rng = np.random.default_rng(0)
    wild = [
        dataclasses.replace(i, moe_s=i.moe_s * 8, attention_s=i.attention_s * 5) if rng.random() < 0.15 else i
        for i in known
    ]
    made.add(wild, uniform_a_max)
    assert made.fit().coefficients.beta == pytest.approx(2e-3, rel=0.2)


def test_memory_is_bounded_and_old_sizes_are_not_forgotten() -> None:
    made = learner()
    made.add(grid(truth(), [(1, 2), (2, 2)], [2, 12]), uniform_a_max)
    made.add(grid(truth(), [(1, 1)], [8.0]) * 200, uniform_a_max)
    known = [i for cell in made._cells.values() for i in cell]
    assert {(i.n_a, i.n_e) for i in known} == {(1, 1), (1, 2), (2, 2)} and len(known) < 100


def test_the_spread_is_of_learnt_predictions_and_of_now() -> None:
    made = learner()
    known = grid(truth(), [(1, 1), (1, 2)], [2, 6, 12, 24])
    made.add(known, uniform_a_max)
    assert made.spread == 1.0, "the profile is off by a factor of 20: that is no spread"
    made.fit()
    made.add(known, uniform_a_max)
    assert 1.0 <= made.spread < 1.15
    slow = [dataclasses.replace(i, moe_s=1.6 * i.moe_s, attention_s=1.6 * i.attention_s) for i in known]
    made.add(slow, uniform_a_max)
    assert 1.3 < made.spread < 1.9, "the machine has become slower"
    made.add(known * 2, uniform_a_max)
    assert made.spread < 1.15
