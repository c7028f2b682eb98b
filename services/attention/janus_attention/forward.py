"""One step's forward pass: dense parts here, each MoE layer through the exchange."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from janus_kernels.ops import combine
from janus_models.decoder import AttentionModel, KvCache
from janus_models.experts import ExpertModel
from janus_transport import Frame, Header, Kind, SendBuffer
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import EngineCohort, Flag, ProtocolError, is_note

from janus_attention.batch import StepInput
from janus_attention.sequence import Trace


@dataclass(slots=True)
class StepCounters:
    """What an attention worker did since start. Seconds where named so."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    attention_seconds: float = 0.0
    exchange_seconds: float = 0.0
    moe_seconds: float = 0.0
    step_seconds: float = 0.0
    requests: int = 0
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

    def run(self, step: StepInput, cohort: EngineCohort, trace: Trace | None) -> torch.Tensor:
        """fp32 logits [N, V] of ``step.last_rows``; all tokens' keys and values are in the cache afterwards.

        May be abandoned at any exchange (Interrupted, PeerLost, NewerEpoch, ProtocolError) and run again: what
        it has written to the cache is written again with the same values.
        """
        model, counters = self._model, self._counters
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
        logits_NV = model.logits(h_TD[step.last_rows])
        elapsed = time.perf_counter() - started
        counters.step_seconds += elapsed
        counters.attention_seconds += elapsed - (counters.exchange_seconds - exchange_before)
        return logits_NV

    def _moe_layer(self, layer: int, h_TD: torch.Tensor, cohort: EngineCohort, trace: Trace | None) -> None:
        index = self._moe_index[layer]
        gated = cohort.gating == "attention"
        x_TD = self._model.moe_norm(layer, h_TD)
        local_TD, frames = self._round(index, layer, x_TD, cohort, Flag.GATED if gated else Flag(0), trace)
        digests = {frame.header.digest for frame in frames}
        if len(digests) > 1 and not gated:
            # Mixed hardware can round a router differently: route here, once for all, and repeat the layer.
            self._counters.digest_mismatches += 1
            self._release(cohort)
            _, frames = self._round(index, layer, x_TD, cohort, Flag.GATED | Flag.RETRY, trace)
            digests = {frame.header.digest for frame in frames}
        if len(digests) > 1:
            raise ProtocolError(
                frames[0].header.source, f"scheduled layer {index} unlike its peers: {digests}"
            )
        partials = [_rows(frame, x_TD.shape[0], self._hidden) for frame in frames]
        routed_TD = torch.empty_like(x_TD)
        combine(partials, routed_TD)
        self._counters.moe_seconds += max(frame.header.elapsed_us for frame in frames) * 1e-6
        self._release(cohort)
        if local_TD is not None:
            routed_TD += local_TD
        h_TD += routed_TD

    def _release(self, cohort: EngineCohort) -> None:
        for peer in cohort.moe:
            self._engine.exchange.pop(peer.member)

    def _round(
        self,
        index: int,
        layer: int,
        x_TD: torch.Tensor,
        cohort: EngineCohort,
        flags: Flag,
        trace: Trace | None,
    ) -> tuple[torch.Tensor | None, list[Frame]]:
        """Send one layer's hidden states, compute the local part meanwhile, and await all partial sums."""
        exchange = self._engine.exchange
        members = [peer.member for peer in cohort.moe]
        span = os.urandom(8) if trace else bytes(8)
        began_ns, began = time.time_ns(), time.perf_counter()
        exchange.reclaim(self._request)
        size = self._fill(index, x_TD, gated=bool(flags & Flag.GATED))
        header = Header(
            kind=Kind.HIDDEN, flags=int(flags), epoch=cohort.epoch, step=self._engine.step, layer=index,
            source=self._engine.member, tokens=x_TD.shape[0], topk=self._topk, payload_bytes=size,
            trace_id=bytes.fromhex(trace.trace_id) if trace else bytes(16), span_id=span,
        )  # fmt: skip
        exchange.send(members, header, self._request)
        local_TD = self._model.local_ffn(layer, x_TD)
        self._await_replies(members)
        frames = [self._checked(member, header) for member in members]
        self._counters.exchange_seconds += time.perf_counter() - began
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
        payload = torch.from_numpy(self._request.payload)
        count = x_TD.shape[0]
        size = 4 * count * self._hidden
        payload[:size].view(torch.float32).view(x_TD.shape).copy_(x_TD)
        if not gated:
            return size
        ids_TK, weights_TK = self._routers.gate(index, x_TD)
        # Weights before ids: eight-byte numbers where they are aligned.
        middle = size + 8 * count * self._topk
        end = middle + 4 * count * self._topk
        payload[size:middle].view(torch.float64).view(weights_TK.shape).copy_(weights_TK)
        payload[middle:end].view(torch.int32).view(ids_TK.shape).copy_(ids_TK)
        return end

    def _await_replies(self, members: list[int]) -> None:
        peek: Callable[[int], Frame | None] = self.reply
        self._engine.await_(
            lambda: all(peek(m) is not None for m in members),
            lambda: [m for m in members if peek(m) is None],
        )

    def reply(self, member: int) -> Frame | None:
        """Oldest PARTIAL of a MoE worker; the coordinator's late notes are dropped."""
        return self._engine.inbox.skip(member, is_note)

    def _checked(self, member: int, request: Header) -> Frame:
        frame = self.reply(member)
        assert frame is not None
        header = frame.header
        if (header.kind, header.step, header.layer, header.flags) != (
            Kind.PARTIAL, request.step, request.layer, request.flags,
        ):  # fmt: skip
            raise ProtocolError(
                member, f"answered step {header.step} layer {header.layer}, asked was step {request.step} "
                f"layer {request.layer}",
            )  # fmt: skip
        expected = 8 * request.tokens * self._hidden
        if header.payload_bytes != expected:
            raise ProtocolError(member, f"answered {header.payload_bytes} bytes; expected {expected}")
        return frame


def _rows(frame: Frame, tokens: int, hidden: int) -> torch.Tensor:
    return torch.from_numpy(frame.payload)[: 8 * tokens * hidden].view(torch.float64).view(tokens, hidden)
