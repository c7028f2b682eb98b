"""A MoE worker's part in an exchange between nodes: it passes rows on inside its node, and adds up sums for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from janus_transport import Frame, Header
from janus_transport.plan import ACROSS, MULTICAST, Edge, Plan, packets
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.relay import Relay, Rows, Verdict
from janus_worker.rows import put, take

from janus_moe.relayed import Batch, Relayed

_GATED, _DECODES, _NARROW = int(Flag.GATED), int(Flag.DECODES), int(Flag.NARROW)
_NO_TRACE = bytes(16)


class MoeRelay(Relay):
    """Out: rows from elsewhere, once into the node. Back: the node's sums, once out of it."""

    def __init__(
        self,
        engine: CohortEngine,
        peek: Callable[[int], Frame | None],
        *,
        hidden: int,
        topk: int,
        most: int,
    ) -> None:
        super().__init__(engine, peek, hidden=hidden, topk=topk, most=most)
        self._tokens: dict[int, Mapping[int, int]] = {}
        self._rows: dict[int, dict[int, slice]] = {}
        """Both by lane, then by attention rank."""

    def begin(self, lane: int, tokens: Mapping[int, int]) -> None:
        """A step's lane has these attention ranks, ascending, with so many rows in each layer."""
        self._tokens[lane] = tokens
        rows, first = {}, 0
        for rank, count in tokens.items():
            rows[rank] = slice(first, first + count)
            first += count
        self._rows[lane] = rows

    def await_first(self, step: int, lane: int, *, last: bool) -> Header | None:
        """The first header of the lane's next layer, or of a repeat: it names the scheme.

        None: the step is over; after the ``last`` layer also when another lane repeats it.
        """
        found: list[Header | None] = []
        candidates = [self.member(worker) for worker in (*self._tokens[lane], *self.topology.mates(self.me))]

        def ready() -> bool:
            for member in candidates:
                frame = self._peek(member)
                if frame is not None and (frame.header.step > step or (last and frame.header.lane != lane)):
                    found.append(None)
                    return True
                if frame is not None and frame.header.lane == lane:
                    found.append(frame.header)
                    return True
            return False

        if not ready():
            self._engine.await_(ready, lambda: [m for m in candidates if self._peek(m) is None])
        return found[0]

    def gather(self, first: Header, check: Callable[[Frame], None]) -> Relayed:
        """Await the layer that ``first`` belongs to, passing on what this node's workers have from here.

        ``check`` raises ProtocolError for a frame that is not of that layer.
        """
        lane, tokens, rows = first.lane, self._tokens[first.lane], self._rows[first.lane]
        try:
            plan = self.plan(first.scheme, tuple(tokens))
        except ValueError as error:
            raise ProtocolError(first.source, f"names an exchange that cannot be: {error}") from None
        batch = Batch(tokens, rows)
        ins, outs = plan.ins(self.me), plan.outs(self.me)
        ranks = {source: self._ranks(plan, edge) for edge in ins for source in edge.sources}

        def accept(frame: Frame, worker: int, sources: tuple[int, ...]) -> None:
            check(frame)
            header = frame.header
            if header.scheme != first.scheme or header.tokens != sum(tokens[source] for source in sources):
                raise ProtocolError(
                    header.source,
                    f"sent {header.tokens} rows by scheme {header.scheme}; expected scheme {first.scheme} and those of "
                    f"attention ranks {sources}",
                )
            batch.headers.append(header)
            differs = header.flags ^ batch.headers[0].flags
            if differs & _GATED:
                raise ProtocolError(header.source, "gates where its peers do not (or the reverse)")
            if differs & _NARROW:
                raise ProtocolError(
                    header.source, "sends other hidden states than its peers: --wire-dtype differs"
                )
            if batch.gated:
                batch.add_piece(sources, self._received(frame, ranks[sources[0]]))
            else:
                narrow = bool(header.flags & _NARROW)
                batch.add(sources, take(frame.payload, header.tokens, self._hidden, narrow))

        early = [edge for edge in ins if edge.phase == ACROSS]
        self._collect(self._packets(_sender, early, tokens), accept)
        passed = self._pass_on(plan, outs, batch, lane) if outs else {}
        late = [edge for edge in ins if edge.phase == MULTICAST]
        self._collect(self._packets(_sender, late, tokens), accept)
        return batch.finish(plan, passed)

    def _pass_on(
        self, plan: Plan, outs: Sequence[Edge], batch: Batch, lane: int
    ) -> dict[tuple[int, int], Rows]:
        """Edges inside a node have all the same sources: what came to this worker for its node.

        Gated, each gets the rows that it needs; returns which of this worker's they are.
        """
        header = batch.headers[0]
        traced = next((h for h in batch.headers if h.trace_id != _NO_TRACE), header)
        flags = header.flags
        for other in batch.headers:
            flags |= other.flags & _DECODES
        header = dataclasses.replace(
            header, source=self._engine.member, flags=flags, trace_id=traced.trace_id, span_id=traced.span_id
        )
        passed: dict[tuple[int, int], Rows] = {}
        if batch.gated:
            for edge in outs:
                passed.update(self._pack_edge(plan, edge, header, batch.pieces, batch.tokens)[0])
            return {(to, source): batch.pieces[source].places(rows) for (to, source), rows in passed.items()}
        mates = [self.member(edge.receiver) for edge in outs]
        for part, (sources, count) in enumerate(packets(outs[0].sources, batch.tokens, self._most)):
            buffer = self._buffer("rows", lane, part)
            end = 0
            for source in sources:
                x = torch.from_numpy(batch.x_TD[batch.rows[source]])
                end += put(buffer.payload[end:], x, bool(flags & _NARROW))
            self._engine.exchange.send(
                mates, dataclasses.replace(header, tokens=count, payload_bytes=end), buffer
            )
        return passed

    def answer(self, relayed: Relayed, answer: Header, out_TD: Rows) -> None:
        """Send the partial sums fp64 [T, d], gated [R, d], back the way the rows came; ``out_TD`` becomes the node's.

        ``answer`` is the PARTIAL's header but for tokens and size: digest, time and flags are this worker's own.
        """
        plan, lane = relayed.plan, answer.lane
        tokens = self._tokens[lane]
        ins, outs = plan.ins(self.me), plan.outs(self.me)
        for edge in ins:
            if edge.phase == MULTICAST:
                self._answer(edge, relayed, answer, out_TD)
        joint = Verdict()
        joint.add(answer)
        summed: set[int] = set()

        def add(frame: Frame, worker: int, sources: tuple[int, ...]) -> None:
            header = frame.header
            if (header.kind, header.step, header.layer, header.lane) != (
                answer.kind, answer.step, answer.layer, lane,
            ):  # fmt: skip
                raise ProtocolError(
                    header.source, f"sent {header.kind!r} of step {header.step} layer {header.layer}; expected its "
                    f"sums of step {answer.step} layer {answer.layer}",
                )  # fmt: skip
            self._add(
                frame,
                [
                    (out_TD[relayed.places[source]], relayed.passed.get((worker, source)))
                    for source in sources
                ],
            )
            joint.add(header)
            summed.update(sources)

        self._collect(self._packets(_receiver, outs, tokens), add)
        joined = joint.mark(answer)
        for edge in ins:
            if edge.phase == ACROSS:
                said = joined if summed.issuperset(edge.sources) else answer
                self._answer(edge, relayed, said, out_TD)

    def _answer(self, edge: Edge, relayed: Relayed, answer: Header, out_TD: Rows) -> None:
        tokens, places = self._tokens[answer.lane], relayed.places
        for part, (sources, _) in enumerate(packets(edge.sources, tokens, self._most)):
            self._send_sums(edge.sender, [out_TD[places[source]] for source in sources], answer, part=part)


def _sender(edge: Edge) -> int:
    return edge.sender


def _receiver(edge: Edge) -> int:
    return edge.receiver
