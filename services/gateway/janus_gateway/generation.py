"""Generation, whatever the protocol: admission, a worker, tokens, text; and a worker's loss survived."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import grpc
from janus_runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    JanusError,
    ResourceExhausted,
    Unavailable,
    from_rpc_error,
)
from janus_runtime.telemetry import tracer
from janus_wire.v1 import attention_pb2, common_pb2
from opentelemetry import trace

from janus_gateway.answer import Answer, Piece
from janus_gateway.config import GatewaySettings
from janus_gateway.journal import Entry
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.pool import Target, WorkerPool
from janus_gateway.sampling import choice_seed
from janus_gateway.tools import ToolParser
from janus_gateway.tools.plan import ToolPlan

log = logging.getLogger("janus.gateway")

GUIDE_FIELD = "sampling.guide"
_STOPPED = (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to generate; everything checked and fixed."""

    request_id: str
    prompt: list[int]
    sampling: common_pb2.SamplingParams
    """What the worker gets: seed included, so that any worker continues exactly; no stop strings."""
    stops: tuple[str, ...] = ()
    operation: str
    """``gen_ai.operation.name``."""
    guide_field: str = GUIDE_FIELD
    """How the client's protocol spells the field that the guide comes from, for errors."""
    tools: ToolPlan | None = None
    """How calls of tools are read; None: there are none."""
    started: float = field(default_factory=time.monotonic)
    """When the request arrived, monotonic."""
    deadline: float
    """Monotonic."""
    entry: Entry | None = None
    """Where it is journalled; None: the request has no idempotency key."""
    index: int = 0
    """Its place among the request's sequences."""
    priority: int = 0
    """Lower is earlier."""

    def choice(self, index: int) -> Job:
        """This job as one of n choices: a seed and an id of its own; the first is the job itself."""
        if not index:
            return self
        sampling = common_pb2.SamplingParams()
        sampling.CopyFrom(self.sampling)
        sampling.seed = choice_seed(sampling.seed, index)
        return dataclasses.replace(
            self, request_id=f"{self.request_id}-{index}", sampling=sampling, index=self.index + index
        )


