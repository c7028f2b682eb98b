"""Plans of an exchange, against a slow simulation that passes every row by hand, and against the formulas."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import ACROSS, Edge, Plan, make_plan, packets, traffic
from janus_transport.topology import MAX_ACTIVE, Scheme, Topology, mask, unmask

MANY = 1 << 30


def spread(m: int, n: int, p: int, q: int) -> Topology:
    """m and n workers over p attention and q MoE nodes of their own."""
    return Topology(tuple(f"a{i * p // m}" for i in range(m)), tuple(f"e{i * q // n}" for i in range(n)))


def drawn(seed: int) -> tuple[Topology, list[int], dict[int, int], int]:
    draw = random.Random(seed)
    labels = [f"n{i}" for i in range(draw.randint(1, 5))]
    topology = Topology(
        tuple(draw.choice(labels) for _ in range(draw.randint(1, 9))),
        tuple(draw.choice(labels) for _ in range(draw.randint(1, 9))),
    )
    active = sorted(draw.sample(range(topology.m), draw.randint(1, topology.m)))
    return topology, active, {rank: draw.randint(1, 40) for rank in active}, draw.choice((40, 64, MANY))


def simulate(plan: Plan, topology: Topology, tokens: dict[int, int], most: int) -> dict[str, Counter[str]]:
    """Pass rows along the edges, out and back, one message at a time; counts by direction."""
    counts: dict[str, Counter[str]] = {"out": Counter(), "back": Counter()}

    def count(direction: str, one: int, other: int, rows: int, row_bytes: int) -> None:
        link = "inter" if topology.node(one) != topology.node(other) else "intra"
        counts[direction][f"{link}_messages"] += 1
        counts[direction][f"{link}_bytes"] += HEADER_BYTES + rows * row_bytes

    has: dict[int, list[int]] = defaultdict(list)
    for rank in plan.active:
        has[rank].append(rank)
    for edge in plan.edges:
        for group, rows in packets(edge.sources, tokens, most):
            assert set(group) <= set(has[edge.sender]), "it passes on what it does not have"
            has[edge.receiver] += group
            count("out", edge.sender, edge.receiver, rows, 4)
    moe = range(topology.m, topology.m + len(topology.moe))
    for worker in moe:
        assert sorted(has[worker]) == list(plan.active), "every source once"
    # On the way back: which MoE workers' contributions a worker's sum for a source holds.
    sums: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for worker in moe:
        for rank in plan.active:
            sums[worker, rank][worker] += 1
    for edge in reversed(plan.edges):
        for group, rows in packets(edge.sources, tokens, most):
            count("back", edge.receiver, edge.sender, rows, 8)
            for rank in group:
                sums[edge.sender, rank] += sums[edge.receiver, rank]
    for rank in plan.active:
        assert sums[rank, rank] == Counter(dict.fromkeys(moe, 1)), "every contribution once"
    return counts


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("seed", range(40))
def test_every_row_arrives_once_and_every_sum_returns_once(scheme: Scheme, seed: int) -> None:
    topology, active, tokens, most = drawn(seed)
    plan = make_plan(scheme, topology, active)
    counts = simulate(plan, topology, tokens, most)
    for direction, row_bytes in (("out", 4), ("back", 8)):
        total = traffic(plan, topology, tokens, row_bytes=row_bytes, most=most)
        assert {name: getattr(total, name) for name in total.__slots__} == {
            name: counts[direction][name] for name in total.__slots__
        }


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("seed", range(40))
def test_an_edge_reaches_the_moe_workers_who_lack_its_rows_without_it(scheme: Scheme, seed: int) -> None:
    topology, active, _, _ = drawn(seed)
    plan = make_plan(scheme, topology, active)
    for dropped in plan.edges:
        has = {worker: {worker} & set(active) for worker in range(topology.m + len(topology.moe))}
        for edge in plan.edges:
            if edge != dropped:
                has[edge.receiver] |= set(edge.sources) & has[edge.sender]
        lacking = [w for w in range(topology.m, len(has)) if not has[w].issuperset(dropped.sources)]
        assert list(plan.reach(dropped)) == lacking


@pytest.mark.parametrize("shape", [(4, 4, 2, 2), (8, 8, 2, 2), (8, 16, 1, 2), (6, 9, 3, 3)])
@pytest.mark.parametrize("b", [1, 7])
def test_counts_are_the_formulas_of_the_document(shape: tuple[int, int, int, int], b: int) -> None:
    m, n, p, q = shape
    r, h = 4 * 16, HEADER_BYTES
    per_node = n // q
    topology = spread(*shape)
    tokens = dict.fromkeys(range(m), b)
    entries = q * min(m, per_node) * (per_node - 1)
    expected = {
        Scheme.ONE_PHASE: (m * n, m * n * (h + b * r), 0, 0),
        Scheme.AGGREGATE: (
            p * q, p * q * h + m * q * b * r,
            (m - p) + (n - q), (m - p) * (h + b * r) + (n - q) * (h + m * b * r),
        ),
        Scheme.ONE_TO_ONE: (m * q, m * q * (h + b * r), entries, entries * h + m * (n - q) * b * r),
    }  # fmt: skip
    for scheme, (inter, inter_bytes, intra, intra_bytes) in expected.items():
        total = traffic(make_plan(scheme, topology, range(m)), topology, tokens, row_bytes=r, most=MANY)
        assert (total.inter_messages, total.inter_bytes) == (inter, inter_bytes)
        assert (total.intra_messages, total.intra_bytes) == (intra, intra_bytes)


@pytest.mark.parametrize("shape", [(4, 4, 2, 2), (8, 8, 2, 2), (8, 16, 1, 2), (6, 9, 3, 3)])
def test_packed_counts_are_the_formulas_of_the_document(shape: tuple[int, int, int, int]) -> None:
    m, n, p, q = shape
    b, u, w, r, t, h = 11, 7, 3, 4 * 16 + 8 * 2, 4 * 2, HEADER_BYTES
    topology = spread(*shape)
    e = q * min(m, n // q) * (n // q - 1)
    expected = {
        Scheme.ONE_PHASE: (m * n * (h + w * r + b * t), 0),
        Scheme.AGGREGATE: (
            p * q * h + m * q * (u * r + b * t),
            (m - p) * (h + b * (r + t)) + (n - q) * (h + m * (w * r + b * t)),
        ),
        Scheme.ONE_TO_ONE: (m * q * (h + u * r + b * t), e * h + m * (n - q) * (w * r + b * t)),
    }  # fmt: skip
    for scheme, bytes_ in expected.items():
        plan = make_plan(scheme, topology, range(m))
        rows = {1: w, n // q: u, n: b}
        total = traffic(
            plan, topology, dict.fromkeys(range(m), b), row_bytes=r, most=MANY, token_bytes=t,
            rows=lambda edge, _, plan=plan, rows=rows: rows[len(plan.reach(edge))],
        )  # fmt: skip
        assert (total.inter_bytes, total.intra_bytes) == bytes_


def test_on_one_node_every_scheme_is_the_direct_one() -> None:
    topology = Topology(("x",) * 3, ("x",) * 4)
    assert not topology.spread
    plans = [make_plan(scheme, topology, (0, 2)) for scheme in Scheme]
    assert len({plan.edges for plan in plans}) == 1


def test_a_lost_leader_is_followed_by_the_next_of_its_node() -> None:
    topology = spread(4, 4, 2, 2)
    leaders = [
        {edge.sender for edge in make_plan(Scheme.AGGREGATE, topology, active).edges if edge.phase == ACROSS}
        for active in ((0, 1, 2, 3), (1, 2, 3), (1, 3))
    ]
    assert leaders == [{0, 2}, {1, 2}, {1, 3}]


def test_packets_keep_sources_whole_and_rows_below_the_most() -> None:
    tokens = {0: 5, 1: 5, 2: 3, 7: 8, 9: 1}
    assert packets((0, 1, 2, 7, 9), tokens, 8) == (((0,), 5), ((1, 2), 8), ((7,), 8), ((9,), 1))
    assert packets((7,), tokens, 8) == (((7,), 8),)


def test_masks() -> None:
    ranks = (0, 3, 17, MAX_ACTIVE - 1)
    assert unmask(mask(ranks)) == ranks
    assert unmask(mask(())) == ()
    with pytest.raises(ValueError, match="rank 256"):
        mask((MAX_ACTIVE,))


def test_ins_and_outs_are_the_edges_of_a_worker() -> None:
    plan = make_plan(Scheme.AGGREGATE, spread(2, 2, 1, 1), (0, 1))
    assert plan.outs(0) == (Edge(0, 2, (0, 1), 1),) and plan.ins(0) == (Edge(1, 0, (1,), 0),)
    assert plan.ins(3) == (Edge(2, 3, (0, 1), 2),) and plan.outs(3) == ()
