"""One step's forward pass: dense parts here, each MoE layer through the exchange."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from janus_kernels.ops import combine
from janus_models.decoder import AttentionModel, KvCache
from janus_models.experts import ExpertModel
from janus_runtime.metrics import EXCHANGE_BOUNDS_S
from janus_transport import Frame, Header, Kind, SendBuffer
from janus_worker.engine import CohortEngine
from janus_worker.histogram import Histogram
from janus_worker.lockstep import EngineCohort, Flag, ProtocolError, is_note

from janus_attention.batch import StepInput
from janus_attention.sequence import Trace

# Plain numbers: operators of IntFlag cost microseconds each, in every layer.
_GATED, _RETRY, _DECODES = int(Flag.GATED), int(Flag.RETRY), int(Flag.DECODES)
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)


@dataclass(slots=True)
class StepCounters:
    """What an attention worker did since start. Seconds where named so.

    A step's time is ``step_seconds`` = attention + exchange, of which head and moe are parts; before it come
    ``prepare_seconds``, after it ``deliver_seconds``.
    """

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    attention_seconds: float = 0.0
    exchange_seconds: float = 0.0
    moe_seconds: float = 0.0
    step_seconds: float = 0.0
    head_seconds: float = 0.0
    """Of attention_seconds: final norm and logits."""
    prepare_seconds: float = 0.0
    """Choosing the sequences of a step and building its tensors."""
    deliver_seconds: float = 0.0
    """Choosing tokens and sending them to the control process."""
    requests: int = 0
    requests_started: int = 0
    queue_seconds: float = 0.0
    """From arrival to the first step, summed over requests_started."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Drafts that turned out right."""
    preemptions: int = 0
    digest_mismatches: int = 0


