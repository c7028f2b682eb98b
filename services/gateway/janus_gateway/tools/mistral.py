"""``[TOOL_CALLS]``: Mistral's models."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping

from janus_gateway.tools.base import Output, ToolFormat, alternatives, fallback, quoted, read_call
from janus_gateway.tools.feed import Feed, Malformed, Reading

BEGIN, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class Mistral(ToolFormat):
    """``[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]``, or since 2025 ``[TOOL_CALLS]f[ARGS]{...}``."""

    name = "mistral"
    markers = (BEGIN, ARGS, ID)

    def __init__(self, *, named: bool = False) -> None:
        self._named = named
        """The newer way; reading takes both."""

    def detect(self, template: str) -> bool:
        """By the token that only they have."""
        return BEGIN in template and (ARGS in template) == self._named

    def new_id(self) -> str:
        """Their templates insist on nine letters and digits."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))

    def parse(self, feed: Feed, out: Output, known: frozenset[str]) -> Reading[None]:
        """Text, then calls."""
        while (yield from feed.until([BEGIN], out.text.append)):
            feed.mark(BEGIN)
            try:
                yield from feed.blanks()
                if (yield from feed.starts("[")):
                    yield from self._list(feed, out)
                else:
                    yield from self._named_call(feed, out)
            except Malformed:
                fallback(feed, out)
                continue
            yield from feed.blanks()

    def _list(self, feed: Feed, out: Output) -> Reading[None]:
        yield from feed.blanks()
        while not (yield from feed.starts("]")):
            yield from read_call(feed, out)
            yield from feed.blanks(also=",")

    def _named_call(self, feed: Feed, out: Output) -> Reading[None]:
        name = ""
        while (char := (yield from feed.peek())) and char not in "{[ \n":
            name += yield from feed.take()
        if not name:
            raise Malformed
        if (yield from feed.starts(ID)):  # an id of the model's own: ours is used
            while (char := (yield from feed.peek())) and char not in "{[":
                yield from feed.take()
        yield from feed.starts(ARGS)
        yield from feed.blanks()
        if (yield from feed.peek()) != "{":
            raise Malformed
        feed.forget()
        yield from feed.value(out.begin(name))

    def grammar(self, rules: Mapping[str, str], mark: Callable[[str], str], many: bool) -> str:
        """See ToolFormat."""
        if self._named:
            one = alternatives(rules, lambda name: f"{mark(BEGIN)} {quoted(name)} {mark(ARGS)}", "")
            return f"calls: call{'+' if many else ''}\ncall: {one}"

        def before(name: str) -> str:
            return quoted(f'{{"name": "{name}", "arguments": ')

        more = ' (", " call)*' if many else ""
        one = alternatives(rules, before, quoted("}"))
        return f'calls: {mark(BEGIN)} /[ ]?/ "[" call{more} "]"\ncall: {one}'
