"""One step's forward pass: dense parts here, each MoE layer through the exchange.

A step has one micro-batch, or two that take turns: while one is with the MoE workers, the other's attention is
computed. Each is a lane of frames of its own; what it computes does not depend on the other.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from janus_kernels.ops import combine
from janus_models.decoder import AttentionModel, BatchMeta, KvCache
from janus_models.experts import ExpertModel
from janus_runtime.metrics import EXCHANGE_BOUNDS_S
from janus_transport import Frame, Header, Kind, SendBuffer
from janus_transport.plan import Plan
from janus_transport.topology import NAMES, Scheme, unmask
from janus_worker.engine import CohortEngine
from janus_worker.histogram import Histogram
from janus_worker.lockstep import EngineCohort, Flag, ProtocolError, is_note
from janus_worker.packing import Needs, Piece, pack
from janus_worker.relay import Verdict
from janus_worker.rows import add_rows, put, rounded, row_bytes

from janus_attention.batch import StepInput
from janus_attention.graphs import LayerGraphs, Staged
from janus_attention.relay import AttentionRelay
from janus_attention.sequence import Trace

# Plain numbers: operators of IntFlag cost microseconds each, in every layer.
_GATED, _RETRY, _DECODES = int(Flag.GATED), int(Flag.RETRY), int(Flag.DECODES)
_SPLIT, _NARROW = int(Flag.SPLIT), int(Flag.NARROW)
_COHORT = _DECODES | _SPLIT | int(Flag.MIXED)
"""What a reply says of the cohort, not of the request."""
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)


@dataclass(slots=True)
class StepCounters:
    """What an attention worker did since start. Seconds where named so.

    A step's time is ``step_seconds`` = attention + exchange; before it come ``prepare_seconds``, after it
    ``deliver_seconds``.
    """

    steps: int = 0
    split_steps: int = 0
    """Of those: in two micro-batches."""
    graph_steps: int = 0
    """Of those: replayed from CUDA graphs."""
    step_tokens: int = 0
    """Tokens that steps were of: prompts', streams' and drafts."""
    context_tokens: int = 0
    """What each of them had before it in the cache, summed."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    attention_seconds: float = 0.0
    exchange_seconds: float = 0.0
    """Sending hidden states, local work meanwhile, and waiting for partial sums."""
    moe_seconds: float = 0.0
    """The slowest MoE worker's passes. Of exchange_seconds, except where steps are split."""
    step_seconds: float = 0.0
    head_seconds: float = 0.0
    """Of attention_seconds: final norm and logits."""
    prepare_seconds: float = 0.0
    """Choosing the sequences of a step and building its tensors."""
    deliver_seconds: float = 0.0
    """Choosing tokens and sending them to the control process."""
    requests: int = 0
    resumed_requests: int = 0
    """Of requests: begun by another worker."""
    finished_requests: int = 0
    finished_tokens: int = 0
    """What those had generated, by other workers too."""
    requests_started: int = 0
    queue_seconds: float = 0.0
    """From arrival to the first step, summed over requests_started."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Drafts that turned out right."""
    preemptions: int = 0
    digest_mismatches: int = 0
    layout_switches: int = 0
    """Switches to another layout of the same cohort, followed by two steps of as many tokens."""
    layout_switch_seconds: float = 0.0
    """By how much the first of those steps ended later than it would have at the pace of the second."""


