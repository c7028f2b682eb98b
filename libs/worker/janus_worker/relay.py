"""One worker's part in an exchange between nodes: what to await from whom, in which packets (docs/exchange.md).

The same on both sides: along the edges of a plan hidden states go out and, reversed, partial sums come back.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from janus_transport import Frame, Header, SendBuffer
from janus_transport.plan import Edge, Plan, make_plan, packets
from janus_transport.topology import Scheme, Topology

from janus_worker.engine import CohortEngine
from janus_worker.lockstep import EngineCohort, Flag, ProtocolError
from janus_worker.packing import Needs, Piece, pack, received
from janus_worker.rows import add_rows

_MIXED, _DECODES, _NARROW = int(Flag.MIXED), int(Flag.DECODES), int(Flag.NARROW)
Rows = np.ndarray[Any, np.dtype[Any]]
Packet = tuple[int, tuple[int, ...]]
"""(the worker at the other end, sources of the rows)"""


@dataclasses.dataclass(slots=True)
class Verdict:
    """What the replies that went into a sum say together."""

    digests: set[int] = dataclasses.field(default_factory=set)
    flags: int = 0
    elapsed_us: int = 0

    def add(self, header: Header) -> None:
        """Take a reply into account."""
        self.digests.add(header.digest)
        self.flags |= header.flags & (_MIXED | _DECODES)
        self.elapsed_us = max(self.elapsed_us, header.elapsed_us)

    def join(self, other: Verdict) -> None:
        """Take what another one knows into account."""
        self.digests |= other.digests
        self.flags |= other.flags
        self.elapsed_us = max(self.elapsed_us, other.elapsed_us)

    @property
    def agreed(self) -> bool:
        """Whether all of them computed the same routing and schedule."""
        return len(self.digests) == 1 and not self.flags & _MIXED

    def mark(self, answer: Header) -> Header:
        """``answer``, as the header of a reply that sums them all."""
        flags = answer.flags | self.flags | (0 if self.agreed else _MIXED)
        return dataclasses.replace(answer, digest=min(self.digests), elapsed_us=self.elapsed_us, flags=flags)


class Relay:
    """Base of the two roles' relays. Workers are numbered as in a Topology."""

    def __init__(
        self, engine: CohortEngine, peek: Callable[[int], Frame | None], *, hidden: int, topk: int, most: int
    ) -> None:
        """``peek``: the oldest frame of a member; ``most``: tokens of a frame at most."""
        self._engine = engine
        self._peek = peek
        self._hidden = hidden
        self._topk = topk
        self._most = most
        self._buffers: dict[tuple[Any, ...], SendBuffer] = {}
        self._plans: dict[tuple[int, tuple[int, ...]], Plan] = {}
        self.topology = Topology((), ())
        self.me = 0
        self._members: list[int] = []
        self._needs = Needs((), 0)

    def adopt(self, cohort: EngineCohort, needs: Needs) -> None:
        """Take up a cohort that this worker belongs to; ``needs``: of its layout."""
        self._needs = needs
        self.topology = cohort.topology
        self._members = [peer.member for peer in (*cohort.attention, *cohort.moe)]
        self.me = self._members.index(self._engine.member)
        self._plans.clear()
        self._buffers.clear()

    def plan(self, scheme: int, active: Sequence[int]) -> Plan:
        """The plan that a frame names. Raises ValueError for a scheme or ranks that do not exist."""
        key = (scheme, tuple(active))
        plan = self._plans.get(key)
        if plan is None:
            if not active or active[-1] >= self.topology.m:
                raise ValueError(f"active attention ranks {tuple(active)}; the cohort has {self.topology.m}")
            if len(self._plans) >= 64:
                self._plans.clear()
            plan = self._plans[key] = make_plan(Scheme(scheme), self.topology, active)
        return plan

    def member(self, worker: int) -> int:
        """Member number of a worker."""
        return self._members[worker]

    def _packets(
        self, other: Callable[[Edge], int], edges: Iterable[Edge], tokens: Mapping[int, int]
    ) -> list[Packet]:
        """The messages of some edges; ``other`` says at which end the peer is."""
        return [
            (other(edge), sources)
            for edge in edges
            for sources in (
                (edge.sources,)
                if len(edge.sources) == 1
                else (group for group, _ in packets(edge.sources, tokens, self._most))
            )
        ]

    def _collect(
        self,
        expected: Iterable[Packet],
        take: Callable[[Frame, int, tuple[int, ...]], None],
    ) -> None:
        """Hand each expected message to ``take``, with its packet, and consume it."""
        engine, peek = self._engine, self._peek
        awaited: dict[int, deque[Packet]] = {}
        for packet in expected:
            awaited.setdefault(self._members[packet[0]], deque()).append(packet)

        def ready() -> bool:
            return any(peek(member) is not None for member in awaited)

        while awaited:
            if not ready():
                engine.await_(ready, lambda: [m for m in awaited if peek(m) is None])
            for member in list(awaited):
                groups = awaited[member]
                while groups and (frame := peek(member)) is not None:
                    take(frame, *groups.popleft())
                    engine.exchange.pop(member)
                if not groups:
                    del awaited[member]

    def _ranks(self, plan: Plan, edge: Edge) -> tuple[int, ...]:
        """MoE ranks that an edge's rows are for."""
        return tuple(worker - self.topology.m for worker in plan.reach(edge))

    def _received(self, frame: Frame, ranks: tuple[int, ...]) -> Piece:
        """Rows of a gated frame. Raises ProtocolError unless they are those that MoE ``ranks`` need."""
        return received(frame, self._needs, ranks, hidden=self._hidden, topk=self._topk)

    def _pack_edge(
        self, plan: Plan, edge: Edge, header: Header, pieces: Mapping[int, Piece], tokens: Mapping[int, int]
    ) -> tuple[dict[tuple[int, int], Rows], int]:
        """Send along an edge the rows that MoE workers beyond it need.

        Returns which tokens of each source these are, by (receiver, source), and bytes of payload.
        """
        ranks, narrow, sent = self._ranks(plan, edge), bool(header.flags & _NARROW), 0
        rows = {s: self._needs.rows(header.layer, ranks, pieces[s].ids_TK) for s in edge.sources}
        for part, (sources, count) in enumerate(packets(edge.sources, tokens, self._most)):
            buffer = self._buffer("packed", header.lane, edge.receiver, part)
            size = pack(buffer.payload, [(pieces[s], rows[s]) for s in sources], narrow=narrow)
            self._engine.exchange.send(
                [self._members[edge.receiver]],
                dataclasses.replace(header, tokens=count, payload_bytes=size),
                buffer,
            )
            sent += size
        return {(edge.receiver, source): found for source, found in rows.items()}, sent

    def _buffer(self, *key: Any) -> SendBuffer:
        """A buffer for one message of a layer, writable."""
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = self._engine.exchange.allocate()
        self._engine.exchange.reclaim(buffer)
        return buffer

    def _send_sums(self, peer: int, parts: Sequence[Rows], header: Header, part: int = 0) -> None:
        """A PARTIAL with rows fp64 [t, d], one array after the other, to a worker."""
        buffer = self._buffer("sums", peer, header.lane, part)
        tokens = sum(len(part) for part in parts)
        size = 8 * tokens * self._hidden
        np.concatenate(parts, out=buffer.payload[:size].view(np.float64).reshape(tokens, self._hidden))
        header = dataclasses.replace(header, tokens=tokens, payload_bytes=size)
        self._engine.exchange.send([self._members[peer]], header, buffer)

    def _add(self, frame: Frame, targets: Sequence[tuple[Rows, Rows | None]]) -> None:
        """Add a PARTIAL's rows fp64 to arrays [t, d], one after the other: to rows of theirs, or to all.

        Raises ProtocolError when they are fewer or more.
        """
        counts = [len(sums_TD if rows is None else rows) for sums_TD, rows in targets]
        header, total = frame.header, sum(counts)
        expected = 8 * total * self._hidden
        if header.tokens != total or header.payload_bytes != expected:
            raise ProtocolError(
                header.source,
                f"answered {header.tokens} rows in {header.payload_bytes} bytes; expected {total} in {expected}",
            )
        part = frame.payload.view(np.float64).reshape(total, self._hidden)
        at = 0
        for (sums_TD, rows), count in zip(targets, counts, strict=True):
            if rows is None:
                sums_TD += part[at : at + count]
            else:
                add_rows(sums_TD, rows, part[at : at + count])
            at += count
