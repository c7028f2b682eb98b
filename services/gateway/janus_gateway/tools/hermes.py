"""``<tool_call>`` with JSON inside: Hermes, Qwen 2.5 and 3, and models trained after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from janus_gateway.tools.base import Output, ToolFormat, alternatives, call_id, fallback, quoted, read_call
from janus_gateway.tools.feed import Feed, Malformed, Reading

BEGIN, END = "<tool_call>", "</tool_call>"


class _Segment:
    """Text before, between or after calls. Blanks that follow a call only separate it from the next."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._held = "" if out.calls else None

    def give(self, text: str) -> None:
        if self._held is not None:
            text = self._held + text
            if not text.strip():
                self._held = text
                return
            self._held = None
        self._out.text.append(text)


class Hermes(ToolFormat):
    """``<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>``, once for each call."""

    name = "hermes"
    markers = (BEGIN, END)

    def detect(self, template: str) -> bool:
        """Their templates say it to the model."""
        return BEGIN in template

    def new_id(self) -> str:
        """Any."""
        return call_id()

    def parse(self, feed: Feed, out: Output, known: frozenset[str]) -> Reading[None]:
        """Text, calls, text."""
        while True:
            segment = _Segment(out)
            if not (yield from feed.until([BEGIN], segment.give)):
                return
            feed.mark(BEGIN)
            try:
                yield from feed.blanks()
                yield from read_call(feed, out)
            except Malformed:
                fallback(feed, out)
                continue
            yield from feed.blanks()
            yield from feed.starts(END)

    def grammar(self, rules: Mapping[str, str], mark: Callable[[str], str], many: bool) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            return quoted(f'{{"name": "{name}", "arguments": ')

        one = alternatives(rules, before, quoted("}"))
        more = ' ("\\n" call)*' if many else ""
        return f'calls: call{more}\ncall: {mark(BEGIN)} "\\n" ({one}) "\\n" {mark(END)}'
