"""``/v1/chat/completions`` and ``/v1/completions``: one flow, two shapes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from janus_runtime.errors import DeadlineExceeded, InvalidArgument, NotFound
from janus_runtime.telemetry import tracer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from janus_gateway.answer import Piece
from janus_gateway.config import GatewaySettings
from janus_gateway.fanin import merged
from janus_gateway.generation import Generator, Job
from janus_gateway.journal import Entry, Journal, canonical, received
from janus_gateway.metrics import CHAT, COMPLETION, GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.openai import errors
from janus_gateway.openai.schemas import ChatRequest, CompletionRequest, plain_messages
from janus_gateway.openai.shapes import ChatShape, CompletionShape, Shape, usage
from janus_gateway.sampling import Names, check, check_ids, check_priority, resolve
from janus_gateway.tools.plan import ToolPlan, plan

log = logging.getLogger("janus.gateway")

_LINGER_S = 5.0
"""A stream's last bytes have this long after the request's deadline: its error is among them."""
_COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for completions; chat's is what is left of the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the handlers work with."""

    generator: Generator
    model: ServedModel
    metrics: GatewayMetrics
    settings: GatewaySettings
    journal: Journal


async def chat_completions(request: Request, parts: Parts) -> Response:
    """``POST /v1/chat/completions``."""
    raw = await _body(request, parts.settings)
    body = ChatRequest.parse(raw)
    _check_model(body.model, parts.model)
    model = parts.model
    tools = plan(body.tool_ask(), model.tool_format, model.special_id)
    with tracer().start_as_current_span("tokenize") as span:
        messages = plain_messages(body.messages, model.tool_format)
        prompt = await model.encode_chat(messages, tools.rendered() if tools else None)
        span.set_attribute("janus.prompt_tokens", len(prompt))
    names = Names(max_tokens=body.max_tokens_name, prompt="messages", logprobs="top_logprobs")
    entry = await _entry(request, parts, raw)
    jobs = _jobs(request, parts, body, [prompt], names, CHAT, None, tools, entry)
    return await _respond(request, parts, body, jobs, ChatShape(parts.model))


async def completions(request: Request, parts: Parts) -> Response:
    """``POST /v1/completions``."""
    raw = await _body(request, parts.settings)
    body = CompletionRequest.parse(raw)
    _check_model(body.model, parts.model)
    prompts = []
    with tracer().start_as_current_span("tokenize") as span:
        for index, prompt in enumerate(body.prompt):
            field = "prompt" if len(body.prompt) == 1 else f"prompt[{index}]"
            if isinstance(prompt, str):
                prompts.append(await parts.model.encode(prompt, field))
            else:
                check_ids(prompt, field, parts.model.config.vocab_size)
                prompts.append(prompt)
        span.set_attribute("janus.prompt_tokens", sum(map(len, prompts)))
    entry = await _entry(request, parts, raw)
    jobs = _jobs(request, parts, body, prompts, Names(), COMPLETION, _COMPLETION_MAX_TOKENS, None, entry)
    echoes: list[str] = []
    if body.echo:
        for prompt, ids in zip(body.prompt, prompts, strict=True):
            text = prompt if isinstance(prompt, str) else parts.model.tokenizer.decode(ids)
            echoes += [text] * body.choices
    return await _respond(request, parts, body, jobs, CompletionShape(parts.model, echoes))


async def _body(request: Request, settings: GatewaySettings) -> bytes:
    """The body, however slowly it comes, within the time that the whole request has."""
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            return await request.body()
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the request's body did not arrive within {settings.request_timeout_s:g} s",
            reason="REQUEST_TOO_SLOW",
            next_step="Send it at once.",
        ) from error


