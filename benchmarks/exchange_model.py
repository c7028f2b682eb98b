"""A layer's exchange message by message on modelled links, in virtual time: what choices are tried against.

Unlike janus_transport.cost it follows every message: a sender's and a receiver's port are busy one message at a
time, a relay passes on what it has as soon as it has it, and workers of a node may share one network interface.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from janus_transport.cost import Link, Links, Sizes, line
from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import Edge, Plan, packets
from janus_transport.topology import Topology


@dataclass(frozen=True, slots=True)
class Fabric:
    """Links, and whether a node's workers share its network interface."""

    name: str
    links: Links
    """As single messages show them."""
    shared: bool
    relay_s: float = 0.0
    relay_bytes_s: float = math.inf
    """A relay takes so long for a message that it passes on: no message between two workers tells of it."""

    def known(self) -> Links:
        """What a coordinator measures before it chooses: links, and whether its neighbour's messages delay its own."""
        topology = Topology(("a", "b"), ("e", "e"))

        def row(crowd: bool) -> float:
            ports = _Ports(topology, self, random.Random(0))
            mine = 0.0
            for _ in range(4):
                mine = ports.pass_(2, 0, 1 << 18, 0.0)
                if crowd:
                    ports.pass_(3, 1, 1 << 18, 0.0)
            return mine

        share = (row(True) - row(False)) / (4 * self.links.inter.busy_s(1 << 18))
        return dataclasses.replace(self.links, share=min(1.0, max(0.0, share)))


FABRICS = (
    Fabric("400 Gb/s per worker", Links(line(3e-6, 300e9, 1e-6), line(10e-6, 40e9, 2e-6)), shared=False),
    Fabric("10 Gb/s per node", Links(line(20e-6, 5e9, 10e-6), line(60e-6, 1.1e9, 15e-6)), shared=True),
    Fabric(
        "100 Gb/s per node, slow relays",
        Links(line(10e-6, 10e9, 5e-6), line(30e-6, 11e9, 8e-6)),
        shared=True,
        relay_s=40e-6,
        relay_bytes_s=4e9,
    ),
)


class _Ports:
    """When senders, receivers and interfaces are free again."""

    def __init__(self, topology: Topology, fabric: Fabric, draw: random.Random) -> None:
        self._topology, self._fabric, self._draw = topology, fabric, draw
        self._free: defaultdict[tuple[str, object], float] = defaultdict(float)

    def start(self, sender: int, receiver: int, ready: float) -> float:
        return max(ready, *(self._free[key] for key in self._keys(sender, receiver)[0]))

    def pass_(self, sender: int, receiver: int, size: float, ready: float) -> float:
        """When a message that is ready then has arrived."""
        remote = self._topology.remote(sender, receiver)
        link: Link = self._fabric.links.inter if remote else self._fabric.links.intra
        busy = link.busy_s(size) * self._draw.uniform(0.97, 1.03)
        out, into = self._keys(sender, receiver)
        begin = self.start(sender, receiver, ready)
        for key in out:
            self._free[key] = begin + busy
        arrive = max(begin + link.seconds(0) - link.gap_s, *(self._free[key] for key in into)) + busy
        for key in into:
            self._free[key] = arrive
        return arrive

    def _keys(self, sender: int, receiver: int) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
        out: list[tuple[str, object]] = [("out", sender)]
        into: list[tuple[str, object]] = [("in", receiver)]
        if self._fabric.shared and self._topology.remote(sender, receiver):
            out.append(("out", self._topology.node(sender)))
            into.append(("in", self._topology.node(receiver)))
        return out, into


def seconds(
    plan: Plan, topology: Topology, tokens: Mapping[int, int], fabric: Fabric, sizes: Sizes, *, seed: int = 0
) -> float:
    """One layer, out and back, until every attention worker has its sums."""
    draw = random.Random(seed)
    carried = {edge: sizes.carried(plan, topology, edge) for edge in plan.edges}
    out = {edge: share * sizes.out + sizes.ids for edge, share in carried.items()}
    back = {edge: share * sizes.back for edge, share in carried.items()}
    ports = _Ports(topology, fabric, draw)
    has: dict[tuple[int, int], float] = {(rank, rank): 0.0 for rank in plan.active}

    def relayed(rows: int, row: float) -> float:
        return fabric.relay_s + rows * row / fabric.relay_bytes_s

    def outward(edge: Edge) -> float | None:
        times = [has.get((edge.sender, source)) for source in edge.sources]
        if None in times:
            return None
        since = max(t for t in times if t is not None)
        through = edge.sources != (edge.sender,)
        return (
            since + relayed(sum(tokens[source] for source in edge.sources), out[edge]) if through else since
        )

    pending = list(plan.edges)
    while pending:
        edge, ready = _next(pending, outward, ports, backward=False)
        pending.remove(edge)
        for sources, rows in packets(edge.sources, tokens, sizes.most):
            arrived = ports.pass_(edge.sender, edge.receiver, HEADER_BYTES + rows * out[edge], ready)
            for source in sources:
                has[edge.receiver, source] = arrived
    computed = {
        worker: max(has[worker, rank] for rank in plan.active)
        for worker in range(topology.m, topology.m + len(topology.moe))
    }
    answered: dict[Edge, float] = {}

    def homeward(edge: Edge) -> float | None:
        times = [computed.get(edge.receiver, 0.0)]
        for other in plan.outs(edge.receiver):
            if set(other.sources) & set(edge.sources):
                if other not in answered:
                    return None
                times.append(answered[other])
        through = len(times) > 1
        return max(times) + (
            relayed(sum(tokens[source] for source in edge.sources), back[edge]) if through else 0.0
        )

    pending = list(plan.edges)
    while pending:
        edge, ready = _next(pending, homeward, ports, backward=True)
        pending.remove(edge)
        for _, rows in packets(edge.sources, tokens, sizes.most):
            answered[edge] = ports.pass_(edge.receiver, edge.sender, HEADER_BYTES + rows * back[edge], ready)
    return max(answered.values())


def _next(pending: list[Edge], ready: object, ports: _Ports, *, backward: bool) -> tuple[Edge, float]:
    """The edge that can start first, and since when it is ready."""
    best: tuple[float, int] | None = None
    found: tuple[Edge, float] | None = None
    for i, edge in enumerate(pending):
        since = ready(edge)  # type: ignore[operator]
        if since is None:
            continue
        ends = (edge.receiver, edge.sender) if backward else (edge.sender, edge.receiver)
        key = (ports.start(*ends, since), i)
        if best is None or key < best:
            best, found = key, (edge, since)
    assert found is not None
    return found
