"""The asyncio client: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from janus_wire.v1 import generation_pb2, generation_pb2_grpc

from janus_client import _convert
from janus_client._convert import Conversation, Prompt
from janus_client.client import ChatOptions, Options
from janus_client.errors import RequestCancelledError, from_rpc_error
from janus_client.types import Chunk, Completion, ModelInfo, Tls


def _raise_if_ours() -> None:
    """grpc.aio raises CancelledError both when this task and when the call was cancelled; tell them apart."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class AsyncStream:
    """An answer as it comes: ``async for`` once. Leaving ``async with``, or :meth:`close`, cancels the rest."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._responses = aiter(call)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return _convert.chunk(await anext(self._responses))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            _raise_if_ours()
            raise RequestCancelledError("the call was cancelled", code="CANCELLED") from None

    async def result(self) -> Completion:
        """Wait for the whole answer; of several, the first one."""
        return (await self.results())[0]

    async def results(self) -> list[Completion]:
        """Wait for all n answers."""
        return _convert.completions([chunk async for chunk in self])

    def close(self) -> None:
        """Stop generating; no more chunks come."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncJanusClient:
    """:class:`janus_client.JanusClient` for asyncio; make it inside a running loop."""

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        api_key: str | None = None,
        tls: Tls | bool | None = None,
        timeout_s: float | None = 600.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        secure = _convert.credentials(tls)
        if secure is None:
            self._channel = grpc.aio.insecure_channel(target, options=_convert.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, secure, options=_convert.OPTIONS)
        self._stub: Any = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._metadata = _convert.metadata(api_key, metadata)
        self._timeout_s = timeout_s

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """The continuation of a text or of token ids, streamed; ``await .result()`` waits for the whole."""
        return self._stream(_convert.with_prompt(_convert.generate_request(options), prompt), options)

    def chat(self, messages: Conversation, **options: Unpack[ChatOptions]) -> AsyncStream:
        """The assistant's next words: messages go through the model's chat template."""
        request = _convert.with_chat(_convert.generate_request(options), messages)
        return self._stream(_convert.with_tools(request, options), options)

    async def count_tokens(self, prompt: Prompt, *, timeout_s: float | None = None) -> int:
        """Tokens that a prompt has, as ``generate`` would count them."""
        request = _convert.with_prompt(generation_pb2.CountTokensRequest(), prompt)
        return int((await self._call(self._stub.CountTokens, request, timeout_s)).tokens)

    async def count_chat_tokens(self, messages: Conversation, *, timeout_s: float | None = None) -> int:
        """Tokens that a conversation has once it is through the chat template."""
        request = _convert.with_chat(generation_pb2.CountTokensRequest(), messages)
        return int((await self._call(self._stub.CountTokens, request, timeout_s)).tokens)

    async def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """What is served."""
        request = generation_pb2.GetModelInfoRequest()
        return _convert.model_info(await self._call(self._stub.GetModelInfo, request, timeout_s))

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            _raise_if_ours()
            raise RequestCancelledError("the call was cancelled", code="CANCELLED") from None

    def _stream(self, request: generation_pb2.GenerateRequest, options: Options) -> AsyncStream:
        timeout = options.get("timeout_s") or self._timeout_s
        return AsyncStream(self._stub.Generate(request, timeout=timeout, metadata=self._metadata))

    async def close(self) -> None:
        """Close the connection; what is still streaming is cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