class Forward:
    """The model of one attention worker, stepping with the cohort through ``engine``."""

    def __init__(
        self,
        model: AttentionModel,
        routers: ExpertModel,
        kv: KvCache,
        engine: CohortEngine,
        counters: StepCounters,
    ) -> None:
        self._model = model
        self._routers = routers
        self._kv = kv
        self._engine = engine
        self._counters = counters
        self._hidden = model.config.hidden
        self._topk = model.config.moe.top_k
        self._moe_index = {layer: i for i, layer in enumerate(model.moe_layers)}
        self._request: SendBuffer = engine.exchange.allocate()
        self.exchange_latency = Histogram(EXCHANGE_BOUNDS_S)
        self._held: list[int] = []
        """Members whose last reply is still in its receive buffer."""
        self._decodes = 0
        self.cohort_decodes = False
        """Whether a stream decoded in the last step, here or elsewhere in the cohort."""

    def run(self, step: StepInput, cohort: EngineCohort, trace: Trace | None) -> torch.Tensor:
        """fp32 logits [N, V] of ``step.last_rows``; all tokens' keys and values are in the cache afterwards.

        May be abandoned at any exchange (Interrupted, PeerLost, NewerEpoch, ProtocolError) and run again: what
        it has written to the cache is written again with the same values.
        """
        model, counters = self._model, self._counters
        self._held.clear()  # of a run that was abandoned; the next epoch drops its frames
        self._decodes = _DECODES if step.decodes else 0
        started = time.perf_counter()
        exchange_before = counters.exchange_seconds
        h_TD = model.embed(step.token_ids)
        for layer in range(model.config.num_layers):
            model.attention(layer, h_TD, step.meta, self._kv)
            if model.is_moe(layer):
                self._moe_layer(layer, h_TD, cohort, trace)
            else:
                local_TD = model.local_ffn(layer, model.moe_norm(layer, h_TD))
                assert local_TD is not None
                h_TD += local_TD
        self._release()
        head = time.perf_counter()
        logits_NV = model.logits(h_TD[step.last_rows])
        ended = time.perf_counter()
        elapsed = ended - started
        counters.head_seconds += ended - head
        counters.step_seconds += elapsed
        counters.attention_seconds += elapsed - (counters.exchange_seconds - exchange_before)
        return logits_NV

    def _moe_layer(self, layer: int, h_TD: torch.Tensor, cohort: EngineCohort, trace: Trace | None) -> None:
        index = self._moe_index[layer]
        gated = cohort.gating == "attention"
        x_TD = self._model.moe_norm(layer, h_TD)
        local_TD, frames = self._round(index, layer, x_TD, cohort, _GATED if gated else 0, trace)
        digests = {frame.header.digest for frame in frames}
        if len(digests) > 1 and not gated:
            # Mixed hardware can round a router differently: route here, once for all, and repeat the layer.
            self._counters.digest_mismatches += 1
            self._release()
            _, frames = self._round(index, layer, x_TD, cohort, _GATED | _RETRY, trace)
            digests = {frame.header.digest for frame in frames}
        if len(digests) > 1:
            raise ProtocolError(
                frames[0].header.source, f"scheduled layer {index} unlike its peers: {digests}"
            )
        partials = [_rows(frame, x_TD.shape[0], self._hidden) for frame in frames]
        routed_TD = torch.empty_like(x_TD)
        combine(partials, routed_TD)
        self._counters.moe_seconds += max(frame.header.elapsed_us for frame in frames) * 1e-6
        if local_TD is not None:
            routed_TD += local_TD
        h_TD += routed_TD

    def _release(self) -> None:
        """Give the receive buffers of the last replies back."""
        for member in self._held:
            self._engine.exchange.pop(member)
        self._held.clear()

    def _round(
        self,
        index: int,
        layer: int,
        x_TD: torch.Tensor,
        cohort: EngineCohort,
        flags: int,
        trace: Trace | None,
    ) -> tuple[torch.Tensor | None, list[Frame]]:
        """Send one layer's hidden states, compute the local part meanwhile, and await all partial sums."""
        exchange = self._engine.exchange
        members = [peer.member for peer in cohort.moe]
        span = os.urandom(8) if trace else _NO_SPAN
        began_ns, began = time.time_ns(), time.perf_counter()
        exchange.reclaim(self._request)
        size = self._fill(index, x_TD, gated=bool(flags & _GATED))
        header = Header(
            kind=Kind.HIDDEN, flags=flags | self._decodes, epoch=cohort.epoch, step=self._engine.step, layer=index,
            source=self._engine.member, tokens=x_TD.shape[0], topk=self._topk, payload_bytes=size,
            trace_id=bytes.fromhex(trace.trace_id) if trace else _NO_TRACE, span_id=span,
        )  # fmt: skip
        exchange.send(members, header, self._request)
        # Posting receives again takes as long as a small layer's attention: it is done while the peers compute.
        self._release()
        local_TD = self._model.local_ffn(layer, x_TD)
        frames = self._engine.await_frames(members, self.reply)
        self._held += members
        for frame in frames:
            _check(frame, header, self._hidden)
        self.cohort_decodes = bool(frames[0].header.flags & _DECODES)
        took = time.perf_counter() - began
        self._counters.exchange_seconds += took
        self.exchange_latency.observe(took)
        if trace:
            self._engine.span(
                name="exchange.layer", start=began_ns, end=time.time_ns(), trace=trace.trace_id,
                parent=trace.span_id, span=span.hex(),
                attributes={
                    "janus.layer": index, "janus.step": header.step, "janus.epoch": header.epoch,
                    "janus.tokens": header.tokens, "janus.bytes_sent": size * len(members),
                    "janus.moe_us": max(frame.header.elapsed_us for frame in frames),
                },
            )  # fmt: skip
        return local_TD, frames

    def _fill(self, index: int, x_TD: torch.Tensor, *, gated: bool) -> int:
        """Write the request's payload; its size in bytes."""
        payload = self._request.payload
        count = x_TD.shape[0]
        size = 4 * count * self._hidden
        # Views through numpy: they cost a tenth of torch's, and there are some for every layer and peer.
        torch.from_numpy(payload[:size].view(np.float32).reshape(x_TD.shape)).copy_(x_TD)
        if not gated:
            return size
        ids_TK, weights_TK = self._routers.gate(index, x_TD)
        # Weights before ids: eight-byte numbers where they are aligned.
        middle = size + 8 * count * self._topk
        end = middle + 4 * count * self._topk
        torch.from_numpy(payload[size:middle].view(np.float64).reshape(weights_TK.shape)).copy_(weights_TK)
        torch.from_numpy(payload[middle:end].view(np.int32).reshape(ids_TK.shape)).copy_(ids_TK)
        return end

    def reply(self, member: int) -> Frame | None:
        """Oldest PARTIAL of a MoE worker; the coordinator's late notes are dropped."""
        return self._engine.inbox.skip(member, is_note)


def _check(frame: Frame, request: Header, hidden: int) -> None:
    """Raises ProtocolError unless ``frame`` answers ``request``."""
    header = frame.header
    member = header.source
    if (
        header.kind is not Kind.PARTIAL
        or header.step != request.step
        or header.layer != request.layer
        or (header.flags ^ request.flags) & ~_DECODES
    ):
        raise ProtocolError(
            member, f"answered step {header.step} layer {header.layer}, asked was step {request.step} "
            f"layer {request.layer}",
        )  # fmt: skip
    expected = 8 * request.tokens * hidden
    if header.payload_bytes != expected:
        raise ProtocolError(member, f"answered {header.payload_bytes} bytes; expected {expected}")


def _rows(frame: Frame, tokens: int, hidden: int) -> torch.Tensor:
    return torch.from_numpy(frame.payload[: 8 * tokens * hidden].view(np.float64).reshape(tokens, hidden))
