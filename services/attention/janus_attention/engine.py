"""Attention engine: sequences from prompt to last token, stepping with the cohort."""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from janus_models.decoder import AttentionModel
from janus_models.experts import ExpertModel
from janus_models.generation import end_ids
from janus_runtime.shared_folder import DEAD_S
from janus_transport import Header, Kind, Transport
from janus_worker.engine import CohortEngine
from janus_worker.link import ControlLink, Message
from janus_worker.lockstep import EngineCohort, Flag

from janus_attention.batch import build
from janus_attention.batcher import Batcher, Piece
from janus_attention.blocks import BlockPool, prefix_names
from janus_attention.budget import PrefillBudget
from janus_attention.drafter import Drafter, PromptLookup
from janus_attention.forward import Forward, StepCounters
from janus_attention.graphs import LayerGraphs, Recorder, recorder_for
from janus_attention.guide import FIELD, Guide, GuideError
from janus_attention.guide_compiler import GuideCompiler
from janus_attention.handover import KvHandover
from janus_attention.options import EngineOptions
from janus_attention.pages import PagesAhead
from janus_attention.sampler import BadLogits, Chosen, choose
from janus_attention.sequence import Finish, Sampling, Sequence, Trace
from janus_attention.shelf import open_shelf

_LOG = logging.getLogger("janus.attention")


