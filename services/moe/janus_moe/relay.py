"""A MoE worker's part in an exchange between nodes: it passes rows on inside its node, and adds up sums for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from janus_transport import Frame, Header
from janus_transport.plan import ACROSS, MULTICAST, Edge, Plan, packets
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import Flag, ProtocolError
from janus_worker.relay import Relay, Rows, Verdict
from janus_worker.rows import put

from janus_moe.gather import views

_DECODES, _PACKED, _NARROW = int(Flag.DECODES), int(Flag.PACKED), int(Flag.NARROW)
_NO_TRACE = bytes(16)


@dataclasses.dataclass(slots=True, kw_only=True)
class Relayed:
    """One layer's batch as it came over a plan, rows of all active attention ranks in their order."""

    x_TD: torch.Tensor
    """fp32 [T, d]"""
    ids_TK: torch.Tensor | None = None
    """int32 [T, k], gated."""
    weights_TK: torch.Tensor | None = None
    """fp64 [T, k], gated."""
    plan: Plan
    headers: list[Header]
    """Of the messages that it came in."""


class MoeRelay(Relay):
    """Out: rows from elsewhere, once into the node. Back: the node's sums, once out of it."""

    def __init__(
        self,
        engine: CohortEngine,
        peek: Callable[[int], Frame | None],
        *,
        hidden: int,
        topk: int,
        num_experts: int,
        most: int,
    ) -> None:
        super().__init__(engine, peek, hidden=hidden, most=most)
        self._topk = topk
        self._num_experts = num_experts
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
        columns: list[Rows] = []
        headers: list[Header] = []
        total = sum(tokens.values())

        def take(frame: Frame, sources: tuple[int, ...]) -> None:
            check(frame)
            header = frame.header
            if header.scheme != first.scheme or header.tokens != sum(tokens[source] for source in sources):
                raise ProtocolError(
                    header.source,
                    f"sent {header.tokens} rows by scheme {header.scheme}; expected scheme {first.scheme} and those of "
                    f"attention ranks {sources}",
                )
            if header.flags & _PACKED:
                raise ProtocolError(header.source, "packs rows in an exchange of two phases")
            parts = views(frame, self._hidden, self._topk, self._num_experts)
            if not columns:
                columns.extend(np.empty((total, part.shape[1]), part.dtype) for part in parts)
            if len(parts) != len(columns):
                raise ProtocolError(header.source, "gates where its peers do not (or the reverse)")
            headers.append(header)
            if (header.flags ^ headers[0].flags) & _NARROW:
                raise ProtocolError(
                    header.source, "sends other hidden states than its peers: --wire-dtype differs"
                )
            for column, part in zip(columns, parts, strict=True):
                at = 0
                for source in sources:
                    column[rows[source]] = part[at : at + tokens[source]]
                    at += tokens[source]

        ins, outs = plan.ins(self.me), plan.outs(self.me)
        early = [edge for edge in ins if edge.phase == ACROSS]
        self._collect(self._packets(_sender, early, tokens), take)
        if outs:
            self._pass_on(plan, outs, columns, headers, lane)
        late = [edge for edge in ins if edge.phase == MULTICAST]
        self._collect(self._packets(_sender, late, tokens), take)
        tensors = [torch.from_numpy(column) for column in columns]
        relayed = Relayed(x_TD=tensors[0], plan=plan, headers=headers)
        if len(tensors) > 1:
            relayed.weights_TK, relayed.ids_TK = tensors[1:]
        return relayed

    def _pass_on(
        self, plan: Plan, outs: Sequence[Edge], columns: Sequence[Rows], headers: Sequence[Header], lane: int
    ) -> None:
        """Edges inside a node have all the same sources: what came to this worker for its node."""
        tokens, rows = self._tokens[lane], self._rows[lane]
        mates = [self.member(edge.receiver) for edge in outs]
        flags = headers[0].flags
        for header in headers:
            flags |= header.flags & _DECODES
        traced = next((header for header in headers if header.trace_id != _NO_TRACE), headers[0])
        for part, (sources, count) in enumerate(packets(outs[0].sources, tokens, self._most)):
            buffer = self._buffer("rows", lane, part)
            end = 0
            if flags & _NARROW:
                for source in sources:
                    end += put(buffer.payload[end:], torch.from_numpy(columns[0][rows[source]]), True)
            for column in columns[1:] if flags & _NARROW else columns:
                for source in sources:
                    piece = column[rows[source]].reshape(-1).view(np.uint8)
                    buffer.payload[end : end + piece.nbytes] = piece
                    end += piece.nbytes
            header = dataclasses.replace(
                headers[0], source=self._engine.member, flags=flags, tokens=count, payload_bytes=end,
                trace_id=traced.trace_id, span_id=traced.span_id,
            )  # fmt: skip
            self._engine.exchange.send(mates, header, buffer)

    def answer(self, relayed: Relayed, answer: Header, out_TD: Rows) -> None:
        """Send the partial sums fp64 [T, d] back the way the rows came; ``out_TD`` becomes the node's sums.

        ``answer`` is the PARTIAL's header but for tokens and size: digest, time and flags are this worker's own.
        """
        plan, lane = relayed.plan, answer.lane
        tokens, rows = self._tokens[lane], self._rows[lane]
        ins, outs = plan.ins(self.me), plan.outs(self.me)
        for edge in ins:
            if edge.phase == MULTICAST:
                self._answer(edge, answer, out_TD)
        joint = Verdict()
        joint.add(answer)
        summed: set[int] = set()

        def take(frame: Frame, sources: tuple[int, ...]) -> None:
            header = frame.header
            if (header.kind, header.step, header.layer, header.lane) != (
                answer.kind, answer.step, answer.layer, lane,
            ):  # fmt: skip
                raise ProtocolError(
                    header.source, f"sent {header.kind!r} of step {header.step} layer {header.layer}; expected its "
                    f"sums of step {answer.step} layer {answer.layer}",
                )  # fmt: skip
            part = self._sums(frame, sum(tokens[source] for source in sources))
            at = 0
            for source in sources:
                out_TD[rows[source]] += part[at : at + tokens[source]]
                at += tokens[source]
            joint.add(header)
            summed.update(sources)

        self._collect(self._packets(_receiver, outs, tokens), take)
        joined = joint.mark(answer)
        for edge in ins:
            if edge.phase == ACROSS:
                self._answer(edge, joined if summed.issuperset(edge.sources) else answer, out_TD)

    def _answer(self, edge: Edge, answer: Header, out_TD: Rows) -> None:
        tokens, rows = self._tokens[answer.lane], self._rows[answer.lane]
        for part, (sources, _) in enumerate(packets(edge.sources, tokens, self._most)):
            self._send_sums(edge.sender, [out_TD[rows[source]] for source in sources], answer, part=part)


def _sender(edge: Edge) -> int:
    return edge.sender


def _receiver(edge: Edge) -> int:
    return edge.receiver
