"""Server interceptor: errors become statuses with details, every call a span."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from janus_runtime.errors import Internal, JanusError, from_rpc_error
from janus_runtime.telemetry import extract_context, tracer

log = logging.getLogger("janus.server")
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the four kinds of handlers."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_UNTRACED):
            return handler
        metadata = {
            k: v
            for k, v in handler_call_details.invocation_metadata or ()
            if k in ("traceparent", "tracestate")
        }
        make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        inner = getattr(handler, make.__name__.removesuffix("_rpc_method_handler"))
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        return make(
            wrap(inner, method, metadata),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


_MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _wrap_unary(inner: Callable[..., Any], method: str, metadata: dict[str, Any]) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with _guard(method, metadata, context):
            result = inner(request, context)
            return await result if inspect.isawaitable(result) else result

    return call


def _wrap_stream(inner: Callable[..., Any], method: str, metadata: dict[str, Any]) -> Callable[..., Any]:
    # A coroutine that writes, not an async generator: a cancelled call then closes the servicer's generator
    # here and now, in this task, rather than when the garbage collector finds it.
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with _guard(method, metadata, context):
            result = inner(request, context)
            if inspect.isawaitable(result):
                await result
                return
            async with contextlib.aclosing(result) as responses:
                async for response in responses:
                    await context.write(response)

    return call


@contextlib.asynccontextmanager
async def _guard(method: str, metadata: dict[str, Any], context: Any) -> AsyncIterator[None]:
    service, _, name = method.lstrip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    with tracer().start_as_current_span(
        f"{service}/{name}",
        context=extract_context(metadata),
        kind=SpanKind.SERVER,
        attributes=attributes,
        # Exceptions may quote a request: the span gets the code and the reason, the log the rest.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.AbortError) as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the call's status
            janus = _to_janus(error, method)
            span.set_attribute("rpc.grpc.status_code", janus.code.value[0])
            span.set_attribute("error.type", janus.reason)
            span.set_status(Status(StatusCode.ERROR, janus.code.name))
            await _abort(context, janus)


def _to_janus(error: Exception, method: str) -> JanusError:
    if isinstance(error, JanusError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    log.exception("%s: unexpected error", method)  # noqa: LOG004 - called while it is handled
    return Internal(
        f"unexpected {type(error).__name__} in {method}",
        next_step="See this service's log for the traceback.",
    )


async def _abort(context: Any, error: JanusError) -> NoReturn:
    await context.abort(error.code, str(error), error.trailing_metadata())
    raise AssertionError("abort returned")
