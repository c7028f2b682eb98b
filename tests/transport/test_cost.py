"""Predictions and choices of an exchange: against a slow reckoning by hand, and what a chooser settles on."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from janus_transport.choice import Chooser
from janus_transport.cost import DEFAULT, Link, Links, Sizes, cost, fit, line, predict
from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import make_plan
from janus_transport.topology import Scheme, Topology

SIZES = Sizes(out=400, back=800, most=1 << 20)


def two_by_two(m: int = 4, n: int = 4) -> Topology:
    return Topology(tuple(f"a{i * 2 // m}" for i in range(m)), tuple(f"e{i * 2 // n}" for i in range(n)))


def test_a_link_goes_through_its_points_and_on() -> None:
    link = Link(((0, 10e-6), (1000, 12e-6), (2000, 20e-6)), 3e-6)
    assert [link.seconds(s) for s in (0, 500, 1000, 1500, 2000)] == pytest.approx(
        [10e-6, 11e-6, 12e-6, 16e-6, 20e-6]
    )
    assert link.seconds(4000) == pytest.approx(36e-6)
    assert link.busy_s(2000) == pytest.approx(13e-6)
    assert Link(((0, 5e-6),), 0.0).seconds(1 << 20) == 5e-6


def test_fit_takes_the_least_of_each_size_and_the_gap_of_a_row() -> None:
    link = fit([(0, 9e-6), (0, 5e-6), (100, 4e-6), (1000, 8e-6)], [(1, 10e-6), (8, 24e-6), (8, 31e-6)])
    assert link.points == ((0, 5e-6), (100, 5e-6), (1000, 8e-6))
    assert link.gap_s == pytest.approx(2e-6)


@pytest.mark.parametrize("b", [1, 64])
@pytest.mark.parametrize("share", [0.0, 1.0, None])
def test_predictions_equal_what_is_reckoned_by_hand(b: int, share: float | None) -> None:
    """2 + 2 nodes of two workers each: who is busy how long in which phase, on interfaces of their own or shared."""
    topology, tokens = two_by_two(), dict.fromkeys(range(4), b)
    links = Links(intra=line(10e-6, 10e9, 2e-6), inter=line(100e-6, 1e9, 5e-6), share=share)
    crowd = 0.5 if share is None else share

    def intra(rows: int, row: int) -> float:
        return 2e-6 + (HEADER_BYTES + rows * row) / 10e9

    def inter(rows: int, row: int) -> float:
        return 5e-6 + (HEADER_BYTES + rows * row) / 1e9

    def relay(rows: int, row: int) -> float:
        return 10e-6 + rows * row / 10e9

    expected = Counter(dict.fromkeys(Scheme, 0.0))
    for row in (400, 800):
        expected[Scheme.ONE_PHASE] += 95e-6 + (4 + 4 * crowd) * inter(b, row)
        expected[Scheme.AGGREGATE] += (
            (8e-6 + intra(b, row)) + (95e-6 + 2 * inter(2 * b, row)) + (8e-6 + intra(4 * b, row))
        )
        expected[Scheme.AGGREGATE] += relay(2 * b, row) + relay(4 * b, row)
        expected[Scheme.ONE_TO_ONE] += (95e-6 + (2 + 2 * crowd) * inter(b, row)) + (8e-6 + intra(2 * b, row))
        expected[Scheme.ONE_TO_ONE] += relay(2 * b, row)
    for scheme in Scheme:
        plan = make_plan(scheme, topology, range(4))
        assert predict(plan, topology, tokens, links, SIZES) == pytest.approx(expected[scheme])


def test_predictions_of_packed_rows_equal_what_is_reckoned_by_hand() -> None:
    """As above with interfaces of their own: ids of all tokens, rows as far as a worker or a node needs them."""
    topology, b = two_by_two(), 64
    links = Links(intra=line(10e-6, 10e9, 2e-6), inter=line(100e-6, 1e9, 5e-6), share=0.0)
    part = {(0,): 0.5, (1,): 0.5, (2,): 0.5, (3,): 0.5, (0, 1): 0.75, (2, 3): 0.75, (0, 1, 2, 3): 1.0}
    sizes = Sizes(out=400, back=800, most=1 << 20, ids=16, share=part.__getitem__)
    expected = Counter(dict.fromkeys(Scheme, 0.0))
    for row, each in ((400, 16), (800, 0)):

        def size(tokens: int, share: float, row: int = row, each: int = each) -> float:
            return tokens * (share * row + each)

        def intra(payload: float) -> float:
            return 2e-6 + (HEADER_BYTES + payload) / 10e9

        def inter(payload: float) -> float:
            return 5e-6 + (HEADER_BYTES + payload) / 1e9

        expected[Scheme.ONE_PHASE] += 95e-6 + 4 * inter(size(b, 0.5))
        expected[Scheme.AGGREGATE] += (8e-6 + intra(size(b, 1.0))) + (95e-6 + 2 * inter(size(2 * b, 0.75)))
        expected[Scheme.AGGREGATE] += (8e-6 + intra(size(4 * b, 0.5))) + (10e-6 + size(2 * b, 0.75) / 10e9)
        expected[Scheme.AGGREGATE] += 10e-6 + size(4 * b, 0.5) / 10e9
        expected[Scheme.ONE_TO_ONE] += (95e-6 + 2 * inter(size(b, 0.75))) + (8e-6 + intra(size(2 * b, 0.5)))
        expected[Scheme.ONE_TO_ONE] += 10e-6 + size(2 * b, 0.5) / 10e9
    for scheme in Scheme:
        plan = make_plan(scheme, topology, range(4))
        found = predict(plan, topology, dict.fromkeys(range(4), b), links, sizes)
        assert found == pytest.approx(expected[scheme])


def steps(
    chooser: Chooser, tokens: dict[int, int], true: dict[Scheme, float], count: int, noise: float
) -> Counter:
    draw = random.Random(1)
    seen: Counter[Scheme] = Counter()
    for _ in range(count):
        scheme, predicted = chooser.choose(tokens)
        assert predicted > 0
        seen[scheme] += 1
        chooser.observe(tokens, scheme, true[scheme] * draw.uniform(1, 1 + noise))
    return seen


def test_wrong_predictions_are_corrected_by_measurement() -> None:
    topology, tokens = two_by_two(), dict.fromkeys(range(4), 8)
    near = Links(intra=line(10e-6, 10e9, 9e-6), inter=line(11e-6, 9e9, 9e-6))
    chooser = Chooser(topology, SIZES, links=near)
    order = sorted(chooser.predictions(tokens).items(), key=lambda item: item[1])
    assert order[1][1] < 1.5 * order[0][1], "two worth a try"
    wanted = order[1][0]
    true = {scheme: 1e-3 if scheme is wanted else 1.3e-3 for scheme in Scheme}
    seen = steps(chooser, tokens, true, 400, 0.1)
    assert chooser.choose(tokens)[0] is wanted
    assert seen[wanted] > 370


def test_what_one_size_teaches_serves_the_others() -> None:
    """Relays are twelve times as slow as predicted: after one load's steps no other load begins with two phases."""
    topology, sizes = two_by_two(), Sizes(out=4096, back=8192, most=512)
    links = Links(intra=line(10e-6, 10e9, 5e-6), inter=line(30e-6, 11e9, 8e-6), share=1.0)
    chooser = Chooser(topology, sizes, links=links)

    def true(tokens: dict[int, int], scheme: Scheme) -> float:
        found = cost(make_plan(scheme, topology, sorted(tokens)), topology, tokens, links, sizes)
        return 1e-3 + found.intra + found.inter + found.crowd + 12 * found.relay

    first, second = dict.fromkeys(range(4), 2), dict.fromkeys(range(4), 8)
    assert chooser.choose(second, trial=False)[0] is not Scheme.ONE_PHASE
    fresh = Chooser(topology, sizes, links=links)
    for _ in range(100):
        scheme, _ = fresh.choose(first)
        fresh.observe(first, scheme, true(first, scheme))
    assert min(Scheme, key=lambda scheme: true(second, scheme)) is Scheme.ONE_PHASE
    assert fresh.choose(second)[0] is Scheme.ONE_PHASE
    assert fresh.belief.weights[3] > 4


