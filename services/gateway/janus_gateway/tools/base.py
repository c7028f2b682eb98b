"""What tool calls are, and what a model's way of writing them has to say."""

from __future__ import annotations

import abc
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from janus_gateway.tools.feed import Feed, Malformed, Reading, run

_LENIENT_BLANKS = r"[ \n\r\t]{0,40}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A tool that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments' object; None: any."""
    strict: bool = False
    """Keywords of the schema that guided output does not know are an error, not overlooked."""

    def rendered(self) -> dict[str, Any]:
        """For the chat template, in OpenAI's shape."""
        inner: dict[str, Any] = {"name": self.name, "description": self.description}
        inner["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": inner}

    def arguments_rule(self) -> str:
        """In llguidance's Lark: what the arguments may be."""
        options = {"whitespace_pattern": _LENIENT_BLANKS, "lenient": not self.strict}
        schema = dict(self.parameters or {"type": "object"})
        return "%json " + json.dumps({"type": "object", **schema, "x-guidance": options})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPart:
    """More of a call: where it begins its id and name, then its arguments' JSON text in pieces."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Output:
    """What a parser found: text, and parts of calls. ``limit``: further calls are read and left out."""

    def __init__(self, new_id: Callable[[], str], limit: int | None) -> None:
        self._new_id = new_id
        self._limit = limit
        self.calls = 0
        self.text: list[str] = []
        self.parts: list[CallPart] = []

    def begin(self, name: str) -> Callable[[str], None]:
        """A call begins; what is returned takes its arguments' text."""
        index = self.calls
        self.calls += 1
        if self._limit is not None and self.calls > self._limit:
            return lambda _: None
        self.parts.append(CallPart(index=index, id=self._new_id(), name=name))
        return lambda text: self.parts.append(CallPart(index=index, arguments=text))


class ToolFormat(abc.ABC):
    """How a family of models writes calls. One file each; a row in ``FORMATS``."""

    name: str
    markers: tuple[str, ...]
    """Special tokens whose text the parser must see."""
    text_arguments: bool = False
    """Whether its chat templates want a message's arguments as JSON text instead of an object."""

    @abc.abstractmethod
    def detect(self, template: str) -> bool:
        """Whether a chat template is of this format."""

    @abc.abstractmethod
    def new_id(self) -> str:
        """An id for a call that the format's templates accept."""

    @abc.abstractmethod
    def parse(self, feed: Feed, out: Output, known: frozenset[str]) -> Reading[None]:
        """Read an answer to its end; ``known``: the tools' names."""

    @abc.abstractmethod
    def grammar(self, rules: Mapping[str, str], mark: Callable[[str], str], many: bool) -> str:
        """Lark of one call, or ``many``: its rule is ``calls``. ``rules``: tool name to its arguments' rule."""


class ToolParser:
    """One answer's parser."""

    def __init__(self, form: ToolFormat, known: Iterable[str], *, parallel: bool) -> None:
        self._feed = Feed()
        self._out = Output(form.new_id, None if parallel else 1)
        self._reading = form.parse(self._feed, self._out, frozenset(known))

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._out.calls > 0

    def push(self, text: str, *, last: bool = False) -> tuple[str, tuple[CallPart, ...]]:
        """The text and the parts of calls that became certain."""
        self._feed.put(text)
        self._feed.closed = last
        run(self._reading)
        found = "".join(self._out.text), _joined(self._out.parts)
        self._out.text.clear()  # in place: parsers hold on to these lists
        self._out.parts.clear()
        return found


def _joined(parts: Sequence[CallPart]) -> tuple[CallPart, ...]:
    """Neighbouring pieces of one call's arguments as one."""
    found: list[CallPart] = []
    for part in parts:
        if found and not part.id and found[-1].index == part.index:
            last = found.pop()
            part = CallPart(
                index=last.index, id=last.id, name=last.name, arguments=last.arguments + part.arguments
            )
        found.append(part)
    return tuple(found)


def call_id() -> str:
    """As OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def read_call(feed: Feed, out: Output, known: frozenset[str] | None = None) -> Reading[None]:
    """Read ``{"name": ..., "arguments" or "parameters": {...}}``, the arguments given out as they come.

    Malformed: it is none, or of no ``known`` name; then nothing was given out and the feed's mark still holds.
    """
    name, early, called = "", "", False
    yield from feed.expect("{")
    yield from feed.blanks()
    while not (yield from feed.starts("}")):
        key = yield from feed.string()
        yield from feed.blanks()
        yield from feed.expect(":")
        yield from feed.blanks()
        if key == "name":
            name = yield from feed.string()
            if not name or (known is not None and name not in known):
                raise Malformed
        elif key in ("arguments", "parameters") and name and not called:
            called = True
            yield from _stream_arguments(feed, out, name)
        elif key in ("arguments", "parameters") and not called:
            pieces: list[str] = []
            yield from feed.value(pieces.append)
            early = "".join(pieces)
        else:
            yield from feed.value(lambda _: None)
        yield from feed.blanks()
        if not (yield from feed.starts(",")):
            yield from feed.expect("}")
            break
        yield from feed.blanks()
    if not name:
        raise Malformed
    if not called:
        feed.forget()
        out.begin(name)(_object_text(early or "{}"))


def _stream_arguments(feed: Feed, out: Output, name: str) -> Reading[None]:
    if (yield from feed.peek()) == '"':  # some write the object's text as a string
        text = yield from feed.string()
        feed.forget()
        out.begin(name)(text)
        return
    feed.forget()
    yield from feed.value(out.begin(name))


def _object_text(raw: str) -> str:
    if raw.startswith('"'):
        try:
            return str(json.loads(raw, strict=False))
        except ValueError as error:
            raise Malformed from error
    return raw


def fallback(feed: Feed, out: Output) -> None:
    """What looked like a call was none: give it out as text."""
    if text := feed.back():
        out.text.append(text)


def alternatives(rules: Mapping[str, str], before: Callable[[str], str], after: str) -> str:
    """Lark of one of the tools: ``before`` its name, its arguments, ``after``; quoted terms."""
    return " | ".join(f"({before(name)} {rule} {after})" for name, rule in rules.items())


def quoted(text: str) -> str:
    """A Lark literal."""
    return json.dumps(text)
