"""Between this package's types and the protobuf messages. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from janus_wire.v1 import common_pb2, generation_pb2

from janus_client.errors import InvalidRequestError
from janus_client.types import (
    Chunk,
    Completion,
    FinishReason,
    Message,
    ModelInfo,
    Tls,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)

Prompt = str | Sequence[int]
Conversation = str | Sequence[Message | Mapping[str, Any]]
R = TypeVar("R", generation_pb2.GenerateRequest, generation_pb2.CountTokensRequest)

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "logprobs",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
_MODES: dict[Any, generation_pb2.ToolChoice.Mode] = {
    "auto": generation_pb2.ToolChoice.MODE_AUTO,
    "none": generation_pb2.ToolChoice.MODE_NONE,
    "required": generation_pb2.ToolChoice.MODE_REQUIRED,
}
_GUIDES = {
    "json_object": "true",
    "json_schema": "JSON, as text or as a mapping",
    "regex": "text",
    "grammar": "text",
    "choice": "texts",
}
_FINISH: dict[int, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_CANCELLED: "cancelled",
    common_pb2.FINISH_REASON_ERROR: "error",
    common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def credentials(tls: Tls | bool | None) -> grpc.ChannelCredentials | None:
    """None: plain text."""
    if not tls:
        return None
    found = Tls() if tls is True else tls

    def read(path: str | Path | None) -> bytes | None:
        return None if path is None else Path(path).read_bytes()

    return grpc.ssl_channel_credentials(
        root_certificates=read(found.ca), private_key=read(found.key), certificate_chain=read(found.cert)
    )


def metadata(api_key: str | None, extra: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Metadata of every call."""
    key = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return (*key, *(extra or {}).items())


def with_prompt(request: R, prompt: Prompt) -> R:
    """Sets the input of a request: text, or token ids."""
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_tokens.SetInParent()
        _put(request.prompt_tokens.ids.extend, "prompt_tokens", prompt, "text, or token ids")
    return request


def with_chat(request: R, messages: Conversation) -> R:
    """Sets the input of a request: a conversation; a text alone is the user's."""
    listed = [Message(role="user", content=messages)] if isinstance(messages, str) else messages
    request.chat.SetInParent()
    for index, message in enumerate(listed):
        if isinstance(message, Mapping):
            fields = {"content": "", **message} if message.get("tool_calls") else message
        else:
            fields = {name: getattr(message, name) for name in Message.__dataclass_fields__}
        for name in ("role", "content"):
            if not isinstance(fields.get(name), str):
                raise _wrong(f"messages[{index}].{name}", fields.get(name), "text")
        added = request.chat.messages.add(role=fields["role"], content=fields["content"])
        for name in ("name", "tool_call_id"):
            if fields.get(name):
                _put(partial(setattr, added, name), f"messages[{index}].{name}", fields[name], "text")
        for call in fields.get("tool_calls") or ():
            field = f"messages[{index}].tool_calls"
            if not isinstance(call, ToolCall):
                raise _wrong(field, call, "ToolCall objects")
            one = added.tool_calls.add()
            for name in ("id", "name", "arguments"):
                _put(partial(setattr, one, name), f"{field}.{name}", getattr(call, name), "text")
    return request


def with_tools(
    request: generation_pb2.GenerateRequest, options: Mapping[str, Any]
) -> generation_pb2.GenerateRequest:
    """Sets a conversation's tools; ``options``: the keyword arguments of ``chat``."""
    for index, tool in enumerate(options.get("tools") or ()):
        if not isinstance(tool, Tool):
            raise _wrong(f"tools[{index}]", tool, "Tool objects")
        try:
            schema = "" if tool.parameters is None else json.dumps(tool.parameters)
        except (TypeError, ValueError) as error:
            raise _wrong(f"tools[{index}].parameters", tool.parameters, "a mapping that is JSON") from error
        request.chat.tools.add(
            name=tool.name, description=tool.description, parameters=schema, strict=tool.strict
        )
    choice = options.get("tool_choice")
    if choice in _MODES:
        request.chat.tool_choice.mode = _MODES[choice]
    elif choice is not None:
        _put(partial(setattr, request.chat.tool_choice, "function"), "tool_choice", choice, "text")
    if options.get("parallel_tool_calls") is not None:
        request.chat.parallel_tool_calls = bool(options["parallel_tool_calls"])
    return request


def _wrong(field: str, value: object, allowed: str) -> InvalidRequestError:
    error = InvalidRequestError(f"{field}: got {value!r}; allowed: {allowed}", code="INVALID_ARGUMENT")
    error.field, error.allowed, error.reason = field, allowed, "INVALID_ARGUMENT"
    return error


