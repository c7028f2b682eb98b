"""An attention worker's part in an exchange between nodes: as a leader it sends for its node, and shares what comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from janus_transport import Frame, Header, Kind, SendBuffer
from janus_transport.plan import Edge, Plan, packets
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import Flag, ProtocolError
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
        super().__init__(engine, peek, hidden=hidden, most=most)
        self._topk = topk
        self._tokens: dict[int, dict[int, int]] = {}
        """By lane: rows of this worker and of those it sends for."""

    def send(self, plan: Plan, header: Header, buffer: SendBuffer) -> None:
        """Start one layer: ``buffer`` holds this worker's request, ``header`` describes it."""
        outs = plan.outs(self.me)
        own = [self.member(edge.receiver) for edge in outs if len(edge.sources) == 1]
        if own:
            self._engine.exchange.send(own, header, buffer)
        self._tokens[header.lane] = {self.me: header.tokens}
        wide = [edge for edge in outs if len(edge.sources) > 1]
        if wide:
            self._send_for_node(plan, header, buffer, wide)

    def _send_for_node(self, plan: Plan, header: Header, buffer: SendBuffer, wide: list[Edge]) -> None:
        """Edges with several sources have all the same ones: this worker's node."""
        ins = plan.ins(self.me)
        mates = [self.member(edge.sender) for edge in ins]
        frames = self._engine.await_frames(mates, self._peek)
        tokens = self._tokens[header.lane]
        requests = {self.me: (header, buffer.payload[: header.payload_bytes])}
        for edge, frame in zip(ins, frames, strict=True):
            self._check_mate(frame, header)
            tokens[edge.sender] = frame.header.tokens
            requests[edge.sender] = (frame.header, frame.payload)
        receivers = [self.member(edge.receiver) for edge in wide]
        for part, (sources, rows) in enumerate(packets(wide[0].sources, tokens, self._most)):
            whole = self._buffer("node", header.lane, part)
            size = self._fill(whole, [requests[source] for source in sources])
            flags, trace = header.flags, header
            for source in sources:
                flags |= requests[source][0].flags & _DECODES
                if requests[source][0].trace_id != _NO_TRACE:
                    trace = requests[source][0]
            joint = dataclasses.replace(
                header,
                flags=flags,
                tokens=rows,
                payload_bytes=size,
                trace_id=trace.trace_id,
                span_id=trace.span_id,
            )
            self._engine.exchange.send(receivers, joint, whole)
        for member in mates:
            self._engine.exchange.pop(member)

    def _columns(self, flags: int) -> tuple[int, ...]:
        """Bytes of a row's parts: hidden states, and gated weights fp64 and ids int32."""
        row = row_bytes(self._hidden, bool(flags & _NARROW))
        return (row, 8 * self._topk, 4 * self._topk) if flags & _GATED else (row,)

    def _fill(self, whole: SendBuffer, requests: list[tuple[Header, Rows]]) -> int:
        """Payloads of several workers as one: column by column, each in their order. Its size in bytes."""
        end = 0
        starts = [0] * len(requests)
        for width in self._columns(requests[0][0].flags):
            for i, (header, payload) in enumerate(requests):
                size = width * header.tokens
                whole.payload[end : end + size] = payload[starts[i] : starts[i] + size]
                starts[i] += size
                end += size
        return end

    def _check_mate(self, frame: Frame, header: Header) -> None:
        theirs = frame.header
        if (theirs.kind, theirs.step, theirs.layer, theirs.lane, theirs.scheme, theirs.flags & ~_DECODES) != (
            Kind.HIDDEN, header.step, header.layer, header.lane, header.scheme, header.flags & ~_DECODES,
        ):  # fmt: skip
            raise ProtocolError(
                theirs.source, f"sent its leader {theirs.kind!r} of step {theirs.step} layer {theirs.layer} lane "
                f"{theirs.lane}; expected step {header.step} layer {header.layer} lane {header.lane}",
            )  # fmt: skip
        expected = theirs.tokens * sum(self._columns(theirs.flags))
        if theirs.payload_bytes != expected or not 0 < theirs.tokens <= self._most:
            raise ProtocolError(
                theirs.source, f"sent its leader {theirs.payload_bytes} bytes for {theirs.tokens} tokens"
            )

    def collect(
        self, plan: Plan, header: Header, check: Callable[[Frame], None]
    ) -> tuple[list[torch.Tensor], Verdict]:
        """Partial sums fp64 [t, d] that together are this worker's, and what was said of them.

        A leader passes on to its node what is theirs. ``check`` raises ProtocolError for a frame that is no answer
        to this request.
        """
        tokens = self._tokens[header.lane]
        ins, outs = plan.ins(self.me), plan.outs(self.me)
        partials: list[torch.Tensor] = []
        shares: dict[int, Rows] = {}
        """Of each source of the node, what has come so far."""
        direct, joint = Verdict(), Verdict()

        def take(frame: Frame, sources: tuple[int, ...]) -> None:
            check(frame)
            rows = self._sums(frame, sum(tokens[source] for source in sources))
            if sources == (self.me,):
                direct.add(frame.header)
                partials.append(torch.from_numpy(rows.copy()))
                return
            joint.add(frame.header)
            first = 0
            for source in sources:
                part = rows[first : first + tokens[source]]
                first += tokens[source]
                if source in shares:
                    shares[source] += part
                else:
                    shares[source] = part.copy()

        self._collect(self._packets(lambda edge: edge.receiver, outs, tokens), take)
        if ins:
            own = dataclasses.replace(
                header, kind=Kind.PARTIAL, source=self._engine.member, trace_id=_NO_TRACE
            )
            answer = joint.mark(own)
            for edge in ins:
                self._send_sums(edge.sender, [shares[edge.sender]], answer)
        if self.me in shares:
            partials.append(torch.from_numpy(shares[self.me]))
        direct.join(joint)
        return partials, direct
