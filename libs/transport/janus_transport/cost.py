"""What an exchange is predicted to take, from the times of single messages. Pure.

Two classes of links, inside a node and between nodes. Each has the time of one message by size, as measured
(:class:`Link`), and the time by which each further message keeps its sender or receiver busy. A phase of a plan
takes as long as its busiest worker, or as the busiest interface where a node's workers share one; phases follow each
other, out and back.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import ACROSS, GATHER, MULTICAST, Edge, Plan, packets
from janus_transport.topology import Topology


@dataclass(frozen=True, slots=True)
class Link:
    """Times of messages between two workers."""

    points: tuple[tuple[int, float], ...]
    """(bytes, seconds one way), bytes ascending; between two points time is linear, beyond the last as before it."""
    gap_s: float
    """Of each further small message sent, or received, in a row."""

    def seconds(self, size: float) -> float:
        """One message's time, one way."""
        points = self.points
        if len(points) == 1:
            return points[0][1]
        i = min(max(bisect.bisect_right(points, (size, 0.0)), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        return max(y0 + (size - x0) * (y1 - y0) / (x1 - x0), min(y0, y1) if size >= x0 else 0.0, 0.0)

    def busy_s(self, size: float) -> float:
        """How long a message keeps one end busy: a gap, and the time that its bytes take."""
        return self.gap_s + max(0.0, self.seconds(size) - self.seconds(0))

    def describe(self) -> str:
        """``25 us, 2.1 GB/s``."""
        first, last = self.points[0], self.points[-1]
        rate = (last[0] - first[0]) / max(last[1] - first[1], 1e-9)
        return f"{first[1] * 1e6:.0f} us" + (f", {rate * 1e-9:.1f} GB/s" if len(self.points) > 1 else "")


def line(latency_s: float, bytes_per_s: float, gap_s: float) -> Link:
    """A link of constant latency and bandwidth."""
    return Link(((0, latency_s), (1 << 20, latency_s + (1 << 20) / bytes_per_s)), gap_s)


@dataclass(frozen=True, slots=True)
class Links:
    """Both classes."""

    intra: Link
    inter: Link
    share: float | None = None
    """How much of a message between nodes also keeps its node's other workers waiting: 0 with an interface of their
    own, 1 where they share one. None: not measured."""

    def describe_share(self) -> str:
        """``shared by a node's workers to 90%``."""
        return "not measured" if self.share is None else f"shared by a node's workers to {self.share:.0%}"


DEFAULT = Links(intra=line(20e-6, 5e9, 15e-6), inter=line(50e-6, 1e9, 20e-6))
"""Shared memory and 10 Gb/s tcp, where nothing could be measured."""
UNKNOWN_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What messages carry."""

    out: int
    """Bytes of a row on its way to the MoE workers."""
    back: int
    """Bytes of a row of sums."""
    most: int
    """Tokens of a message at most."""
    ids: int = 0
    """Bytes of each token on the way out besides, whether its row is carried or not."""
    share: Callable[[tuple[int, ...]], float] | None = None
    """Part of the rows that some of these MoE ranks need, which alone are carried; None: all are."""

    def carried(self, plan: Plan, topology: Topology, edge: Edge) -> float:
        """Part of its sources' rows that an edge carries."""
        if self.share is None:
            return 1.0
        return self.share(tuple(worker - topology.m for worker in plan.reach(edge)))


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one layer's exchange, out and back, by cause."""

    intra: float
    """Phases inside nodes."""
    inter: float
    """Between nodes, every worker with an interface of its own."""
    crowd: float
    """What an interface shared by all of a node's workers would add."""
    relay: float
    """Of workers that pass messages on, which join and copy rows or add sums: taken to be as long as a message inside
    a node, until measured steps say otherwise."""

    def seconds(self, links: Links) -> float:
        """Their sum on these links."""
        share = UNKNOWN_SHARE if links.share is None else links.share
        return self.intra + self.inter + self.relay + self.crowd * share


def cost(plan: Plan, topology: Topology, tokens: Mapping[int, int], links: Links, sizes: Sizes) -> Cost:
    """What one layer's exchange takes, computing left out; ``tokens``: of each active attention rank."""
    intra = inter = crowd = relay = 0.0
    for phase in (GATHER, ACROSS, MULTICAST):
        edges = [(edge, sizes.carried(plan, topology, edge)) for edge in plan.edges if edge.phase == phase]
        for row, each in ((sizes.out, sizes.ids), (sizes.back, 0)) if edges else ():
            busy: defaultdict[tuple[int, bool], float] = defaultdict(float)
            interfaces: defaultdict[tuple[str, bool], float] = defaultdict(float)
            first = passed_on = 0.0
            for edge, carried in edges:
                per_token = carried * row + each
                if edge.sources != (edge.sender,):
                    size = per_token * sum(tokens[source] for source in edge.sources)
                    passed_on = max(passed_on, links.intra.seconds(size))
                remote = topology.remote(edge.sender, edge.receiver)
                link = links.inter if remote else links.intra
                first = max(first, link.seconds(0) - link.gap_s)
                for _, count in packets(edge.sources, tokens, sizes.most):
                    seconds = link.busy_s(HEADER_BYTES + count * per_token)
                    for worker, sends in ((edge.sender, True), (edge.receiver, False)):
                        busy[worker, sends] += seconds
                        if remote:
                            interfaces[topology.node(worker), sends] += seconds
            relay += passed_on
            longest = max(busy.values())
            if interfaces:
                inter += longest + first
                crowd += max(0.0, max(interfaces.values()) - longest)
            else:
                intra += longest + first
    return Cost(intra, inter, crowd, relay)


def predict(plan: Plan, topology: Topology, tokens: Mapping[int, int], links: Links, sizes: Sizes) -> float:
    """Seconds of one layer's exchange; arguments as of :func:`cost`."""
    return cost(plan, topology, tokens, links, sizes).seconds(links)


def fit(samples: Sequence[tuple[int, float]], burst: Sequence[tuple[int, float]]) -> Link:
    """A link from measurements: (bytes, seconds one way), several of each size, and (messages in a row, seconds).

    Of each size the least counts, as everything that disturbs only adds; times do not fall with size.
    """
    least: dict[int, float] = {}
    for size, seconds in samples:
        least[size] = min(seconds, least.get(size, seconds))
    points: list[tuple[int, float]] = []
    for size in sorted(least):
        points.append((size, max(least[size], points[-1][1] if points else 0.0)))
    rows: dict[int, float] = {}
    for count, seconds in burst:
        rows[count] = min(seconds, rows.get(count, seconds))
    gap = 0.0
    if len(rows) > 1:
        few, many = min(rows), max(rows)
        gap = max(0.0, (rows[many] - rows[few]) / (many - few))
    return Link(tuple(points), gap)