class _Lost(Exception):
    """The worker is gone or full; the stream can go on elsewhere."""

    def __init__(self, cause: JanusError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Generator:
    """One per gateway."""

    def __init__(
        self, pool: WorkerPool, model: ServedModel, metrics: GatewayMetrics, settings: GatewaySettings
    ) -> None:
        self._pool = pool
        self._model = model
        self._metrics = metrics
        self._settings = settings
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.draining = False

    @contextlib.contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Room for a request's sequences, all or none. ResourceExhausted when there is none."""
        if self.draining:
            raise Unavailable(
                f"{self._settings.worker_id} is shutting down",
                reason="DRAINING",
                retry_after_s=1.0,
                next_step="Retry at another gateway.",
            )
        if self.in_flight + sequences > self._settings.max_in_flight:
            raise ResourceExhausted(
                f"{self.in_flight} sequences are in flight, the request wants {sequences} more",
                reason="TOO_MANY_REQUESTS",
                allowed=f"at most {self._settings.max_in_flight} at once",
                retry_after_s=1.0,
                next_step="Retry later.",
            )
        self.in_flight += sequences
        self._metrics.in_flight.set(self.in_flight)
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= sequences
            self._metrics.in_flight.set(self.in_flight)
            if not self.in_flight:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Until nothing is in flight."""
        await self._idle.wait()

    async def stream(self, job: Job) -> AsyncGenerator[Piece, None]:
        """The answer, piece by piece; close the generator to cancel it at the worker.

        Raises JanusError: what the worker says of the request; Unavailable when no worker could take or
        continue it within ``retry_s``; DeadlineExceeded.
        """
        markers = job.tools.markers if job.tools is not None else None
        answer = Answer(self._model.tokenizer.stream, job.stops, job.sampling.min_tokens, markers)
        parser = job.tools.parser() if job.tools is not None else None
        clock = _Clock(job, self._metrics)
        span = tracer().start_span(
            "stream", attributes={"janus.prompt_tokens": len(job.prompt), "janus.request_id": job.request_id}
        )
        ended = False
        try:
            async with contextlib.aclosing(self._pieces(job, answer, clock, span)) as pieces:
                async for piece in pieces:
                    ended = bool(piece.finish_reason)
                    yield piece if parser is None else _with_calls(piece, parser)
        except (GeneratorExit, asyncio.CancelledError):
            if not ended:
                self._metrics.cancelled()
                span.set_attribute("error.type", "CANCELLED")
            raise
        except JanusError as error:
            span.set_attribute("error.type", error.reason)
            raise
        finally:
            clock.done(len(answer.ids))
            if job.entry is not None:
                job.entry.flush()
            span.set_attribute("janus.completion_tokens", len(answer.ids))
            span.end()

    async def _pieces(
        self, job: Job, answer: Answer, clock: _Clock, span: trace.Span
    ) -> AsyncGenerator[Piece, None]:
        give_up = job.deadline
        full: set[int] = set()
        lost: JanusError | None = None
        moved, kv_member = False, 0
        for response in job.entry.made(job.index) if job.entry is not None else ():
            for piece in _take(response, answer):
                yield piece
                if piece.finish_reason:
                    return
        while True:
            try:
                target = await self._acquire(min(give_up, job.deadline), span, patient=lost is not None)
            except Unavailable as error:
                _raise_if_late(job)
                if lost is None:
                    raise
                raise self._gave_up(lost, len(answer.ids)) from error
            before = len(answer.ids)
            span.set_attribute("janus.worker", target.worker.worker_id)
            try:
                async with contextlib.aclosing(
                    self._from(target, job, answer, clock, span, moved=moved, kv_member=kv_member)
                ) as pieces:
                    async for piece in pieces:
                        if before and len(answer.ids) == before + 1:
                            self._metrics.resumed()
                            name = target.worker.worker_id
                            span.add_event("resumed", {"janus.worker": name, "janus.tokens": before})
                        yield piece
                return
            except _Lost as loss:
                target.failed()
                if len(answer.ids) >= job.sampling.max_tokens:  # lost between the last token and its end
                    yield answer.end(common_pb2.FINISH_REASON_LENGTH)
                    return
                _raise_if_late(job)
                first_try = lost is None
                if first_try or len(answer.ids) > before:
                    give_up = time.monotonic() + self._settings.retry_s
                    full.clear()
                lost = loss.cause
                moved = moved or not isinstance(lost, ResourceExhausted)
                if lost.reason == "HANDOVER":
                    kv_member = target.worker.member
                elif not isinstance(lost, ResourceExhausted):
                    kv_member = 0
                if isinstance(lost, ResourceExhausted) and not answer.ids:
                    full.add(target.worker.member)
                    if full >= self._pool.members():
                        raise lost from loss
                # Once per loss; further attempts at the same place are of interest only when debugging.
                level = logging.WARNING if first_try or len(answer.ids) > before else logging.DEBUG
                log.log(
                    level,
                    "%s: %s after %d tokens: %s",
                    job.request_id,
                    target.worker.worker_id,
                    len(answer.ids),
                    lost,
                )
                if time.monotonic() >= give_up:
                    raise self._gave_up(lost, len(answer.ids)) from loss
            finally:
                self._pool.release(target)

    async def _acquire(self, deadline: float, parent: trace.Span, *, patient: bool) -> Target:
        """A worker, and a span of the wait for one."""
        with tracer().start_as_current_span(
            "queue",
            context=trace.set_span_in_context(parent),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            target = await self._pool.acquire(deadline, patient=patient)
            span.set_attribute("janus.worker", target.worker.worker_id)
            return target

    async def _from(
        self, target: Target, job: Job, answer: Answer, clock: _Clock, span: trace.Span, *, moved: bool,
        kv_member: int,
    ) -> AsyncGenerator[Piece, None]:  # fmt: skip
        """The answer's further pieces, by one worker. _Lost when it can go on elsewhere.

        ``moved``: another had it; ``kv_member``: who still has its keys and values.
        """
        now = time.monotonic()
        request = attention_pb2.AttentionServiceGenerateRequest(
            request_id=job.request_id,
            prompt_token_ids=job.prompt,
            resumed_token_ids=answer.ids,
            sampling=job.sampling,
            priority=job.priority,
            waited_ms=1 + int(1000 * (now - job.started)) if moved else 0,
            kv_member=kv_member,
        )
        with trace.use_span(span):  # the call's metadata names the span as parent
            call = target.stub.Generate(request, timeout=max(0.001, job.deadline - now))
        target.calls.add(call)
        try:
            async for response in call:
                target.succeeded()
                if job.entry is not None:
                    job.entry.record(job.index, response)
                for piece in _take(response, answer):
                    clock.token(response.queue_us)
                    yield piece
                    if piece.finish_reason:
                        return
            raise _Lost(Unavailable(f"{target.worker.worker_id} ended the stream without a last token"))
        except grpc.aio.AioRpcError as error:
            raise _judge(error, target.worker.worker_id, job) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc.aio says it this way too when the worker, or the pool as it left the cohort, cancelled the call.
            what = "cancelled the call" if target.current else "left the cohort"
            raise _Lost(Unavailable(f"{target.worker.worker_id} {what}")) from None
        finally:
            target.calls.discard(call)
            call.cancel()

    def _gave_up(self, cause: JanusError, tokens: int) -> JanusError:
        return Unavailable(
            f"no attention worker could {'continue' if tokens else 'take'} the request within "
            f"{self._settings.retry_s:g} s ({tokens} tokens were made): {cause.message}",
            reason="WORKER_LOST",
            retry_after_s=1.0,
            next_step="Retry; `janus status` shows the workers.",
        )


def current_trace_id() -> str:
    """32 hex digits: the current trace's id, or a random one when nothing is traced."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else secrets.token_hex(16)


def _with_calls(piece: Piece, parser: ToolParser) -> Piece:
    text, calls = parser.push(piece.text, last=bool(piece.finish_reason))
    finish = piece.finish_reason
    if finish == common_pb2.FINISH_REASON_STOP and parser.called:
        finish = common_pb2.FINISH_REASON_TOOL_CALLS
    return dataclasses.replace(piece, text=text, calls=calls, finish_reason=finish)


def _take(response: attention_pb2.AttentionServiceGenerateResponse, answer: Answer) -> Iterator[Piece]:
    """A worker's response into the answer. _Lost when the worker gave it up; Internal when it is wrong."""
    finish = response.finish_reason
    if finish == common_pb2.FINISH_REASON_CANCELLED:
        raise _Lost(Unavailable("the worker gave the sequence up"))
    if finish == common_pb2.FINISH_REASON_ERROR:
        raise Internal("the worker reports that this request failed", next_step="See the worker's log.")
    known, first = len(answer.ids), response.first_index
    if response.token_ids and first > known:
        raise Internal(f"the worker skipped from token {known} to {first}", reason="TOKEN_GAP")
    count = len(response.token_ids)
    for place in range(min(known - first, count) if count else 0, count):
        logprobs = response.logprobs[place] if place < len(response.logprobs) else None
        last = place == count - 1
        piece = answer.push(response.token_ids[place], logprobs, finish if last else 0)
        yield piece
        if piece.finish_reason:
            return
    if finish in _STOPPED and not count:
        yield answer.end(finish)


def _judge(error: grpc.aio.AioRpcError, worker: str, job: Job) -> Exception:
    cause = from_rpc_error(error)
    if isinstance(cause, Unavailable | ResourceExhausted):
        return _Lost(cause)
    if isinstance(cause, Cancelled):
        return _Lost(Unavailable(f"{worker} cancelled the call"))
    text = (error.details() or "").lower()
    if isinstance(cause, Internal) and ("rst_stream" in text or "connection" in text or "socket" in text):
        return _Lost(Unavailable(f"{worker}: {error.details()}"))
    if isinstance(cause, DeadlineExceeded):
        return _late()
    if isinstance(cause, InvalidArgument) and (cause.field or "").startswith(GUIDE_FIELD):
        words = cause.message.removeprefix(f"{cause.field}: ")
        return InvalidArgument(words, field=job.guide_field, reason=cause.reason)
    return cause


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the request took longer than was allowed", next_step="Ask for fewer tokens, or allow more time."
    )


def _raise_if_late(job: Job) -> None:
    if time.monotonic() >= job.deadline:
        raise _late()


class _Clock:
    """Times of one sequence."""

    def __init__(self, job: Job, metrics: GatewayMetrics) -> None:
        self._job = job
        self._metrics = metrics
        self._first = 0.0
        self._last = 0.0

    def token(self, queue_us: int) -> None:
        self._metrics.token()
        self._last = time.monotonic()
        if not self._first:
            self._first = self._last
            self._metrics.first_token(self._job.operation, self._last - self._job.started, queue_us)

    def done(self, tokens: int) -> None:
        if self._first:
            self._metrics.sequence_done(
                self._job.operation, len(self._job.prompt), tokens, self._last - self._first
            )