def generate_request(options: Mapping[str, Any]) -> generation_pb2.GenerateRequest:
    """A request without its input; ``options``: the keyword arguments of ``generate``."""
    sampling = common_pb2.SamplingParams(ignore_eos=bool(options.get("ignore_eos", False)))
    stop = options.get("stop") or ()
    _put(sampling.stop.extend, "stop", [stop] if isinstance(stop, str) else stop, "texts")
    ids = options.get("stop_token_ids") or ()
    _put(sampling.stop_token_ids.extend, "stop_token_ids", ids, "token ids")
    for name in _NUMBERS:
        if options.get(name) is not None:
            # What does not fit the wire's type never gets to the server, which checks everything else.
            _put(partial(setattr, sampling, name), name, options[name], "a number that fits its type")
    bias = options.get("logit_bias") or {}
    _put(sampling.logit_bias.update, "logit_bias", bias, "token ids with numbers")
    _put_guide(sampling, options)
    request = generation_pb2.GenerateRequest(
        sampling=sampling, request_id=options.get("request_id", ""), model=options.get("model", "")
    )
    for name in ("n", "priority"):
        if options.get(name) is not None:
            _put(partial(setattr, request, name), name, options[name], "a number that fits its type")
    return request


def _put_guide(sampling: common_pb2.SamplingParams, options: Mapping[str, Any]) -> None:
    given = [name for name in _GUIDES if options.get(name) not in (None, False)]
    if len(given) > 1:
        raise _wrong(given[1], options[given[1]], f"nothing beside {given[0]}: one guide for an answer")
    for name in given:
        value = options[name]
        if name == "choice":
            put: Callable[[Any], None] = sampling.guide.choice.texts.extend
            value = [value] if isinstance(value, str) else value
        else:
            put = partial(setattr, sampling.guide, name)
            if name == "json_schema" and not isinstance(value, str):
                try:
                    value = json.dumps(value)
                except (TypeError, ValueError) as error:
                    raise _wrong(name, value, "JSON, as text or as a mapping") from error
        _put(put, name, value, _GUIDES[name])


def _put(put: Callable[[Any], None], name: str, value: object, allowed: str) -> None:
    try:
        put(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise _wrong(name, value, allowed) from error


def _logprob(one: common_pb2.TokenLogprob, top: Iterable[common_pb2.TokenLogprob] = ()) -> TokenLogprob:
    return TokenLogprob(token_id=one.token_id, logprob=one.logprob, top=tuple(_logprob(t) for t in top))


def chunk(response: generation_pb2.GenerateResponse) -> Chunk:
    """From the wire."""
    usage = None
    if response.HasField("usage"):
        usage = Usage(
            prompt_tokens=response.usage.prompt_tokens, completion_tokens=response.usage.completion_tokens
        )
    return Chunk(
        text=response.text,
        index=response.index,
        token_ids=tuple(response.token_ids),
        logprobs=tuple(_logprob(one.chosen, one.top) for one in response.logprobs),
        finish_reason=_FINISH.get(response.finish_reason),
        usage=usage,
        stop_sequence=response.stop_sequence or None,
        tool_calls=tuple(
            ToolCallDelta(index=part.index, id=part.id, name=part.name, arguments=part.arguments)
            for part in response.tool_calls
        ),
        request_id=response.request_id,
        trace_id=response.trace_id,
    )


def completions(chunks: Sequence[Chunk]) -> list[Completion]:
    """The chunks of a whole stream, put together; one for each of its answers."""
    count = 1 + max(c.index for c in chunks)
    return [_completion([c for c in chunks if c.index == i], chunks[0], chunks[-1]) for i in range(count)]


def _completion(chunks: Sequence[Chunk], first: Chunk, end: Chunk) -> Completion:
    last = chunks[-1]
    return Completion(
        text="".join(c.text for c in chunks),
        token_ids=tuple(token for c in chunks for token in c.token_ids),
        logprobs=tuple(entry for c in chunks for entry in c.logprobs),
        finish_reason=last.finish_reason or "error",
        usage=end.usage or Usage(prompt_tokens=0, completion_tokens=0),
        stop_sequence=last.stop_sequence,
        request_id=first.request_id,
        trace_id=first.trace_id,
        tool_calls=_calls(part for c in chunks for part in c.tool_calls),
    )


def _calls(parts: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    found: dict[int, list[ToolCallDelta]] = {}
    for part in parts:
        found.setdefault(part.index, []).append(part)
    return tuple(
        ToolCall(id=call[0].id, name=call[0].name, arguments="".join(part.arguments for part in call))
        for call in found.values()
    )


def model_info(response: generation_pb2.GetModelInfoResponse) -> ModelInfo:
    """From the wire."""
    return ModelInfo(**{name: getattr(response, name) for name in ModelInfo.__dataclass_fields__})