def test_trials_cost_a_bounded_share_of_all_time() -> None:
    """Whatever is true: what is spent above the best that was known by then stays small."""
    draw = random.Random(3)
    topology, tokens = two_by_two(8, 8), dict.fromkeys(range(8), 16)
    for _ in range(20):
        chooser = Chooser(topology, Sizes(out=4096, back=8192, most=512))
        least = min(chooser.predictions(tokens).values())
        true = {scheme: least * draw.uniform(1, 6) for scheme in Scheme}
        seen = steps(chooser, tokens, true, 400, 0.05)
        settled = chooser.choose(tokens, trial=False)[0]
        wasted = sum(n * max(0.0, true[s] - true[settled]) for s, n in seen.items())
        assert wasted <= 0.05 * 400 * 1.05 * true[settled]


def test_what_is_predicted_to_be_far_slower_is_never_tried() -> None:
    topology, tokens = two_by_two(8, 8), dict.fromkeys(range(8), 1)
    chooser = Chooser(topology, SIZES, links=Links(intra=line(1e-6, 50e9, 1e-6), inter=line(1e-3, 1e9, 1e-3)))
    seen = steps(chooser, tokens, dict.fromkeys(Scheme, 1e-3), 300, 0.1)
    assert not seen[Scheme.ONE_PHASE]


def test_without_learning_the_prediction_decides() -> None:
    topology, tokens = two_by_two(), dict.fromkeys(range(4), 2)
    chooser = Chooser(topology, SIZES, links=DEFAULT, learn=False)
    predictions = chooser.predictions(tokens)
    best = min(predictions, key=lambda scheme: predictions[scheme])
    assert steps(chooser, tokens, dict.fromkeys(Scheme, 1.0), 50, 0.0) == Counter({best: 50})


def test_schemes_that_come_to_the_same_messages_are_not_tried_against_each_other() -> None:
    topology, tokens = Topology(("a",), ("b", "c")), {0: 4}
    chooser = Chooser(topology, SIZES)
    seen = steps(chooser, tokens, dict.fromkeys(Scheme, 1e-3), 200, 0.1)
    assert seen == Counter({Scheme.ONE_PHASE: 200})
