"""What an exchange is predicted to take, from the times of single messages. Pure.

Two classes of links, inside a node and between nodes. Each has the time of one message by size, as measured
(:class:`Link`), and the time by which each further message keeps its sender or receiver busy. A phase of a plan
takes as long as its busiest worker; phases follow each other, out and back.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import ACROSS, GATHER, MULTICAST, Plan, packets
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


DEFAULT = Links(intra=line(20e-6, 5e9, 15e-6), inter=line(50e-6, 1e9, 20e-6))
"""Shared memory and 10 Gb/s tcp, where nothing could be measured."""


def predict(
    plan: Plan, topology: Topology, tokens: Mapping[int, int], links: Links, *, out: int, back: int, most: int
) -> float:
    """Seconds of one layer's exchange, out and back, computing left out.

    Args:
        tokens: rows of each active attention rank.
        out, back: bytes of a row on its way to the MoE workers, and of a row of sums.
        most: rows that a message carries at most.
    """
    total = 0.0
    for phase in (GATHER, ACROSS, MULTICAST):
        edges = [edge for edge in plan.edges if edge.phase == phase]
        for row in (out, back) if edges else ():
            busy: defaultdict[tuple[int, bool], float] = defaultdict(float)
            first = 0.0
            for edge in edges:
                link = links.inter if topology.remote(edge.sender, edge.receiver) else links.intra
                first = max(first, link.seconds(0) - link.gap_s)
                for _, rows in packets(edge.sources, tokens, most):
                    seconds = link.busy_s(HEADER_BYTES + rows * row)
                    busy[edge.sender, True] += seconds
                    busy[edge.receiver, False] += seconds
            total += max(busy.values()) + max(first, 0.0)
    return total


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
