"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import grpc
from janus_wire.v1 import generation_pb2, generation_pb2_grpc

from janus_client import _convert
from janus_client._convert import Conversation, Prompt
from janus_client.errors import from_rpc_error
from janus_client.types import Chunk, Completion, ModelInfo, Tls, Tool


class Options(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``chat``; what is left out takes the model's default."""

    max_tokens: int | None
    """1 to what is left of the context, which is the default."""
    temperature: float | None
    """0 is greedy."""
    top_p: float | None
    """Above 0, at most 1."""
    top_k: int | None
    """0 or -1: off."""
    min_p: float | None
    """0 to 1."""
    seed: int | None
    """Same seed, same tokens."""
    min_tokens: int | None
    """No end before this many tokens."""
    ignore_eos: bool
    """Do not end at end-of-sequence tokens."""
    stop: str | list[str] | tuple[str, ...]
    """The stream ends before the first of these; at most 16."""
    stop_token_ids: list[int] | tuple[int, ...]
    logprobs: int | None
    """0: the chosen token's; n: the n likeliest beside it; at most 20."""
    repetition_penalty: float | None
    """Above 0: divides the logits of tokens in prompt and answer; 1 is off."""
    frequency_penalty: float | None
    """-2 to 2, for each time that a token is in the answer."""
    presence_penalty: float | None
    """-2 to 2, once, for a token that is in the answer."""
    logit_bias: Mapping[int, float] | None
    """Token id to what is added to its logit, -100 to 100."""
    json_object: bool
    """The answer is a JSON object. At most one of this and the next four."""
    json_schema: str | Mapping[str, Any] | None
    """The answer is JSON that this schema allows."""
    regex: str | None
    """The answer matches this from end to end."""
    grammar: str | None
    """The answer is derived from the rule ``start`` of this grammar, in Lark's syntax."""
    choice: Sequence[str] | None
    """The answer is one of these texts."""
    n: int | None
    """Independent answers; chunks have their ``index``, and :meth:`Stream.results` puts them together."""
    priority: int | None
    """-1000..1000; lower is earlier, and streams of a higher number give their place up for it. Default 0."""
    request_id: str
    """For logs and traces; made when empty."""
    model: str
    """Empty: whatever is served."""
    timeout_s: float | None
    """Deadline of the whole call; None: the client's."""


class ChatOptions(Options, total=False):
    """Keyword arguments of ``chat``."""

    tools: Sequence[Tool]
    """What the model may call; models without tool calls refuse them."""
    tool_choice: str
    """``auto`` (default), ``none``, ``required``, or the name of the tool that must be called."""
    parallel_tool_calls: bool
    """False: at most one call."""


class Stream:
    """An answer as it comes: iterate once. Leaving a ``with`` block, or :meth:`close`, cancels what is left."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        try:
            return _convert.chunk(next(self._call))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def result(self) -> Completion:
        """Wait for the whole answer; of several, the first one."""
        return self.results()[0]

    def results(self) -> list[Completion]:
        """Wait for all n answers."""
        return _convert.completions(list(self))

    def close(self) -> None:
        """Stop generating; no more chunks come."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class JanusClient:
    """A connection to a Janus gateway. Safe to use from several threads.

    ``target``: host:port of the gateway's gRPC service. ``timeout_s``: default deadline of a call. ``tls``:
    True, or :class:`Tls` with files; None is plain text. ``metadata`` goes with every call, e.g.
    ``{"traceparent": ...}``. All calls raise :class:`JanusError` (see :mod:`janus_client.errors`).

    >>> with JanusClient(TARGET) as client:                                 # doctest: +SKIP
    ...     for chunk in client.generate("Hello", max_tokens=32, temperature=0.0):
    ...         print(chunk.text, end="")
    """

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
            self._channel = grpc.insecure_channel(target, options=_convert.OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, secure, options=_convert.OPTIONS)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._metadata = _convert.metadata(api_key, metadata)
        self._timeout_s = timeout_s

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """The continuation of a text or of token ids, streamed; ``.result()`` waits for the whole."""
        return self._stream(_convert.with_prompt(_convert.generate_request(options), prompt), options)

    def chat(self, messages: Conversation, **options: Unpack[ChatOptions]) -> Stream:
        """The assistant's next words: messages go through the model's chat template."""
        request = _convert.with_chat(_convert.generate_request(options), messages)
        return self._stream(_convert.with_tools(request, options), options)

    def count_tokens(self, prompt: Prompt, *, timeout_s: float | None = None) -> int:
        """Tokens that a prompt has, as ``generate`` would count them."""
        return self._count(_convert.with_prompt(generation_pb2.CountTokensRequest(), prompt), timeout_s)

    def count_chat_tokens(self, messages: Conversation, *, timeout_s: float | None = None) -> int:
        """Tokens that a conversation has once it is through the chat template."""
        return self._count(_convert.with_chat(generation_pb2.CountTokensRequest(), messages), timeout_s)

    def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """What is served."""
        try:
            response = self._stub.GetModelInfo(
                generation_pb2.GetModelInfoRequest(),
                timeout=timeout_s or self._timeout_s,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return _convert.model_info(response)

    def _stream(self, request: generation_pb2.GenerateRequest, options: Options) -> Stream:
        timeout = options.get("timeout_s") or self._timeout_s
        return Stream(self._stub.Generate(request, timeout=timeout, metadata=self._metadata))

    def _count(self, request: generation_pb2.CountTokensRequest, timeout_s: float | None) -> int:
        try:
            response = self._stub.CountTokens(
                request, timeout=timeout_s or self._timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return int(response.tokens)

    def close(self) -> None:
        """Close the connection; what is still streaming is cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
