"""GenerationService: the public gRPC door."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import grpc
from janus_runtime.errors import InvalidArgument, JanusError, NotFound
from janus_runtime.telemetry import tracer
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from janus_gateway.answer import Piece
from janus_gateway.auth import ApiKeys
from janus_gateway.config import GatewaySettings
from janus_gateway.fanin import merged
from janus_gateway.generation import GUIDE_FIELD, Generator, Job, current_trace_id
from janus_gateway.journal import Entry, Journal
from janus_gateway.metrics import GENERATE, GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.pool import WorkerPool
from janus_gateway.sampling import Ask, Names, check, check_ids, check_priority, resolve
from janus_gateway.tools.plan import ToolPlan, plan
from janus_gateway.tools.proto import plain_messages, tool_ask

_NAMES = Names(prefix="sampling.")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Text in, text out."""

    def __init__(
        self,
        generator: Generator,
        model: ServedModel,
        pool: WorkerPool,
        metrics: GatewayMetrics,
        keys: ApiKeys,
        settings: GatewaySettings,
        journal: Journal,
    ) -> None:
        self._generator = generator
        self._model = model
        self._pool = pool
        self._metrics = metrics
        self._keys = keys
        self._settings = settings
        self._journal = journal

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """The continuation of a prompt, as it is made."""
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._measured(started))
            self._authorize(context)
            jobs = await self._jobs(request, context, started)
            stack.enter_context(self._generator.admit(len(jobs)))
            trace_id = current_trace_id()
            completion, running = 0, len(jobs)
            skipped = [*request.received, *[0] * len(jobs)]
            answers = merged([self._generator.stream(job) for job in jobs])
            async with contextlib.aclosing(answers) as pieces:
                async for index, piece in pieces:
                    response = _response(jobs[0].request_id, index, piece)
                    if trace_id:
                        response.trace_id, trace_id = trace_id, ""
                    completion += len(piece.tokens)
                    running -= bool(piece.finish_reason)
                    if skipped[index] and running:  # the last one carries the usage
                        skipped[index] -= 1
                        continue
                    if not running:
                        response.usage.prompt_tokens = len(jobs[0].prompt)
                        response.usage.completion_tokens = completion
                    yield response

    async def CountTokens(
        self, request: generation_pb2.CountTokensRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.CountTokensResponse:
        """Tokens that a prompt has, as Generate would count them."""
        self._authorize(context)
        ids = await self._prompt(request, self._tools(request))
        return generation_pb2.CountTokensResponse(tokens=len(ids), token_ids=ids)

    async def GetModelInfo(
        self, request: generation_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.GetModelInfoResponse:
        """What is served. ``fingerprint`` and ``dtype`` are the cohort's; empty until one has formed."""
        self._authorize(context)
        config, cohort = self._model.config, self._pool.cohort
        parts = cohort.model.split("/") if cohort is not None else []
        return generation_pb2.GetModelInfoResponse(
            model=self._model.name,
            family=config.model_type,
            context_length=self._model.context,
            vocab_size=config.vocab_size,
            num_layers=config.num_layers,
            num_experts=config.moe.num_experts,
            experts_per_token=config.moe.top_k,
            dtype=parts[1] if len(parts) > 1 else "",
            fingerprint=cohort.model if cohort is not None else "",
        )

    # -- a request's parts ----------------------------------------------------------------------------

    def _authorize(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self._keys.check(_text(metadata.get("authorization", "")) or None)

    async def _jobs(
        self,
        request: generation_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        started: float,
    ) -> list[Job]:
        """One for each of the n choices."""
        if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
            raise InvalidArgument(
                "is not usable",
                field="request_id",
                value=request.request_id,
                allowed="1..128 printable ASCII characters without blanks",
            )
        if request.model not in ("", self._model.name):
            raise NotFound(
                "is not served here",
                field="model",
                value=request.model,
                allowed=self._model.name,
                reason="MODEL_NOT_FOUND",
            )
        choices = request.n if request.HasField("n") else 1
        if not 1 <= choices <= self._settings.max_choices:
            raise InvalidArgument(
                "is out of range", field="n", value=choices, allowed=f"1..{self._settings.max_choices}"
            )
        ask, tools = Ask.from_proto(request.sampling), self._tools(request)
        if tools is not None:
            ask = dataclasses.replace(ask, guide=tools.guide(ask.guide))
        check(ask, _NAMES, self._model.config.vocab_size)
        priority = check_priority(request.priority)
        with tracer().start_as_current_span("tokenize") as span:
            prompt = await self._prompt(request, tools)
            span.set_attribute("janus.prompt_tokens", len(prompt))
        entry = await self._entry(request, context)
        if entry is not None and ask.seed is None:
            ask = dataclasses.replace(ask, seed=entry.seed(0))
        names = Names(prefix=_NAMES.prefix, prompt=str(request.WhichOneof("input")))
        sampling = resolve(
            ask, names, self._model.defaults, prompt_tokens=len(prompt), context=self._model.context
        )
        remaining = context.time_remaining()
        limit = self._settings.request_timeout_s
        job = Job(
            request_id=request.request_id or f"req-{secrets.token_hex(12)}",
            prompt=prompt,
            sampling=sampling,
            stops=ask.stop,
            operation=GENERATE,
            guide_field="chat.tools" if tools is not None and tools.ask.forced else GUIDE_FIELD,
            tools=tools,
            started=started,
            deadline=started + (limit if remaining is None else min(limit, remaining)),
            entry=entry,
            priority=priority,
        )
        return [job.choice(index) for index in range(choices)]

    async def _entry(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Entry | None:
        """The request's place in the journal, when it has a key."""
        metadata = dict(context.invocation_metadata() or ())
        key = request.idempotency_key or _text(metadata.get("idempotency-key", ""))
        if not key:
            return None
        bare = generation_pb2.GenerateRequest()
        bare.CopyFrom(request)
        for name in ("idempotency_key", "received", "request_id"):
            bare.ClearField(name)
        bare.model = self._model.name
        return await self._journal.open(
            key, _text(metadata.get("authorization", "")), bare.SerializeToString(deterministic=True),
            field="idempotency_key",
        )  # fmt: skip

    def _tools(
        self, request: generation_pb2.GenerateRequest | generation_pb2.CountTokensRequest
    ) -> ToolPlan | None:
        if request.WhichOneof("input") != "chat":
            return None
        return plan(tool_ask(request.chat), self._model.tool_format, self._model.special_id)

    async def _prompt(
        self,
        request: generation_pb2.GenerateRequest | generation_pb2.CountTokensRequest,
        tools: ToolPlan | None,
    ) -> list[int]:
        if request.ByteSize() > self._settings.max_body_bytes:
            raise InvalidArgument(
                "the request is too large",
                reason="REQUEST_TOO_LARGE",
                allowed=f"at most {self._settings.max_body_bytes} bytes",
            )
        kind = request.WhichOneof("input")
        if kind == "prompt":
            return await self._model.encode(request.prompt, "prompt")
        if kind == "prompt_tokens":
            ids = list(request.prompt_tokens.ids)
            check_ids(ids, "prompt_tokens.ids", self._model.config.vocab_size)
            return ids
        if kind == "chat":
            messages = plain_messages(request.chat, self._model.tool_format)
            return await self._model.encode_chat(messages, tools.rendered() if tools is not None else None)
        raise InvalidArgument("is required", field="input", allowed="prompt, prompt_tokens or chat")

    @contextlib.contextmanager
    def _measured(self, started: float) -> Iterator[None]:
        error_type = "CANCELLED"  # what is left when neither an end nor a JanusError comes
        try:
            yield
            error_type = ""
        except JanusError as error:
            error_type = error.code.name
            if error_type in ("INVALID_ARGUMENT", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "NOT_FOUND"):
                self._metrics.rejected(error_type)
            raise
        except Exception:
            error_type = "INTERNAL"
            raise
        finally:
            self._metrics.request_done(GENERATE, time.monotonic() - started, error_type)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _response(request_id: str, index: int, piece: Piece) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        request_id=request_id,
        index=index,
        text=piece.text,
        token_ids=[token.id for token in piece.tokens],
        logprobs=[token.logprobs for token in piece.tokens if token.logprobs is not None],
        finish_reason=common_pb2.FinishReason.Name(piece.finish_reason),  # type: ignore[arg-type]
        stop_sequence=piece.stop_sequence,
        tool_calls=[
            generation_pb2.ToolCallDelta(
                index=part.index, id=part.id, name=part.name, arguments=part.arguments
            )
            for part in piece.calls
        ],
    )
