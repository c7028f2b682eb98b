"""MoE engine: steps with the cohort, layer by layer (docs/architecture.md, "A step").

Stateless between steps, so a step that is abandoned costs nothing but time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from janus_kernels import ReplicaLayout
from janus_kernels.ops import ExpertWeights
from janus_models.experts import ExpertModel
from janus_placement.window import Recorder
from janus_transport import Frame, Header, Kind, SendBuffer, Transport
from janus_worker.engine import CohortEngine
from janus_worker.link import ControlLink, Message
from janus_worker.lockstep import EngineCohort, Flag, ProtocolError
from janus_worker.packing import Needs

from janus_moe.choice import ExchangeChoice
from janus_moe.compute import HostedLayout, MoeCompute, PassCounters
from janus_moe.gather import Gathered, check, gather, gather_packed
from janus_moe.lanes import LaneAdvisor
from janus_moe.loader import ExpertLoader, LoadJob, read_in
from janus_moe.relay import MoeRelay
from janus_moe.relayed import Relayed

_ROUTING_S = 2.0
_RETRY, _DECODES, _SPLIT = int(Flag.RETRY), int(Flag.DECODES), int(Flag.SPLIT)
_GATED, _NARROW = int(Flag.GATED), int(Flag.NARROW)
_NO_TRACE = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the control process chooses for its engine."""

    max_batch_tokens: int = 512
    """Most tokens one attention worker sends per step; the same in the whole mesh."""
    stall_s: float = 5.0
    """Say whom a step waits for after this many seconds, and again each time they have passed."""
    emulated_expert_us: float = 0.0
    """Least microseconds of a pass per distinct activated expert; 0: none."""
    beside: int = 0
    """Most experts loaded beside those that the layout in force places here; 0: any number."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A layer computed."""

    out_TD: torch.Tensor
    """Partial sums, fp64."""
    digest: int
    elapsed_us: int


