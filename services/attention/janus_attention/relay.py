"""An attention worker's part in an exchange between nodes: as a leader it sends for its node, and shares what comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from janus_transport import Frame, Header, Kind, SendBuffer
from janus_transport.plan import Edge, Plan, packets
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.packing import Piece
from janus_worker.relay import Relay, Rows, Verdict
from janus_worker.rows import row_bytes

_GATED, _DECODES, _NARROW = int(Flag.GATED), int(Flag.DECODES), int(Flag.NARROW)
_NO_TRACE = bytes(16)


class AttentionRelay(Relay):
    """Out: own rows, and for a leader those of its node. Back: sums, and for a leader its node's shares."""

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
        self._tokens: dict[int, dict[int, int]] = {}
        """By lane: of this worker and of those it sends for."""
        self._carried: dict[int, dict[tuple[int, int], Rows]] = {}
        """By lane, gated: which tokens' rows, by the worker at the other end and source."""

    def send(self, plan: Plan, header: Header, request: SendBuffer | Piece) -> int:
        """Start one layer: ``request`` holds this worker's rows, gated they are a piece; ``header`` describes it.

        Returns bytes of payload sent, as a leader for its node too.
        """
        outs = plan.outs(self.me)
        wide = [edge for edge in outs if len(edge.sources) > 1]
        self._tokens[header.lane] = {self.me: header.tokens}
        self._carried[header.lane] = {}
        sent = 0
        if isinstance(request, Piece):
            for edge in outs:
                if len(edge.sources) == 1:
                    sent += self._send_packed(plan, edge, header, {self.me: request})
        elif own := [self.member(edge.receiver) for edge in outs if len(edge.sources) == 1]:
            self._engine.exchange.send(own, header, request)
            sent = header.payload_bytes * len(own)
        return sent + (self._send_for_node(plan, header, request, wide) if wide else 0)

    def _send_for_node(
        self, plan: Plan, header: Header, request: SendBuffer | Piece, wide: list[Edge]
    ) -> int:
        """Edges with several sources have all the same ones: this worker's node."""
        ins = plan.ins(self.me)
        mates = [self.member(edge.sender) for edge in ins]
        frames = self._engine.await_frames(mates, self._peek)
        joint = header
        for edge, frame in zip(ins, frames, strict=True):
            theirs = frame.header
            self._check_mate(frame, header)
            self._tokens[header.lane][edge.sender] = theirs.tokens
            traced = theirs if theirs.trace_id != _NO_TRACE else joint
            joint = dataclasses.replace(
                joint,
                flags=joint.flags | theirs.flags & _DECODES,
                trace_id=traced.trace_id,
                span_id=traced.span_id,
            )
        if isinstance(request, Piece):
            pieces = {self.me: request}
            for edge, frame in zip(ins, frames, strict=True):
                piece = pieces[edge.sender] = self._received(frame, self._ranks(plan, edge))
                self._carried[header.lane][edge.sender, edge.sender] = piece.rows_R
            sent = sum(self._send_packed(plan, edge, joint, pieces) for edge in wide)
        else:
            payloads = {edge.sender: frame.payload for edge, frame in zip(ins, frames, strict=True)}
            payloads[self.me] = request.payload[: header.payload_bytes]
            sent = self._send_whole(joint, payloads, wide)
        for member in mates:
            self._engine.exchange.pop(member)
        return sent

    def _send_whole(self, joint: Header, payloads: dict[int, Rows], wide: list[Edge]) -> int:
        """All rows of several workers, the same to all."""
        receivers = [self.member(edge.receiver) for edge in wide]
        sent = 0
        for part, (sources, tokens) in enumerate(
            packets(wide[0].sources, self._tokens[joint.lane], self._most)
        ):
            whole = self._buffer("node", joint.lane, part)
            size = sum(payloads[source].nbytes for source in sources)
            np.concatenate([payloads[source] for source in sources], out=whole.payload[:size])
            header = dataclasses.replace(joint, tokens=tokens, payload_bytes=size)
            self._engine.exchange.send(receivers, header, whole)
            sent += size * len(receivers)
        return sent

    def _send_packed(self, plan: Plan, edge: Edge, header: Header, pieces: dict[int, Piece]) -> int:
        """Along an edge what MoE workers beyond it need; bytes of payload."""
        rows, sent = self._pack_edge(plan, edge, header, pieces, self._tokens[header.lane])
        self._carried[header.lane].update(rows)
        return sent

    def _check_mate(self, frame: Frame, header: Header) -> None:
        theirs = frame.header
        if (theirs.kind, theirs.step, theirs.layer, theirs.lane, theirs.scheme, theirs.flags & ~_DECODES) != (
            Kind.HIDDEN, header.step, header.layer, header.lane, header.scheme, header.flags & ~_DECODES,
        ):  # fmt: skip
            raise ProtocolError(
                theirs.source, f"sent its leader {theirs.kind!r} of step {theirs.step} layer {theirs.layer} lane "
                f"{theirs.lane}; expected step {header.step} layer {header.layer} lane {header.lane}",
            )  # fmt: skip
        expected = theirs.tokens * row_bytes(self._hidden, bool(theirs.flags & _NARROW))
        sized = bool(theirs.flags & _GATED) or theirs.payload_bytes == expected
        if not sized or not 0 < theirs.tokens <= self._most:
            raise ProtocolError(
                theirs.source, f"sent its leader {theirs.payload_bytes} bytes for {theirs.tokens} tokens"
            )

    def collect(
        self, plan: Plan, header: Header, check: Callable[[Frame], None]
    ) -> tuple[torch.Tensor, Verdict]:
        """Sum of all partial sums of this worker's rows, fp64 [t, d], and what was said of them.

        A leader passes on to its node what is theirs. ``check`` raises ProtocolError for a frame that is no answer
        to this request.
        """
        tokens, carried = self._tokens[header.lane], self._carried[header.lane]
        ins, outs = plan.ins(self.me), plan.outs(self.me)
        shares = {source: np.zeros((count, self._hidden)) for source, count in tokens.items()}
        direct, joint = Verdict(), Verdict()

        def take(frame: Frame, worker: int, sources: tuple[int, ...]) -> None:
            check(frame)
            rows = [carried.get((worker, source)) for source in sources]
            self._add(frame, [(shares[source], where) for source, where in zip(sources, rows, strict=True)])
            (direct if sources == (self.me,) else joint).add(frame.header)

        self._collect(self._packets(lambda edge: edge.receiver, outs, tokens), take)
        if ins:
            own = dataclasses.replace(
                header, kind=Kind.PARTIAL, source=self._engine.member, trace_id=_NO_TRACE
            )
            answer = joint.mark(own)
            for edge in ins:
                rows = carried.get((edge.sender, edge.sender))
                share = shares[edge.sender]
                self._send_sums(edge.sender, [share if rows is None else share[rows]], answer)
        direct.join(joint)
        return torch.from_numpy(shares[self.me]), direct
