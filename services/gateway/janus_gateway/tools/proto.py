"""Conversations and tools of the gRPC API, as the chat template and a plan take them. Pure."""

from __future__ import annotations

import json
from typing import Any

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import generation_pb2

from janus_gateway.tools.base import Function, ToolFormat
from janus_gateway.tools.plan import Mode, ToolAsk, arguments_of

_ROLES = ("system", "user", "assistant", "tool")
_FIELDS = {"tools": "chat.tools", "tool_choice": "chat.tool_choice", "name": "chat.tools[{}].name"}
_MODES: dict[int, Mode] = {
    generation_pb2.ToolChoice.MODE_AUTO: "auto",
    generation_pb2.ToolChoice.MODE_NONE: "none",
    generation_pb2.ToolChoice.MODE_REQUIRED: "required",
}


def plain_messages(chat: generation_pb2.ChatInput, form: ToolFormat | None) -> list[dict[str, Any]]:
    """In OpenAI's shape. Raises InvalidArgument naming the field."""
    plain = []
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise InvalidArgument(
                "unknown role",
                field=f"chat.messages[{index}].role",
                value=message.role,
                allowed=", ".join(_ROLES),
            )
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        for name in ("name", "tool_call_id"):
            if value := getattr(message, name):
                fields[name] = value
        if message.tool_calls:
            fields["tool_calls"] = [
                _call(call, f"chat.messages[{index}].tool_calls[{place}].arguments", form)
                for place, call in enumerate(message.tool_calls)
            ]
        plain.append(fields)
    return plain


def _call(call: generation_pb2.ToolCall, field: str, form: ToolFormat | None) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_of(call.arguments, field, form)}
    return {"id": call.id, "type": "function", "function": function}


def tool_ask(chat: generation_pb2.ChatInput) -> ToolAsk:
    """A conversation's tools. Raises InvalidArgument for parameters that are no JSON object."""
    choice = chat.tool_choice
    named = choice.WhichOneof("kind") == "function"
    if named and not choice.function:
        raise InvalidArgument("is empty", field="chat.tool_choice.function", allowed="a tool's name")
    return ToolAsk(
        functions=tuple(_function(tool, index) for index, tool in enumerate(chat.tools)),
        mode="required" if named else _MODES.get(choice.mode, "auto"),
        name=choice.function,
        parallel=chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True,
        fields=_FIELDS,
    )


def _function(tool: generation_pb2.Tool, index: int) -> Function:
    try:
        parameters = json.loads(tool.parameters) if tool.parameters else None
    except (ValueError, RecursionError):
        parameters = False
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidArgument(
            "is no JSON Schema",
            field=f"chat.tools[{index}].parameters",
            value=tool.parameters,
            allowed="the text of a JSON object",
        )
    return Function(name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict)
