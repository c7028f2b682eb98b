"""What a request's tools come to: what the template shows, what the output must be, how it is read. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2

from janus_gateway.tools.base import Function, ToolFormat, ToolParser

MAX_TOOLS = 128
Mode = Literal["auto", "none", "required"]
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAsk:
    """A request's tools and what it says of calling them."""

    functions: tuple[Function, ...] = ()
    mode: Mode = "auto"
    name: str = ""
    """The one that must be called; empty: any."""
    parallel: bool = True
    """Several calls in one answer are welcome."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """How the protocol spells ``tools``, ``tool_choice`` and ``name`` (with {} for the index), for errors."""

    def spelled(self, name: str) -> str:
        """A field as the client wrote it."""
        return self.fields.get(name, name)

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return bool(self.name) or self.mode == "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """How an answer with tools is made and read."""

    form: ToolFormat
    ask: ToolAsk
    special: Mapping[str, int]
    """The format's markers that are special tokens, with their ids."""

    def rendered(self) -> list[dict[str, Any]]:
        """The tools for the chat template."""
        return [function.rendered() for function in self.ask.functions]

    def parser(self) -> ToolParser:
        """For one answer."""
        return ToolParser(self.form, [f.name for f in self.ask.functions], parallel=self.ask.parallel)

    @property
    def markers(self) -> dict[int, str]:
        """Special tokens whose text the parser must see."""
        return {token_id: marker for marker, token_id in self.special.items()}

    def guide(self, body: common_pb2.Guide | None) -> common_pb2.Guide | None:
        """What the output must be: a call where one is forced, else ``body`` or a call; None: anything.

        InvalidArgument when ``body`` is no JSON.
        """
        if not self.ask.forced and body is None:
            return None
        functions = [f for f in self.ask.functions if self.ask.name in ("", f.name)]
        rules = {function.name: f"args_{index}" for index, function in enumerate(functions)}
        lines = [f"args_{index}: {f.arguments_rule()}" for index, f in enumerate(functions)]
        many = self.ask.parallel and not self.ask.name
        calls = self.form.grammar(rules, self._mark, many)
        if self.ask.forced or body is None:
            start = "start: calls"
        else:
            start = f"start: calls | body\nbody: %json {_body_schema(body, self.ask)}"
        return common_pb2.Guide(grammar="\n".join([start, calls, *lines]))

    def _mark(self, marker: str) -> str:
        return (
            f"<[{self.special[marker]}]>"
            if marker in self.special
            else json.dumps(marker, ensure_ascii=False)
        )


def plan(ask: ToolAsk, form: ToolFormat | None, special: Callable[[str], int | None]) -> ToolPlan | None:
    """None: the answer is text. Raises InvalidArgument naming the field.

    ``form``: the model's; ``special``: the id of a special token by its text.
    """
    _check(ask)
    if not ask.functions or (ask.mode == "none" and not ask.name):
        return None
    if form is None:
        raise InvalidArgument(
            "this model's chat template has no tool calls that are known here",
            field=ask.spelled("tools"),
            allowed="none with this model",
            reason="TOOLS_UNSUPPORTED",
            next_step="Choose a format with the gateway's --tool-format if you know that the model was trained on it.",
        )
    ids = {marker: token_id for marker in form.markers if (token_id := special(marker)) is not None}
    return ToolPlan(form=form, ask=ask, special=ids)


def _check(ask: ToolAsk) -> None:
    if len(ask.functions) > MAX_TOOLS:
        raise InvalidArgument(
            "has too many entries",
            field=ask.spelled("tools"),
            value=len(ask.functions),
            allowed=f"at most {MAX_TOOLS}",
        )
    seen: set[str] = set()
    for index, function in enumerate(ask.functions):
        if not _NAME.fullmatch(function.name) or function.name in seen:
            raise InvalidArgument(
                "is used twice" if function.name in seen else "is not usable",
                field=ask.spelled("name").format(index),
                value=function.name,
                allowed="1..64 of a-z, A-Z, 0-9, _ and -, each name once",
            )
        seen.add(function.name)
    if ask.name and ask.name not in seen:
        raise InvalidArgument(
            "names no tool of this request",
            field=ask.spelled("tool_choice"),
            value=ask.name,
            allowed=", ".join(sorted(seen)) or "nothing without tools",
        )
    if ask.mode == "required" and not seen:
        raise InvalidArgument(
            "needs tools",
            field=ask.spelled("tool_choice"),
            value=ask.mode,
            allowed="none or auto without tools",
        )


def _body_schema(body: common_pb2.Guide, ask: ToolAsk) -> str:
    kind = body.WhichOneof("kind")
    if kind == "json_object":
        return '{"type": "object"}'
    if kind != "json_schema":
        raise InvalidArgument(
            f"goes together with a JSON guide only, not with {kind}",
            field=ask.spelled("tools"),
            allowed="tool_choice none, or response_format",
        )
    try:
        schema = json.loads(body.json_schema)
    except ValueError:  # the worker says what is wrong with it
        return body.json_schema.replace("\n", " ")
    if isinstance(schema, dict):
        schema["x-guidance"] = {"whitespace_pattern": r"[ \n\r\t]{0,40}"}
    return json.dumps(schema)


def arguments_of(text: str, field: str, form: ToolFormat | None) -> Any:
    """A message's arguments as the chat templates of ``form`` want them. InvalidArgument when they are no object."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgument(
            "is no JSON object", field=field, value=text, allowed="the text of a JSON object"
        )
    return text if form is not None and form.text_arguments else value