async def _entry(request: Request, parts: Parts, raw: bytes) -> Entry | None:
    """The request's place in the journal, when it has an ``Idempotency-Key``."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    body = canonical(request.scope["path"], parts.model.name, json.loads(raw))
    caller = request.headers.get("authorization", "")
    return await parts.journal.open(key, caller, body, field="Idempotency-Key")


def _check_model(name: str, model: ServedModel) -> None:
    if name != model.name:
        raise NotFound(
            f"the model {name!r} does not exist here",
            field="model",
            value=name,
            allowed=model.name,
            reason="MODEL_NOT_FOUND",
        )


def _jobs(
    request: Request,
    parts: Parts,
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[list[int]],
    names: Names,
    operation: str,
    default_max_tokens: int | None,
    tools: ToolPlan | None = None,
    entry: Entry | None = None,
) -> list[Job]:
    """One per choice: prompts times n, in the order of their index."""
    if not 1 <= body.choices * len(prompts) <= parts.settings.max_choices or body.choices < 1:
        limit = max(1, parts.settings.max_choices // len(prompts))
        raise InvalidArgument(
            "is out of range",
            field="n",
            value=body.choices,
            allowed=f"1..{limit} with {len(prompts)} prompts",
        )
    ask, guide_field = body.ask(), body.guide[1]
    if tools is not None:
        ask = dataclasses.replace(ask, guide=tools.guide(ask.guide))
        guide_field = guide_field if guide_field and not tools.ask.forced else "tools"
    check(ask, names, parts.model.config.vocab_size)
    priority = check_priority(body.priority or 0)
    started = request.scope["janus.started"]
    jobs: list[Job] = []
    for place, prompt in enumerate(prompts):
        seeded = ask
        if entry is not None and ask.seed is None:
            seeded = dataclasses.replace(ask, seed=entry.seed(place))
        sampling = resolve(
            seeded,
            names,
            parts.model.defaults,
            prompt_tokens=len(prompt),
            context=parts.model.context,
            default_max_tokens=default_max_tokens,
        )
        request_id = request.scope["janus.request_id"]
        job = Job(
            request_id=f"{request_id}-p{place}" if place else request_id,
            prompt=prompt,
            sampling=sampling,
            stops=ask.stop,
            operation=operation,
            guide_field=guide_field,
            tools=tools,
            started=started,
            deadline=started + parts.settings.request_timeout_s,
            entry=entry,
            index=len(jobs),
            priority=priority,
        )
        jobs += [job.choice(index) for index in range(body.choices)]
    return jobs


async def _respond(
    request: Request, parts: Parts, body: ChatRequest | CompletionRequest, jobs: list[Job], shape: Shape
) -> Response:
    # Admitted until the last byte is sent: the stack moves into the stream when there is one.
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(parts.generator.admit(len(jobs)))
        pieces = merged([parts.generator.stream(job) for job in jobs])
        await stack.enter_async_context(contextlib.aclosing(pieces))
        if not body.stream:
            return await _until_gone(request, _whole(pieces, jobs, shape, len(_prompts(body))))
        # A request that fails before its first token still gets its own status.
        first = await _until_gone(request, anext(pieces))
        events = _events(request, first, pieces, jobs, shape, body)
        return _EventStream(events, stack.pop_all(), jobs[0].deadline + _LINGER_S)


class _EventStream(StreamingResponse):
    """Server-sent events; what the request holds is let go of however it ends, even before the first byte.

    ``deadline``: monotonic; a client that does not read is left then, for it holds a place that others want.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], stack: contextlib.AsyncExitStack, deadline: float
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stack = stack
        self._deadline = deadline
        stack.push_async_callback(events.aclose)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["janus.error"] = "CANCELLED"  # unless the events come to their end, and say how
        async with self._stack:
            try:
                async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                scope["janus.error"] = "DEADLINE_EXCEEDED"
                log.warning("%s: the client does not read its stream; closed", scope["janus.request_id"])


def _prompts(body: ChatRequest | CompletionRequest) -> Sequence[Any]:
    """The prompts of a request; a conversation is one."""
    return body.prompt if isinstance(body, CompletionRequest) else (body.messages,)


async def _until_gone(request: Request, work: Any) -> Any:
    """``work``'s result; cancelled when the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class ClientGone(Exception):
    """The client closed the connection; nobody reads a response."""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(
    pieces: AsyncGenerator[tuple[int, Piece], None], jobs: Sequence[Job], shape: Shape, prompts: int
) -> JSONResponse:
    found: list[list[Piece]] = [[] for _ in jobs]
    async for index, piece in pieces:
        found[index].append(piece)
    choices = [shape.choice(index, found[index], job) for index, job in enumerate(jobs)]
    spent = usage(jobs, [sum(len(piece.tokens) for piece in one) for one in found], prompts)
    return JSONResponse(
        {**_head(shape, shape.whole_object, jobs[0].entry), "choices": choices, "usage": spent}
    )


async def _events(
    request: Request,
    first: tuple[int, Piece],
    pieces: AsyncGenerator[tuple[int, Piece], None],
    jobs: Sequence[Job],
    shape: Shape,
    body: ChatRequest | CompletionRequest,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error after the first token is the last event, in OpenAI's shape."""
    entry = jobs[0].entry
    head = _head(shape, shape.chunk_object, entry)
    more = {"usage": None} if body.include_usage else {}
    counts = [0] * len(jobs)
    sent = [0] * len(jobs)
    has = received(request.headers.get("last-event-id", ""), len(jobs)) if entry else list(sent)

    def event(choice: dict[str, Any]) -> bytes:
        """Nothing when the client says that it has it. With a key, its id says what the client has then."""
        sent[choice["index"]] += 1
        if sent[choice["index"]] <= has[choice["index"]]:
            return b""
        place = ",".join(str(max(s, h)) for s, h in zip(sent, has, strict=True)) if entry else ""
        return _event({**head, "choices": [choice], **more}, place)

    try:
        for choice in shape.opening(len(jobs)):
            yield event(choice)
        index, piece = first
        while True:
            counts[index] += len(piece.tokens)
            for choice in shape.deltas(index, piece, jobs[index]):
                yield event(choice)
            try:
                index, piece = await anext(pieces)
            except StopAsyncIteration:
                break
        if body.include_usage:
            spent = usage(jobs, counts, len(_prompts(body)))
            yield _event({**head, "choices": [], "usage": spent}, "")
        request.scope["janus.error"] = ""
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the client must hear it; shown() logs bugs
        shown = errors.shown(error)
        request.scope["janus.error"] = shown.code.name
        yield errors.event(shown)


def _head(shape: Shape, kind: str, entry: Entry | None) -> dict[str, Any]:
    return {
        "id": f"{shape.id_prefix}-{entry.id if entry else secrets.token_hex(12)}",
        "object": kind,
        "created": entry.created if entry else int(time.time()),
        "model": shape.model.name,
    }


def _event(payload: dict[str, Any], place: str) -> bytes:
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    return (f"id: {place}\ndata: {text}\n\n" if place else f"data: {text}\n\n").encode()