class MoeEngine(CohortEngine):
    """The loop of one MoE worker."""

    def __init__(
        self,
        model: ExpertModel,
        transport: Transport,
        link: ControlLink,
        *,
        member: int,
        options: EngineOptions,
    ) -> None:
        self._hidden = model.config.hidden
        self._topk = model.config.moe.top_k
        self._layers = model.num_layers
        # A request carries hidden states fp32 and, with AGate, ids and weights; a reply is fp64.
        row = max(8 * self._hidden, 4 * self._hidden + 12 * self._topk)
        super().__init__(
            transport,
            link,
            member=member,
            max_payload=options.max_batch_tokens * row,
            stall_s=options.stall_s,
        )
        self._model = model
        self._loaded: dict[tuple[int, int], ExpertWeights] = {}
        self._replies: dict[tuple[int, int], SendBuffer] = {}
        """By member and lane."""
        self._note = self.exchange.allocate()
        self._rank = 0
        self._ranks: dict[int, int] = {}
        """Of attention workers, by member."""
        self._decodes = 0
        """Flag.DECODES when a stream decodes in the latest pass."""
        self.counters = PassCounters()
        self._compute = MoeCompute(model, self.counters, expert_s=1e-6 * options.emulated_expert_us)
        self._prober: int | None = None
        """The coordinator, where it is another worker of this node."""
        self._relay = MoeRelay(
            self, self.inbox.peek, hidden=self._hidden, topk=self._topk, most=options.max_batch_tokens
        )
        self._choice = ExchangeChoice(
            self, hidden=self._hidden, topk=self._topk, most=options.max_batch_tokens, layers=self._layers
        )
        self._needs = Needs((), 0)
        """Of gated frames."""
        self._named = (0, 0)
        """As coordinator: scheme and active ranks (bits) of the latest lane's layers after the first."""
        self._loader = ExpertLoader(model)
        self._coming: set[tuple[int, int]] = set()
        """Asked of the loader, not there yet."""
        self._beside = options.beside
        self.wake_fds.append(self._loader.fileno())
        self._lanes = LaneAdvisor()
        self._began = self._waited = 0.0
        """When the last step's first frames were there, and ``wait_seconds`` then."""
        self._tokens, self._split = 0, False
        """Of that step, in the whole cohort, and whether anyone split it."""
        self._recorder = Recorder(model.config.moe.num_experts, self._topk, seed=member)
        self._reporters = 1
        self._routing_told = 0.0

    def hello(self) -> dict[str, Any]:
        return {
            "moe_layers": self._layers,
            "num_experts": self._model.config.moe.num_experts,
            "bytes_per_expert": self._model.bytes_per_expert,
        }

    def statistics(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.counters),
            "layer_groups": self._compute.groups.report(),
            "exchange_steps": dict(self._choice.steps),
            "schedule_latency": self._compute.schedule_latency.report(),
        }

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._loader.close()

    def handle(self, message: Message) -> None:
        body = message.body
        keys = {(layer, expert) for layer, experts in body["layers"] for expert in experts}
        if body["t"] == "load":
            self._load_beside(body["id"], keys)
        elif body["t"] == "unload":
            used = sorted(key for key in keys if self._compute.uses(*key))
            idle = [] if used else [key for key in keys if key in self._loaded]
            for key in idle:
                del self._loaded[key]
            self.tell({"t": "reply", "id": body["id"], "count": len(idle), "used": used})

    def _load_beside(self, number: int, keys: set[tuple[int, int]]) -> None:
        held = self._loaded.keys() | self._coming | keys
        idle = sum(not self._compute.uses(*key) for key in held)
        if self._beside and idle > self._beside:
            self.tell(
                {
                    "t": "reply",
                    "id": number,
                    "count": 0,
                    "bytes": 0,
                    "error": "",
                    "room": self._beside,
                    "held": idle,
                }
            )
            return
        new = keys - self._loaded.keys()
        self._coming |= new
        self._loader.ask(LoadJob(number, sorted(new)))

    def intake(self) -> None:
        for job in self._loader.take():
            self._coming -= set(job.keys)
            self._loaded.update(job.loaded)
            size = len(job.loaded) * self._model.bytes_per_expert
            self.tell(
                {"t": "reply", "id": job.id, "count": len(job.loaded), "bytes": size, "error": job.error}
            )
        super().intake()

    # Cohort -----------------------------------------------------------------------------------

    def adopt(self, cohort: EngineCohort, body: dict[str, Any]) -> int | None:
        rank = next((r for r, peer in enumerate(cohort.moe) if peer.member == self.member), None)
        if rank is None:
            # Whoever has begun another step of the epoch before would wait for this worker in vain.
            stay = [peer.member for peer in cohort.attention if peer.member in self._ranks]
            if stay:
                self._send_note(Kind.WAKE, stay, 0, step=0, epoch=cohort.epoch)
            self._ranks = {}
            self.prepare(cohort.attention)
            return None
        layers = [
            ReplicaLayout.from_placement(placement, num_experts=body["num_experts"], slots=body["slots"])
            for placement in body["placement"]
        ]
        wanted = {(i, expert) for i, layer in enumerate(layers) for expert in layer.placement[rank]}
        self._needs = Needs(body["placement"], body["num_experts"])
        self._load(sorted(wanted - self._loaded.keys()))
        hosted = HostedLayout(
            version=cohort.layout_version, rank=rank, policy=cohort.scheduling, layers=layers
        )
        self._compute.adopt(hosted, self._loaded)
        for key in self._loaded.keys() - wanted:
            del self._loaded[key]
        self.inbox.adopt(cohort, (*cohort.attention, *cohort.mates(self.member)))
        self._relay.adopt(cohort, self._needs)
        self._choice.adopt(cohort, rank, self._needs)
        self._prober = next(
            (p.member for p in cohort.mates(self.member) if p.member == cohort.moe[0].member), None
        )
        members = [peer.member for peer in cohort.attention]
        self._replies = {(member, lane): self.exchange.allocate() for member in members for lane in (0, 1)}
        self._lanes, self._named = LaneAdvisor(), (0, 0)
        self._ranks = {peer.member: r for r, peer in enumerate(cohort.attention)}
        self._rank, self._reporters = rank, len(cohort.moe)
        # Whoever has begun a step of the epoch before, and would finish it, learns that it is over.
        self._send_note(Kind.WAKE, [peer.member for peer in cohort.attention], 0, step=0)
        return rank

    def _load(self, keys: Sequence[tuple[int, int]]) -> None:
        told = time.monotonic()
        for i, key in enumerate(keys):
            # Every page is touched, so that the first step does not wait for the disk.
            self._loaded[key] = read_in(self._model, key)
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                self.tell({"t": "waiting", "detail": f"experts from disk: {i + 1} of {len(keys)}"})

    # Steps ------------------------------------------------------------------------------------

    def run_step(self) -> None:
        assert self.cohort is not None
        everyone = [peer.member for peer in self.cohort.attention]
        slept = self.asleep
        self._choice.prepare()
        frames = self._first_frames(everyone)
        headers = [frame.header for frame in frames]
        active = [header.source for header in headers if header.tokens]
        split = [header.source for header in headers if header.tokens and header.flags & _SPLIT]
        # Of all first frames: a second lane has frames of those alone who split.
        self._decodes = _DECODES if any(header.flags & _DECODES for header in headers) else 0
        self._time(slept)
        self._tokens, self._split = 0, bool(split)
        idle = [member for member in everyone if member not in active]
        for member in idle:
            self.exchange.pop(member)
        if active:
            self._layer_passes([active, split] if split else [active], idle)
            self.counters.steps += 1
        else:
            self._notify(Kind.STEP_DONE, idle, 0)
        self.step += 1
        self.asleep = not active
        self.report(force=self.asleep)

    def _time(self, slept: bool) -> None:
        """A step begins: tell the advisor of the last one, unless the cohort slept in between."""
        now, waited = time.perf_counter(), self.counters.wait_seconds
        if not slept:
            self._lanes.observe(
                tokens=self._tokens, split=self._split, seconds=now - self._began,
                waited=waited - self._waited,
            )  # fmt: skip
        self._began, self._waited = now, waited

    def _layer_passes(self, lanes: list[list[int]], idle: list[int]) -> None:
        """All passes of a step; ``lanes``: who has tokens in each."""
        self.amid = True
        for layer in range(self._layers):
            for lane, members in enumerate(lanes):
                self._turn(layer, lane, members, split=len(lanes) > 1)
        self._choice.observe()
        # The idle may start the next step; a repeat of the last layer is among the active alone.
        self._notify(Kind.STEP_DONE, idle, self._tokens)
        self.amid = False
        if self.announced:
            return
        for lane, members in enumerate(lanes):
            self._repeats(self._layers, lane, members)

    def _turn(self, layer: int, lane: int, members: list[int], *, split: bool) -> None:
        if layer:
            first, frames = self._repeats(layer, lane, members)
        else:
            frames = self._frames(members)
            first = frames[0].header
            self._tokens += sum(frame.header.tokens for frame in frames)
            self._choose(lane, frames, split=split)
        if first is None:
            raise ProtocolError(members[0], f"left step {self.step} before layer {layer}")
        self._layer(layer, lane, members, first, frames)

    def _repeats(self, layer: int, lane: int, members: list[int]) -> tuple[Header | None, list[Frame]]:
        """Repeat the lane's layer before ``layer`` as often as asked; a header of what comes then, and its frames
        where it has come directly. None: the step is over."""
        while True:
            first, frames = self._next(lane, members, last=layer == self._layers)
            if first is None or not (first.flags & _RETRY and first.step == self.step and first.lane == lane):
                return first, frames
            self._layer(layer - 1, lane, members, first, frames)

    def _next(self, lane: int, members: list[int], *, last: bool) -> tuple[Header | None, list[Frame]]:
        if not self._relay.topology.spread:
            frames = self._frames(members)
            return frames[0].header, frames
        started = time.perf_counter()
        first = self._relay.await_first(self.step, lane, last=last)
        self.counters.wait_seconds += time.perf_counter() - started
        return first, []

    def _layer(self, layer: int, lane: int, members: list[int], first: Header, frames: list[Frame]) -> None:
        """Compute a layer that ``first`` belongs to, in one phase or two."""
        if layer and first.scheme:
            started = time.perf_counter()
            relayed = self._relay.gather(first, lambda frame: self._check(frame, self.step, layer, lane))
            self.counters.wait_seconds += time.perf_counter() - started
            self._relayed_pass(layer, relayed)
            return
        frames = frames or self._frames(members)
        for frame in frames:
            self._check(frame, self.step, layer, lane)
        self._pass(layer, members, frames)

    def _choose(self, lane: int, frames: list[Frame], *, split: bool) -> None:
        """How a lane's later layers go between nodes; the coordinator decides, the others learn it from frames."""
        if not self._relay.topology.spread:
            return
        tokens = {self._ranks[frame.header.source]: frame.header.tokens for frame in frames}
        self._relay.begin(lane, tokens)
        narrow = bool(frames[0].header.flags & _NARROW)
        self._named = self._choice.choose(tokens, split=split, narrow=narrow)

    def _check(self, frame: Frame, step: int, layer: int, lane: int = 0) -> None:
        check(
            frame,
            step=step,
            layer=layer,
            layers=self._layers,
            hidden=self._hidden,
            topk=self._topk,
            lane=lane,
        )

    def _first_frames(self, everyone: list[int]) -> list[Frame]:
        """A step's first frame of each attention worker; the coordinator wakes those who sleep."""
        if self.asleep:
            while not self.wait(
                lambda: any(self._peek_first(m) for m in everyone), waiting_for=tuple, quiet=True
            ):
                pass
            late = [m for m in everyone if self.inbox.peek(m) is None]
            self._notify(Kind.WAKE, late, 0)
        frames = self._frames(everyone, self._peek_first)
        for frame in frames:
            self._check(frame, self.step, 0)
        return frames

    def _peek_first(self, member: int) -> Frame | None:
        """As the inbox; what a coordinator on this node measures with is answered as well."""
        if self._prober is not None:
            self.inbox.peek(self._prober)
        return self.inbox.peek(member)

    def _frames(self, members: list[int], peek: Callable[[int], Frame | None] | None = None) -> list[Frame]:
        """The next frame of each, in their order; not consumed."""
        started = time.perf_counter()
        frames = self.await_frames(members, peek or self.inbox.peek)
        self.counters.wait_seconds += time.perf_counter() - started
        return frames

    def _pass(self, layer: int, active: list[int], frames: list[Frame]) -> None:
        started = time.perf_counter()
        if frames[0].header.flags & _GATED:
            batch = gather_packed(frames, self._needs, self._rank, hidden=self._hidden, topk=self._topk)
        else:
            batch = gather(frames, hidden=self._hidden)
        headers = [frame.header for frame in frames]
        done = self._run(layer, batch, headers, started)
        for member, header, (first, end) in zip(active, headers, batch.spans, strict=True):
            self._reply(member, header, done, done.out_TD[first:end])

    def _relayed_pass(self, layer: int, relayed: Relayed) -> None:
        done = self._run(layer, relayed, relayed.headers, time.perf_counter())
        answer = self._answer(relayed.headers[0], done)
        self._relay.answer(relayed, answer, done.out_TD.numpy())

    def _run(self, layer: int, batch: Gathered | Relayed, headers: Sequence[Header], started: float) -> _Done:
        """Route, schedule and compute a layer; ``started``: time.perf_counter() when its rows were there."""
        started_ns = time.time_ns()
        device = self._model.device
        x_TD = batch.x_TD.to(device)
        if batch.ids_TK is None or batch.weights_TK is None:
            ids_TK, weights_TK = self._compute.gate(layer, x_TD)
        else:
            ids_TK, weights_TK = batch.ids_TK.to(device), batch.weights_TK.to(device)
        if layer % self._reporters == self._rank:  # all see the same routing: one tells
            self._recorder.observe(layer, ids_TK.cpu().numpy())
        sums_TD = torch.empty(x_TD.shape, dtype=torch.float64, device=device)
        result = self._compute.run(layer, x_TD, ids_TK, weights_TK, sums_TD, batch.rows_R)
        out_TD = sums_TD.cpu()
        elapsed_us = int((time.perf_counter() - started) * 1e6)
        for header in headers:
            if header.trace_id != _NO_TRACE:
                self.span(
                    name="moe.layer", start=started_ns, end=time.time_ns(),
                    trace=header.trace_id.hex(), parent=header.span_id.hex(),
                    attributes={
                        "janus.layer": layer, "janus.lane": header.lane, "janus.step": self.step,
                        "janus.epoch": self.inbox.epoch,
                        "janus.tokens": ids_TK.shape[0], "janus.a_max": result.a_max,
                        "janus.experts_activated_here": int(result.instance_load[self._rank]),
                        **self._choice.latest,
                    },
                )  # fmt: skip
        return _Done(out_TD, result.digest, elapsed_us)

    def report(self, *, force: bool = False) -> None:
        """And, every few seconds, the routing of the layers that this rank tells of."""
        super().report(force=force)
        now = time.monotonic()
        if now - self._routing_told < _ROUTING_S:
            return
        self._routing_told = now
        for report in self._recorder.take():
            fields = report.to_fields()
            self.tell(
                {"t": "routing", "sizes": {k: len(v) for k, v in fields.items()}}, b"".join(fields.values())
            )

    def _answer(self, request: Header, done: _Done) -> Header:
        """Header of an answer, but for its rows."""
        advice = _SPLIT if self._lanes.split else 0
        return Header(
            kind=Kind.PARTIAL, epoch=self.inbox.epoch, step=request.step, layer=request.layer, lane=request.lane,
            flags=request.flags & ~_SPLIT | self._decodes | advice, source=self.member, scheme=request.scheme,
            digest=done.digest, elapsed_us=done.elapsed_us,
        )  # fmt: skip

    def _reply(self, member: int, request: Header, done: _Done, rows_TD: torch.Tensor) -> None:
        buffer = self._replies[member, request.lane]
        self.exchange.reclaim(buffer)
        size = rows_TD.numel() * 8
        buffer.payload[:size].view(np.float64).reshape(rows_TD.shape)[:] = rows_TD.numpy()
        header = self._answer(request, done)
        header.tokens, header.payload_bytes = request.tokens, size
        if not request.layer:
            header.scheme, header.active = self._named
        # The sender waits for the reply, not for the buffer of its request: others are posted.
        self.exchange.send([member], header, buffer)
        self.exchange.pop(member)

    def _notify(self, kind: Kind, members: Sequence[int], total: int) -> None:
        if self._rank == 0 and members:
            self._send_note(kind, members, total, self.step)

    def _send_note(
        self, kind: Kind, members: Sequence[int], total: int, step: int, epoch: int | None = None
    ) -> None:
        self.exchange.reclaim(self._note)
        header = Header(
            kind=kind,
            flags=self._decodes if total else 0,
            epoch=self.inbox.epoch if epoch is None else epoch,
            step=step,
            source=self.member,
            tokens=total,
            payload_bytes=0,
        )
        self.exchange.send(members, header, self._note)


__all__ = ["EngineOptions", "MoeEngine", "ProtocolError"]