class _Lane:
    """A micro-batch on its way through the layers."""

    __slots__ = (
        "began_ns", "buffer", "h_TD", "header", "index", "layer", "local_TD", "meta", "number", "packed",
        "plan", "routed_TD", "sent_bytes", "span", "spent", "staged", "x_TD",
    )  # fmt: skip

    def __init__(self, number: int, buffer: SendBuffer) -> None:
        self.number = number
        self.buffer = buffer
        self.meta: BatchMeta
        self.h_TD: torch.Tensor
        self.x_TD: torch.Tensor
        self.local_TD: torch.Tensor | None = None
        self.header: Header | None = None
        """Of the request under way, until its replies were taken."""
        self.routed_TD: torch.Tensor | None = None
        """What the replies came to; None where their digests differ."""
        self.layer = -1
        """Of the request whose result is to be added; -1: none."""
        self.index = 0
        self.plan: Plan | None = None
        """How its layers after the first are exchanged; None: in one phase."""
        self.packed: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        """By member: its rows of the request under way, where it is gated and goes in one phase."""
        self.sent_bytes = 0
        """Payload of the request, all copies together, and what was sent for others of the node."""
        self.span = _NO_SPAN
        self.began_ns = 0
        self.staged: Staged | None = None
        """Where its layers are replayed from graphs."""
        self.spent = 0.0
        """Seconds of the request so far, the time for other lanes left out."""

    @property
    def planned(self) -> Plan | None:
        """How the layer at hand is exchanged; None: in one phase."""
        return self.plan if self.index else None


