"""Who sends whose rows to whom in one layer's exchange: a plan per scheme (docs/exchange.md). Pure.

A plan is a set of edges, each a message with the rows of some attention ranks (its *sources*). On the way out
they carry hidden states; on the way back every edge is walked in reverse with partial sums, and whoever passed
rows on adds up what comes back for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from janus_transport.framing import HEADER_BYTES
from janus_transport.topology import Scheme, Topology

GATHER, ACROSS, MULTICAST = range(3)
"""Phases: inside attention nodes, attention to MoE, inside MoE nodes."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One message, or as many as its rows take (:func:`packets`)."""

    sender: int
    receiver: int
    sources: tuple[int, ...]
    """Attention ranks, ascending."""
    phase: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The exchange of one layer among the active attention workers and all MoE workers."""

    scheme: Scheme
    active: tuple[int, ...]
    edges: tuple[Edge, ...]
    """By phase, then by sender and receiver."""
    _ins: dict[int, tuple[Edge, ...]] = field(init=False, default_factory=dict, compare=False)
    _outs: dict[int, tuple[Edge, ...]] = field(init=False, default_factory=dict, compare=False)
    _reach: dict[Edge, tuple[int, ...]] = field(init=False, default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for edge in self.edges:
            self._outs[edge.sender] = (*self._outs.get(edge.sender, ()), edge)
            self._ins[edge.receiver] = (*self._ins.get(edge.receiver, ()), edge)

    def ins(self, worker: int) -> tuple[Edge, ...]:
        """What a worker receives on the way out, and answers on the way back."""
        return self._ins.get(worker, ())

    def outs(self, worker: int) -> tuple[Edge, ...]:
        """What a worker sends on the way out, and is answered on the way back."""
        return self._outs.get(worker, ())

    def reach(self, edge: Edge) -> tuple[int, ...]:
        """MoE workers that an edge's rows are for, at once or passed on, ascending: packed, it carries what any of
        them needs."""
        found = self._reach.get(edge)
        if found is None:
            workers = set() if edge.phase == GATHER else {edge.receiver}
            for onward in self.outs(edge.receiver):
                if not set(edge.sources).isdisjoint(onward.sources):
                    workers.update(self.reach(onward))
            found = self._reach[edge] = tuple(sorted(workers))
        return found


def make_plan(scheme: Scheme, topology: Topology, active: Sequence[int]) -> Plan:
    """The plan of a scheme for the attention ranks with tokens, ascending.

    Workers on one node talk directly under every scheme. Leaders are the first active attention worker and the
    first MoE worker of a node, so a cohort without a leader has another one by the same rule.
    """
    make = {Scheme.ONE_PHASE: _direct, Scheme.AGGREGATE: _aggregate, Scheme.ONE_TO_ONE: _one_to_one}[scheme]
    edges = sorted(make(topology, active), key=lambda e: (e.phase, e.sender, e.receiver))
    return Plan(scheme, tuple(active), tuple(edges))


def _direct(topology: Topology, active: Sequence[int]) -> Iterator[Edge]:
    for rank in active:
        for _, workers in topology.moe_nodes:
            yield from (Edge(rank, worker, (rank,), ACROSS) for worker in workers)


def _local(topology: Topology, active: Sequence[int]) -> Iterator[Edge]:
    return (edge for edge in _direct(topology, active) if not topology.remote(edge.sender, edge.receiver))


def _aggregate(topology: Topology, active: Sequence[int]) -> Iterator[Edge]:
    yield from _local(topology, active)
    for label, ranks in topology.attention_nodes(active):
        leader = ranks[0]
        others = [workers for node, workers in topology.moe_nodes if node != label]
        if others:
            yield from (Edge(rank, leader, (rank,), GATHER) for rank in ranks[1:])
        yield from (Edge(leader, workers[0], ranks, ACROSS) for workers in others)
    for label, workers in topology.moe_nodes:
        if sources := _from_elsewhere(topology, active, label):
            yield from (Edge(workers[0], mate, sources, MULTICAST) for mate in workers[1:])


def _one_to_one(topology: Topology, active: Sequence[int]) -> Iterator[Edge]:
    yield from _local(topology, active)
    for label, workers in topology.moe_nodes:
        sources = _from_elsewhere(topology, active, label)
        for i, entry in enumerate(workers):
            mine = sources[i :: len(workers)]
            yield from (Edge(rank, entry, (rank,), ACROSS) for rank in mine)
            if mine:
                yield from (Edge(entry, mate, mine, MULTICAST) for mate in workers if mate != entry)


def _from_elsewhere(topology: Topology, active: Sequence[int], label: str) -> tuple[int, ...]:
    return tuple(rank for rank in active if topology.attention[rank] != label)


def packets(
    sources: Sequence[int], tokens: Mapping[int, int], most: int
) -> tuple[tuple[tuple[int, ...], int], ...]:
    """An edge's messages, (sources, rows) each: whole sources in order, together at most ``most`` rows.

    Both ends work this out alike, from the tokens of each source; one source alone always fits.
    """
    found: list[tuple[tuple[int, ...], int]] = []
    group: list[int] = []
    rows = 0
    for source in sources:
        if group and rows + tokens[source] > most:
            found.append((tuple(group), rows))
            group, rows = [], 0
        group.append(source)
        rows += tokens[source]
    found.append((tuple(group), rows))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Messages and bytes of one layer in one direction, headers included."""

    inter_messages: int = 0
    """Between nodes."""
    inter_bytes: int = 0
    intra_messages: int = 0
    """Inside nodes."""
    intra_bytes: int = 0


def traffic(
    plan: Plan,
    topology: Topology,
    tokens: Mapping[int, int],
    *,
    row_bytes: int,
    most: int,
    token_bytes: int = 0,
    rows: Callable[[Edge, int], int] | None = None,
) -> Traffic:
    """Traffic of a plan; the same edges carry both directions, only the sizes differ.

    Args:
        tokens: of each active attention rank.
        row_bytes: of a row that a message carries.
        most: tokens of a message at most.
        token_bytes: of each token besides, whether its row is carried or not.
        rows: how many of a source's rows an edge carries; all, where it is left out.
    """
    total: Counter[str] = Counter()
    for edge in plan.edges:
        link = "inter" if topology.remote(edge.sender, edge.receiver) else "intra"
        for group, count in packets(edge.sources, tokens, most):
            carried = count if rows is None else sum(rows(edge, source) for source in group)
            total[f"{link}_messages"] += 1
            total[f"{link}_bytes"] += HEADER_BYTES + carried * row_bytes + count * token_bytes
    return Traffic(**total)
