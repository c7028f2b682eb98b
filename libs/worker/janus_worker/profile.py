"""Measuring the links of a cohort: a few messages to one worker on the same node and one on another.

The coordinator sends PROBE frames and awaits their echoes when a cohort of more than one node begins; peers echo
from wherever they wait for frames. Whether its node's workers share an interface shows when a neighbour, asked to,
sends to another node at the same time. It is bounded: what is not answered in time is not known, and defaults serve.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence

from janus_transport import HEADER_BYTES, Header, Kind, SendBuffer, WaitTimeout
from janus_transport.cost import DEFAULT, Link, Links, fit

from janus_worker.engine import CohortEngine
from janus_worker.lockstep import CROWD, EngineCohort

_LOG = logging.getLogger("janus.worker")
SIZES = (0, 16 << 10, 256 << 10, 1 << 20)
"""Payload bytes of probes, as far as frames are that large."""
ROUNDS = 5
BURST = 8
"""Messages in a row, from whose time that of a further one follows."""
BUDGET_S = 0.25
"""For each class of links, and for the interface."""
SWEEPS, SWEEPS_S = 6, 0.04
"""All of it is measured again, so often at most and for about so long: a moment in which something else ran, as
workers that have just started do, would be taken for the link otherwise."""
CROWD_BYTES = 256 << 10
"""Of each of the messages that both neighbours send at once."""


def measure_links(engine: CohortEngine, cohort: EngineCohort) -> Links:
    """Times of messages inside this worker's node and between nodes. Raises PeerLost."""
    topology = cohort.topology
    members = [peer.member for peer in (*cohort.attention, *cohort.moe)]
    me = members.index(engine.member)
    # Whoever this worker talks to in any case: attention workers, and MoE workers of its node.
    linked = [*range(topology.m), *topology.mates(me)]
    found: dict[str, Link] = {}
    for name, remote in (("intra", False), ("inter", True)):
        candidates = [members[w] for w in linked if topology.remote(w, me) is remote]
        link = _measure(engine, cohort.epoch, candidates)
        found[name] = link or getattr(DEFAULT, name)
        _LOG.info("links %s nodes: %s%s", name, found[name].describe(), "" if link else " (not measured)")
    links = Links(**found, share=_share(engine, cohort, found["inter"]))
    _LOG.info("interface between nodes: %s", links.describe_share())
    return links


def _share(engine: CohortEngine, cohort: EngineCohort, inter: Link) -> float | None:
    """Part of a neighbour's messages that this worker's wait for; None without two pairs to measure with."""
    topology = cohort.topology
    members = [peer.member for peer in (*cohort.attention, *cohort.moe)]
    me = members.index(engine.member)
    mates = topology.mates(me)
    away = [members[rank] for rank in range(topology.m) if topology.remote(rank, me)]
    probe = _Probe(engine, cohort.epoch, away[0] if away else 0, time.monotonic() + BUDGET_S)
    size = min(CROWD_BYTES, probe.most)
    if not mates or len(away) < 2 or size < SIZES[1]:
        return None
    alone, crowded = [], []
    try:
        for _ in range(ROUNDS):
            alone.append(probe.round(size, CROWD))
            probe.ask(members[mates[0]], away[1], size, CROWD)
            crowded.append(probe.round(size, CROWD))
    except WaitTimeout:
        return None
    busy = CROWD * inter.busy_s(HEADER_BYTES + size)
    return (
        min(1.0, max(0.0, (statistics.median(crowded) - statistics.median(alone)) / busy)) if busy else None
    )


def _measure(engine: CohortEngine, epoch: int, candidates: Sequence[int]) -> Link | None:
    """Times of messages to the first candidate; None without one, and when it does not answer in time."""
    if not candidates:
        return None
    deadline = time.monotonic() + BUDGET_S
    probe = _Probe(engine, epoch, candidates[0], deadline)
    samples: list[tuple[int, float]] = []
    burst: list[tuple[int, float]] = []
    try:
        probe.round(0, 1)  # the first one also waits for the peer to take up the cohort
        again = time.monotonic() + SWEEPS_S
        for sweep in range(SWEEPS):
            if sweep and time.monotonic() > again:
                break
            for _ in range(ROUNDS):
                burst += [(1, seconds := probe.round(0, 1)), (BURST, probe.round(0, BURST))]
                samples.append((0, seconds / 2))
            for size in SIZES[1:]:
                if size <= probe.most:
                    samples += [(HEADER_BYTES + size, probe.round(size, 1) / 2) for _ in range(ROUNDS)]
    except WaitTimeout:
        if not burst:
            return None
    return fit(samples, burst)


class _Probe:
    def __init__(self, engine: CohortEngine, epoch: int, peer: int, deadline: float) -> None:
        self._exchange = engine.exchange
        self._buffer: SendBuffer = self._exchange.allocate()
        self._epoch, self._peer, self._deadline = epoch, peer, deadline
        self._serial = 0
        self.most = self._buffer.payload.nbytes

    def ask(self, neighbour: int, target: int, size: int, count: int) -> None:
        """Have a neighbour send as many messages to another member, which drops them."""
        self._exchange.reclaim(self._buffer)
        header = Header(
            kind=Kind.PROBE, epoch=self._epoch, step=size, source=self._exchange.member, lane=count, digest=target,
        )  # fmt: skip
        self._exchange.send([neighbour], header, self._buffer)

    def round(self, size: int, count: int) -> float:
        """Seconds from sending ``count`` messages in a row to having the echo of the last. Raises WaitTimeout."""
        exchange, peer = self._exchange, self._peer
        self._serial += 1
        began = time.perf_counter()
        for i in range(count):
            exchange.reclaim(self._buffer)
            # tokens 1: to be echoed.
            header = Header(
                kind=Kind.PROBE, epoch=self._epoch, step=self._serial, source=exchange.member,
                payload_bytes=size, tokens=int(i == count - 1),
            )  # fmt: skip
            exchange.send([peer], header, self._buffer)

        def echoed() -> bool:
            while (header := exchange.pluck(peer, Kind.ECHO)) is not None:
                if header.step == self._serial and header.epoch == self._epoch:
                    return True
            return False

        exchange.wait(echoed, deadline=self._deadline, waiting_for=lambda: [peer])
        return time.perf_counter() - began