class Forward:
    """The model of one attention worker, stepping with the cohort through ``engine``."""

    def __init__(
        self,
        model: AttentionModel,
        routers: ExpertModel,
        kv: KvCache,
        engine: CohortEngine,
        counters: StepCounters,
        *,
        most: int,
        token_s: float = 0.0,
        graphs: LayerGraphs | None = None,
        narrow: bool = False,
    ) -> None:
        """``most``: tokens that a frame carries at most. ``token_s``: least seconds of a step per token, waited out: an
        emulated device. ``graphs``: what decode steps are replayed from. ``narrow``: hidden states travel as bf16."""
        self._graphs = graphs
        self._narrow = narrow
        self._token_s = token_s
        self._model = model
        self._routers = routers
        self._kv = kv
        self._engine = engine
        self._counters = counters
        self._hidden = model.config.hidden
        self._topk = model.config.moe.top_k
        self._moe_index = {layer: i for i, layer in enumerate(model.moe_layers)}
        self._lanes = [_Lane(number, engine.exchange.allocate()) for number in (0, 1)]
        self.exchange_latency = Histogram(EXCHANGE_BOUNDS_S)
        self.relay = AttentionRelay(engine, self.reply, hidden=self._hidden, topk=self._topk, most=most)
        self._needs = Needs((), 0)
        self._packs: dict[tuple[int, int], SendBuffer] = {}
        """Of packed rows, by lane and member."""
        self._held: list[int] = []
        """Members whose last reply is still in its receive buffer."""
        self._decodes = 0
        self._members: list[int] = []
        self._cohort: EngineCohort
        self._trace: Trace | None = None
        self.cohort_decodes = False
        """Whether a stream decoded in the last step, here or elsewhere in the cohort."""
        self.advice = False
        """Whether the coordinator advises to split the next step."""

    def adopt(self, cohort: EngineCohort, body: dict[str, Any]) -> None:
        """Take up a cohort, announced by this message."""
        self._needs = Needs(body["placement"], body["num_experts"])
        self.relay.adopt(cohort, self._needs)
        self.advice = False
        self._packs.clear()

    def run(self, step: StepInput, cohort: EngineCohort, trace: Trace | None) -> torch.Tensor:
        """fp32 logits [N, V] of ``step.last_rows``; all tokens' keys and values are in the cache afterwards.

        May be abandoned at any exchange (Interrupted, PeerLost, NewerEpoch, ProtocolError) and run again: what
        it has written to the cache is written again with the same values.
        """
        model, counters = self._model, self._counters
        self._held.clear()  # of a run that was abandoned; the next epoch drops its frames
        self._decodes = _DECODES if step.decodes else 0
        self._cohort, self._trace = cohort, trace
        self._members = [peer.member for peer in cohort.moe]
        started = time.perf_counter()
        exchange_before = counters.exchange_seconds
        step = step.to(model.device)
        if self._token_s:
            time.sleep(self._token_s * step.token_ids.shape[0])
        h_TD = model.embed(step.token_ids)
        lanes = self._begin(step, h_TD)
        for layer in range(model.config.num_layers):
            for lane in lanes:
                self._finish(lane)
                self._dense(lane, layer)
                if model.is_moe(layer):
                    self._start(lane, layer, split=len(lanes) > 1)
        for lane in lanes:
            self._finish(lane)
        self._release()
        head = time.perf_counter()
        if lanes[0].staged is not None:
            h_TD = torch.cat([lane.h_TD for lane in lanes])
            counters.graph_steps += 1
        logits_NV = model.logits(h_TD[step.last_rows])
        ended = time.perf_counter()
        elapsed = ended - started
        counters.split_steps += len(lanes) > 1
        counters.head_seconds += ended - head
        counters.step_seconds += elapsed
        counters.attention_seconds += elapsed - (counters.exchange_seconds - exchange_before)
        return logits_NV

    def _begin(self, step: StepInput, h_TD: torch.Tensor) -> list[_Lane]:
        """The step's lanes; their hidden states are rows of ``h_TD``."""
        lanes = self._lanes[: len(step.lanes)]
        row = 0
        for lane, meta in zip(lanes, step.lanes, strict=True):
            lane.meta, lane.header, lane.layer, lane.plan = meta, None, -1, None
            rows = meta.positions.shape[0]
            lane.h_TD = h_TD[row : row + rows]
            lane.staged = self._graphs.stage(lane.number, meta, lane.h_TD) if self._graphs else None
            row += rows
        if any(lane.staged is None for lane in lanes):
            for lane in lanes:
                lane.staged = None
        for lane in lanes:
            lane.h_TD = lane.staged.h_TD if lane.staged else lane.h_TD
        return lanes

    def _dense(self, lane: _Lane, layer: int) -> None:
        """A layer up to the norm before its routed experts; a dense one whole."""
        if lane.staged is not None:
            lane.x_TD = lane.staged.layer(layer)
            return
        model = self._model
        model.attention(layer, lane.h_TD, lane.meta, self._kv)
        lane.x_TD = model.moe_norm(layer, lane.h_TD)
        if not model.is_moe(layer):
            local_TD = model.local_ffn(layer, lane.x_TD)
            assert local_TD is not None
            lane.h_TD += local_TD

    def _start(self, lane: _Lane, layer: int, *, split: bool) -> None:
        """Send a lane's hidden states, and compute its local part while the MoE workers have them."""
        began = time.perf_counter()
        lane.layer, lane.index, lane.spent = layer, self._moe_index[layer], 0.0
        flags = _GATED if self._cohort.gating == "attention" else 0
        # The step's first frame says how many there will be.
        self._send(lane, flags | (_SPLIT if split and not lane.index else 0))
        # Posting receives again takes as long as a small layer's attention: it is done while the peers compute.
        self._release()
        lane.local_TD = lane.staged.local(layer) if lane.staged else self._model.local_ffn(layer, lane.x_TD)
        lane.spent += time.perf_counter() - began

    def _finish(self, lane: _Lane) -> None:
        """Add what came of a lane's request, if it has one under way."""
        if lane.layer < 0:
            return
        if lane.header is not None:
            self._collect(lane)
        if lane.routed_TD is None:
            self._repeat(lane)
        assert lane.routed_TD is not None
        if lane.local_TD is not None:
            lane.routed_TD += lane.local_TD
        lane.h_TD += lane.routed_TD
        lane.layer = -1

    def _repeat(self, lane: _Lane) -> None:
        """Mixed hardware can round a router differently: route here, once for all, and repeat the layer."""
        if self._cohort.gating != "attention":
            self._counters.digest_mismatches += 1
            for other in self._lanes:
                if other.header is not None:
                    self._collect(other)  # sent before this: answered before it
            lane.spent = 0.0
            self._send(lane, _GATED | _RETRY)
            self._collect(lane)
        if lane.routed_TD is None:
            raise ProtocolError(
                self._members[0], f"scheduled layer {lane.index} unlike the other MoE workers, twice"
            )

    def _send(self, lane: _Lane, flags: int) -> None:
        exchange, trace, plan = self._engine.exchange, self._trace, lane.planned
        lane.span = os.urandom(8) if trace else _NO_SPAN
        lane.began_ns = time.time_ns()
        flags |= _NARROW if self._narrow else 0
        request = self._gated(lane) if flags & _GATED else self._fill(lane)
        size = 0 if isinstance(request, Piece) else lane.x_TD.shape[0] * row_bytes(self._hidden, self._narrow)
        lane.packed.clear()
        header = lane.header = Header(
            kind=Kind.HIDDEN, flags=flags | self._decodes, epoch=self._cohort.epoch, step=self._engine.step,
            layer=lane.index, lane=lane.number, source=self._engine.member, tokens=lane.x_TD.shape[0],
            topk=self._topk, payload_bytes=size,
            trace_id=bytes.fromhex(trace.trace_id) if trace else _NO_TRACE, span_id=lane.span,
            scheme=plan.scheme if plan else 0,
        )  # fmt: skip
        if plan is not None:
            lane.sent_bytes = self.relay.send(plan, header, request)
        elif isinstance(request, Piece):
            self._send_packed(lane, header, request)
        else:
            lane.sent_bytes = size * len(self._members)
            exchange.send(self._members, header, request)

    def _send_packed(self, lane: _Lane, header: Header, piece: Piece) -> None:
        """To each MoE worker the rows that it needs."""
        exchange, lane.sent_bytes = self._engine.exchange, 0
        for rank, member in enumerate(self._members):
            rows = lane.packed[member] = self._needs.rows(lane.index, (rank,), piece.ids_TK)
            buffer = self._packs.get((lane.number, member))
            if buffer is None:
                buffer = self._packs[lane.number, member] = exchange.allocate()
            exchange.reclaim(buffer)
            size = pack(buffer.payload, [(piece, rows)], narrow=self._narrow)
            exchange.send([member], dataclasses.replace(header, payload_bytes=size), buffer)
            lane.sent_bytes += size

    def _collect(self, lane: _Lane) -> None:
        """Await all partial sums of a lane's request and add them up."""
        header = lane.header
        assert header is not None
        self._release()
        began = time.perf_counter()
        if lane.planned is None:
            partials, said = self._direct(lane, header)
        else:
            sums_TD, said = self.relay.collect(lane.planned, header, lambda frame: _check(frame, header))
            partials = [sums_TD]
        took = lane.spent + time.perf_counter() - began
        lane.header = None
        self.cohort_decodes = bool(said.flags & _DECODES)
        counters = self._counters
        counters.exchange_seconds += took
        self.exchange_latency.observe(took)
        counters.moe_seconds += said.elapsed_us * 1e-6
        if self._trace:
            self._tell(lane, header, said.elapsed_us)
        if not said.agreed:
            lane.routed_TD = None
            return
        # On the host, where they arrive, with any device: half the bytes to copy, and the same sum everywhere.
        sum_TD = torch.empty(lane.x_TD.shape)
        combine(partials, sum_TD)
        lane.routed_TD = sum_TD.to(lane.x_TD.device)

    def _direct(self, lane: _Lane, request: Header) -> tuple[list[torch.Tensor], Verdict]:
        """Replies of all MoE workers, valid until :meth:`_release`; the step's first ones bring advice and a plan."""
        frames = self._engine.await_frames(self._members, self.reply)
        self._held += self._members
        said = Verdict()
        for frame in frames:
            _check(frame, request, self._hidden, lane.packed.get(frame.header.source))
            said.add(frame.header)
        first = frames[0].header
        self.advice = bool(first.flags & _SPLIT)
        if first.scheme and not request.layer:
            self._next_plan(lane, first)
        if not lane.packed:
            return [_rows(frame, request.tokens, self._hidden) for frame in frames], said
        sums_TD = np.zeros((request.tokens, self._hidden))
        for frame in frames:
            rows = lane.packed[frame.header.source]
            add_rows(sums_TD, rows, _rows(frame, len(rows), self._hidden).numpy())
        return [torch.from_numpy(sums_TD)], said

    def _next_plan(self, lane: _Lane, answer: Header) -> None:
        """How the coordinator says that the lane's later layers are exchanged."""
        try:
            lane.plan = self.relay.plan(answer.scheme, unmask(answer.active))
        except ValueError as error:
            raise ProtocolError(answer.source, f"names an exchange that cannot be: {error}") from None
        if self.relay.me not in lane.plan.active:
            raise ProtocolError(answer.source, "leaves this worker out of the exchange")

    def _tell(self, lane: _Lane, header: Header, slowest_us: int) -> None:
        assert self._trace is not None
        self._engine.span(
            name="exchange.layer", start=lane.began_ns, end=time.time_ns(), trace=self._trace.trace_id,
            parent=self._trace.span_id, span=lane.span.hex(),
            attributes={
                "janus.layer": lane.index, "janus.lane": lane.number, "janus.step": header.step,
                "janus.epoch": header.epoch, "janus.tokens": header.tokens,
                "janus.bytes_sent": lane.sent_bytes, "janus.moe_us": slowest_us,
                "janus.exchange": NAMES[Scheme(header.scheme)],
            },
        )  # fmt: skip

    def _release(self) -> None:
        """Give the receive buffers of the last replies back."""
        for member in self._held:
            self._engine.exchange.pop(member)
        self._held.clear()

    def _fill(self, lane: _Lane) -> SendBuffer:
        """The request's payload: all hidden states."""
        self._engine.exchange.reclaim(lane.buffer)
        put(lane.buffer.payload, lane.x_TD, self._narrow)
        return lane.buffer

    def _gated(self, lane: _Lane) -> Piece:
        """The lane's rows with the routing of what the MoE workers will see: the same whoever routes."""
        x_TD = rounded(lane.x_TD) if self._narrow else lane.x_TD
        ids_TK, weights_TK = self._routers.gate(lane.index, x_TD)
        return Piece.whole(lane.x_TD.cpu().numpy(), weights_TK.cpu().numpy(), ids_TK.cpu().numpy())

    def reply(self, member: int) -> Frame | None:
        """Oldest PARTIAL of a MoE worker; the coordinator's late notes are dropped."""
        return self._engine.inbox.skip(member, is_note)


def _check(
    frame: Frame, request: Header, hidden: int = 0, rows: np.ndarray[Any, np.dtype[np.int64]] | None = None
) -> None:
    """Raises ProtocolError unless ``frame`` answers ``request``, and, given ``hidden``, with as many rows."""
    header = frame.header
    member = header.source
    if (
        header.kind is not Kind.PARTIAL
        or header.step != request.step
        or header.layer != request.layer
        or header.lane != request.lane
        or (header.flags ^ request.flags) & ~_COHORT
    ):
        raise ProtocolError(
            member, f"answered step {header.step} layer {header.layer} lane {header.lane}, asked was step "
            f"{request.step} layer {request.layer} lane {request.lane}",
        )  # fmt: skip
    expected = 8 * (request.tokens if rows is None else len(rows)) * hidden
    if hidden and header.payload_bytes != expected:
        raise ProtocolError(member, f"answered {header.payload_bytes} bytes; expected {expected}")


def _rows(frame: Frame, tokens: int, hidden: int) -> torch.Tensor:
    return torch.from_numpy(frame.payload[: 8 * tokens * hidden].view(np.float64).reshape(tokens, hidden))