class AttentionEngine(CohortEngine):
    """The loop of one attention worker."""

    def __init__(
        self,
        model: AttentionModel,
        routers: ExpertModel,
        transport: Transport,
        link: ControlLink,
        *,
        member: int,
        options: EngineOptions,
        drafter: Drafter | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """``drafter``: in the place of prompt lookup, where ``options.draft_tokens`` asks for guesses. ``recorder``:
        in the place of the device's own, of decode steps."""
        config = model.config
        row = max(8 * config.hidden, 4 * config.hidden + 12 * config.moe.top_k)
        super().__init__(
            transport,
            link,
            member=member,
            max_payload=options.max_batch_tokens * row,
            stall_s=options.stall_s,
        )
        self._options = options
        self._model = model
        blocks = -(-options.kv_tokens // options.block_size)
        pool = BlockPool(blocks, options.block_size, caching=options.prefix_cache, seed=options.cache_seed)
        recorder = recorder or recorder_for(model.device, options.cuda_graphs)
        if recorder is not None or model.device != "cpu":
            model.reserve(min(config.max_positions, blocks * options.block_size))
        # Graphs write the padding of a batch to one block more.
        kv = model.new_kv_cache(blocks + (recorder is not None), options.block_size)
        self._shelf = open_shelf(options, pool, kv, member)
        self.batcher = Batcher(
            pool, max_batch_tokens=options.max_batch_tokens, max_sequences=options.max_sequences,
            budget=PrefillBudget(
                most=options.max_batch_tokens, fixed=options.prefill_tokens, max_stall=options.max_stall
            ),
            drafter=drafter or (PromptLookup() if options.draft_tokens else None),
            draft_tokens=options.draft_tokens, finder=self._shelf,
        )  # fmt: skip
        self.counters = StepCounters()
        self.context = self.batcher.context = min(config.max_positions, self.batcher.capacity)
        self._sequences: dict[int, Sequence] = {}
        graphs = None
        if recorder is not None:
            graphs = LayerGraphs(model, kv, recorder, most=options.max_sequences, scratch=blocks)
        self._forward = Forward(
            model, routers, kv, self, self.counters, most=options.max_batch_tokens,
            token_s=1e-6 * options.emulated_token_us, graphs=graphs, narrow=options.wire_dtype == "bf16",
        )  # fmt: skip
        self._note = self.exchange.allocate()
        self._handover = KvHandover(
            self.exchange, pool, kv,
            taken=lambda number, blocks: self.tell({"t": "kv_taken", "number": number, "blocks": blocks}),
            given=lambda member, number: self.tell({"t": "kv_given", "member": member, "number": number}),
        )  # fmt: skip
        self.inbox.on_kv = self._handover.take
        self._pages = PagesAhead(kv)
        self._busy = 0.0
        """When (time.monotonic()) it last had a stream."""
        self._last: float | None = None
        """End (time.perf_counter()) of the step just made; None after a sleep or a loss."""
        self._switched = False
        """Whether another layout was taken up since."""
        self._delayed: tuple[int, float] | None = None
        """Tokens of the step just made, the first of a layout, and seconds since the one before; None: another."""
        self.guides = GuideCompiler(config.directory, config.vocab_size, end_ids(config))
        self.wake_fds.append(self.guides.wake_fd)

    def run(self) -> None:
        try:
            super().run()
        finally:
            if self._shelf is not None and time.monotonic() > self._busy + DEAD_S:
                self._shelf.close()

    def hello(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "kv_tokens": self.batcher.capacity,
            "moe_layers": len(self._model.moe_layers),
            "num_experts": self._model.config.moe.num_experts,
        }

    def statistics(self) -> dict[str, Any]:
        pool, shelf = self.batcher.pool, self._shelf
        self.counters.preemptions = self.batcher.preemptions
        return {
            **dataclasses.asdict(self.counters),
            "exchange_latency": self._forward.exchange_latency.report(),
            "running": len(self.batcher.running),
            "waiting": len(self.batcher.waiting),
            "kv_tokens_used": (pool.count - pool.free) * pool.block_size,
            "kv_tokens_capacity": self.batcher.capacity,
            "sequences_capacity": self._options.max_sequences,
            "kv_tokens_cached": pool.cached * pool.block_size,
            "prefix_hit_tokens": pool.hit_tokens,
            "prefix_lookup_tokens": pool.lookup_tokens,
            "prefix_evictions": pool.evictions,
            "kv_moved_tokens": self._handover.taken_blocks * pool.block_size,
            "kv_kept_tokens": shelf.kept_tokens if shelf else 0,
            "kv_recovered_tokens": shelf.recovered_tokens if shelf else 0,
            "kv_shelf_seconds": shelf.seconds if shelf else 0.0,
            "prefill_rate": self.batcher.budget.rate,
        }

    def handle(self, message: Message) -> None:
        body = message.body
        if body["t"] == "submit":
            self._submit(body)
        elif body["t"] == "cancel" and (seq := self._sequences.get(body["id"])) is not None:
            # The step in flight may hold it; it goes before the next one.
            seq.cancelled = True
        elif body["t"] == "kv_forget":
            self._handover.forget(body["number"])
        elif body["t"] == "kv_seek":
            pool, tokens = self.batcher.pool, body["tokens"]
            names = prefix_names(tokens, pool.block_size, self._options.cache_seed)
            count = self._shelf.bring(tokens, names) if self._shelf is not None else 0
            self.tell({"t": "reply", "id": body["id"], "count": count})
        elif body["t"] in ("kv_give", "kv_expect"):
            act = self._handover.give if body["t"] == "kv_give" else self._handover.expect
            names = [bytes.fromhex(name) for name in body["names"]]
            count = act(body["number"], body["member"], base64.b64decode(body["address"]), names)
            self.tell({"t": "reply", "id": body["id"], "count": int(count)})

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        waiting_for: Callable[[], Iterable[int]],
        quiet: bool = False,
        since: float | None = None,
    ) -> bool:
        if self._shelf is not None and self._shelf.due and not ready():
            self._shelf.keep(self.batcher.running)
        if not self._handover.busy:
            return super().wait(ready, waiting_for=waiting_for, quiet=quiet, since=since)

        def meanwhile() -> bool:
            self._handover.work(self.inbox.peek)
            return ready()

        return super().wait(meanwhile, waiting_for=waiting_for, quiet=quiet, since=since)

    def _submit(self, body: dict[str, Any]) -> None:
        trace = body.get("trace")
        seq = Sequence(
            id=body["id"], prompt=len(body["prompt"]), tokens=body["prompt"] + body["resumed"],
            sampling=Sampling.from_message(body["sampling"]), resumed=len(body["resumed"]),
            trace=Trace(trace_id=trace[0], span_id=trace[1]) if trace else None, want_logits=body["logits"],
            priority=body["priority"], waited_ms=body["waited_ms"],
        )  # fmt: skip
        self._sequences[seq.id] = seq
        self.counters.requests += 1
        self.counters.resumed_requests += bool(body["resumed"])
        if seq.sampling.guide is None:
            self.batcher.add(seq)
        else:
            self.guides.submit(seq.id, seq.sampling.guide, body["resumed"])

    def intake(self) -> None:
        for number, guide in self.guides.ready():
            if (seq := self._sequences.get(number)) is not None:
                self._guided(seq, guide)
        super().intake()

    def _guided(self, seq: Sequence, guide: Guide | GuideError) -> None:
        """Queue a sequence whose guide is ready, unless it is no good or already at its end."""
        items: list[dict[str, Any]] = [{"id": seq.id}]
        if isinstance(guide, GuideError):
            self._fail(seq, guide, items[0])
        else:
            seq.guide = guide
            items[0]["ready"] = True
            if guide.ended:
                items.append(self._complete(seq))
            else:
                self.batcher.add(seq)
        self.tell({"t": "tokens", "items": items})

    def _complete(self, seq: Sequence) -> dict[str, Any]:
        """The end of a guide: in an item of its own, since the last token's text belongs to the answer."""
        item: dict[str, Any] = {"id": seq.id}
        self._end(seq, Finish.STOP, item)
        return item

    def _fail(self, seq: Sequence, error: BadLogits | GuideError, item: dict[str, Any]) -> None:
        item["error"] = str(error)
        if isinstance(error, GuideError):
            item["field"] = FIELD
        self._end(seq, Finish.ERROR, item)

    def adopt(self, cohort: EngineCohort, body: dict[str, Any]) -> int | None:
        rank = next((r for r, peer in enumerate(cohort.attention) if peer.member == self.member), None)
        if rank is None:
            self.prepare(cohort.moe)
        else:
            self._switched = self.only_layout
            self._last = self._last if self.only_layout else None
            self.inbox.adopt(cohort, (*cohort.moe, *cohort.mates(self.member)))
            self._forward.adopt(cohort, body)
        return rank

    # Steps ------------------------------------------------------------------------------------

    def run_step(self) -> None:
        assert self.cohort is not None
        began = time.perf_counter()
        if self._handover.busy:
            self._handover.work(self.inbox.peek)
        if self._sequences:
            self._busy = time.monotonic()
        self._drop_cancelled()
        self._pages.reach(self.batcher.pool.reached)
        # Asleep nobody decodes: what has to wait would wait for a wake-up that nobody sends.
        self.batcher.ready_blocks = self.batcher.pool.count if self.asleep else self._pages.ready
        if self._shelf is not None:
            if self._shelf.due:  # the step had nothing to wait for
                self._shelf.keep(self.batcher.running)
            self._shelf.step()
        pieces = self.batcher.next_batch()
        if pieces:
            self._compute(pieces, self.cohort, began)
            self.asleep = False
            self.step += 1
        else:
            self._last = None
            if self.asleep:
                self._sleep(self.cohort)
            else:
                self._join_empty(self.cohort)
        self.report(force=self.asleep)
        self.intake()

    def _sleep(self, cohort: EngineCohort) -> None:
        """Wait until there is work here, or the coordinator says that another worker has some."""
        coordinator = cohort.moe[0].member

        def woken() -> bool:
            frame = self.inbox.skip(coordinator, lambda f: f.header.step < self.step)
            return frame is not None and frame.header.kind is Kind.WAKE

        if self.wait(woken, waiting_for=tuple, quiet=True):
            self.exchange.pop(coordinator)
            self.asleep = False

    def _join_empty(self, cohort: EngineCohort) -> None:
        """Take part in a step with zero tokens, and wait for its end."""
        coordinator = cohort.moe[0].member
        header = Header(
            kind=Kind.HIDDEN, epoch=cohort.epoch, step=self.step, layer=0, source=self.member,
            tokens=0, payload_bytes=0,
        )  # fmt: skip
        began = time.perf_counter()
        self.exchange.reclaim(self._note)
        self.exchange.send([peer.member for peer in cohort.moe], header, self._note)

        def done() -> bool:
            frame = self.inbox.skip(
                coordinator, lambda f: f.header.kind is not Kind.STEP_DONE or f.header.step < self.step
            )
            return frame is not None

        self.await_(done, lambda: [coordinator])
        frame = self.inbox.peek(coordinator)
        assert frame is not None
        total = frame.header.tokens
        self.batcher.others_decode = bool(frame.header.flags & Flag.DECODES)
        self.exchange.pop(coordinator)
        self.batcher.observe([], time.perf_counter() - began)
        self.step += 1
        self.asleep = total == 0

    def _compute(self, pieces: list[Piece], cohort: EngineCohort, began: float) -> None:
        now = time.time_ns()
        for piece in pieces:
            if not piece.seq.started_ns:
                piece.seq.started_ns = now
                self.counters.requests_started += 1
                self.counters.queue_seconds += (now - piece.seq.arrived_ns) * 1e-9
                self._queue_span(piece.seq)
        traced = next((piece.seq for piece in pieces if self._detailed(piece)), None)
        trace = None
        if traced is not None and traced.trace is not None:
            trace = Trace(trace_id=traced.trace.trace_id, span_id=os.urandom(8).hex())
        choice = self._options.micro_batches
        split = choice == "2" or (choice == "auto" and self._forward.advice)
        step = build(pieces, self.batcher.pool.block_size, split=split)
        self.counters.step_tokens += sum(piece.count for piece in pieces)
        self.counters.context_tokens += sum(p.count * (p.seq.computed + p.count // 2) for p in pieces)
        self.counters.prepare_seconds += time.perf_counter() - began
        self.amid = True
        logits_NV = self._forward.run(step, cohort, trace)
        self.amid = False
        self.counters.steps += 1
        if trace is not None and traced is not None and traced.trace is not None:
            self.span(
                name="step", start=now, end=time.time_ns(), trace=trace.trace_id, span=trace.span_id,
                parent=traced.trace.span_id,
                attributes={
                    "janus.step": self.step, "janus.epoch": cohort.epoch, "janus.sequences": len(pieces),
                    "janus.tokens": int(step.token_ids.shape[0]),
                },
            )  # fmt: skip
        ran = time.perf_counter()
        self._deliver(pieces, logits_NV)
        if self._shelf is not None:
            self._shelf.due = True
        ended = time.perf_counter()
        self.counters.deliver_seconds += ended - ran
        self._time_switch(sum(piece.count for piece in pieces), ended - began, ended)
        self.batcher.others_decode = self._forward.cohort_decodes and not step.decodes
        self.batcher.observe(pieces, ended - began)

    def _time_switch(self, tokens: int, took: float, ended: float) -> None:
        """A step is over: if another layout was taken up before the one before it, count what that has cost."""
        if self._delayed is not None and self._delayed[0] == tokens:
            self.counters.layout_switches += 1
            # Signed, since steps vary: over many switches that evens out.
            self.counters.layout_switch_seconds += self._delayed[1] - took
        # Steps before a switch share the processors with loading: the one after says how long a step is.
        self._delayed = (tokens, ended - self._last) if self._switched and self._last is not None else None
        self._switched, self._last = False, ended

    def _detailed(self, piece: Piece) -> bool:
        seq, every = piece.seq, self._options.trace_every
        if seq.trace is None or not every:
            return False
        return not piece.decodes or seq.generated - seq.resumed <= 1 or seq.generated % every == 0

    def _queue_span(self, seq: Sequence) -> None:
        if seq.trace is not None:
            self.span(
                name="queue", start=seq.arrived_ns, end=seq.started_ns, trace=seq.trace.trace_id,
                parent=seq.trace.span_id, attributes={"janus.prompt_tokens": seq.prompt},
            )  # fmt: skip

    def _deliver(self, pieces: list[Piece], logits_NV: Any) -> None:
        """Choose tokens, advance the sequences, and tell the control process."""
        items: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        row = 0
        for piece in pieces:
            seq, before, rows = piece.seq, piece.seq.computed, piece.rows
            # What precedes the drafts is in the cache now.
            seq.computed += piece.count - len(piece.draft)
            self.counters.prompt_tokens += max(0, min(seq.computed, seq.prompt) - before)
            self.batcher.pool.commit(seq, before)
            if rows:
                self.counters.drafted_tokens += len(piece.draft)
                self._choose(piece, logits_NV[row : row + rows], items, blobs)
            row += rows
        if items:
            self.tell({"t": "tokens", "items": items}, b"".join(blobs))

    def _choose(self, piece: Piece, logits_RV: Any, items: list[dict[str, Any]], blobs: list[bytes]) -> None:
        """A piece's tokens: the one after its own, and one more after each guess that turns out right."""
        seq = piece.seq
        for logits_V, guess in zip(logits_RV, (*piece.draft, None), strict=True):
            item: dict[str, Any] = {"id": seq.id}
            items.append(item)
            try:
                chosen = choose(seq, logits_V)
                self._append(seq, chosen, item)
            except (BadLogits, GuideError) as error:
                self._fail(seq, error, item)
                return
            if seq.want_logits:
                blobs.append(logits_V.cpu().numpy().tobytes())
                item["logits"] = len(blobs[-1])
            if "finish" in item:
                return
            if seq.guide is not None and seq.guide.ended:
                items.append(self._complete(seq))
                return
            if chosen.token != guess:
                return
            # Its keys and values are right too, and so are the logits after it.
            seq.computed += 1
            self.batcher.pool.commit(seq, seq.computed - 1)
            self.counters.accepted_tokens += 1

    def _append(self, seq: Sequence, chosen: Chosen, item: dict[str, Any]) -> None:
        now = time.time_ns()
        if seq.guide is not None:
            seq.guide.accept([chosen.token])
        item["token"] = chosen.token
        item["index"] = seq.generated
        if chosen.logprob is not None:
            item["logprob"] = chosen.logprob
            item["top"] = chosen.top
        seq.tokens.append(chosen.token)
        self.counters.generated_tokens += 1
        if not seq.first_token_ns:
            seq.first_token_ns = now
            item["queue_us"] = (seq.started_ns - seq.arrived_ns) // 1000
            if seq.trace is not None:
                self.span(
                    name="prefill", start=seq.started_ns, end=now, trace=seq.trace.trace_id,
                    parent=seq.trace.span_id, attributes={"janus.prompt_tokens": seq.prompt + seq.resumed},
                )  # fmt: skip
        finish = seq.finish_after(chosen.token, self.context)
        if finish is not None:
            self._end(seq, finish, item)

    def _end(self, seq: Sequence, finish: Finish, item: dict[str, Any]) -> None:
        item["finish"] = finish.value
        if seq.trace is not None and seq.first_token_ns:
            self.span(
                name="decode", start=seq.first_token_ns, end=time.time_ns(), trace=seq.trace.trace_id,
                parent=seq.trace.span_id,
                attributes={"janus.generated_tokens": seq.generated - seq.resumed, "janus.finish": finish.value},
            )  # fmt: skip
        if finish is not Finish.CANCELLED:  # nor one that was handed over
            self.counters.finished_requests += 1
            self.counters.finished_tokens += seq.generated
        self.batcher.remove(seq)
        del self._sequences[seq.id]

    def _drop_cancelled(self) -> None:
        gone = [seq for seq in self._sequences.values() if seq.cancelled]
        items: list[dict[str, Any]] = []
        for seq in gone:
            item: dict[str, Any] = {"id": seq.id}
            self._end(seq, Finish.CANCELLED, item)
            items.append(item)
        if items:
            self.tell({"t": "tokens", "items": items})


__all__ = ["AttentionEngine", "EngineOptions"]
