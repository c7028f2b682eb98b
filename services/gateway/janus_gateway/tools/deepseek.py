"""DeepSeek V3, R1 and V3.1: calls between tokens of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from janus_gateway.tools.base import Output, ToolFormat, alternatives, call_id, fallback, quoted
from janus_gateway.tools.feed import Feed, Malformed, Reading

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_JSON, _JSON_END = "\n```json\n", "\n```"


class DeepSeek(ToolFormat):
    """V3: the word function, SEP, the name and a JSON block; V3.1 (``plain``): the name, SEP, the arguments."""

    name = "deepseek"
    markers = (BEGIN, END, CALL, CALL_END, SEP)
    text_arguments = True

    def __init__(self, *, plain: bool = False) -> None:
        self._plain = plain
        """V3.1; reading takes both."""

    def detect(self, template: str) -> bool:
        """By their tokens; V3.1's template has no JSON block."""
        return BEGIN in template and ("```json" not in template) == self._plain

    def new_id(self) -> str:
        """Any."""
        return call_id()

    def parse(self, feed: Feed, out: Output, known: frozenset[str]) -> Reading[None]:
        """Text, then calls."""
        while word := (yield from feed.until([BEGIN, CALL], out.text.append)):
            feed.mark(word)
            try:
                if word == BEGIN:
                    yield from feed.blanks()
                    yield from feed.expect(CALL)
                yield from self._call(feed, out)
            except Malformed:
                fallback(feed, out)
                continue
            yield from feed.blanks()
            yield from feed.starts(END)

    def _call(self, feed: Feed, out: Output) -> Reading[None]:
        words: list[str] = []
        if not (yield from feed.until([SEP], words.append)):
            raise Malformed
        name = "".join(words).strip()
        if name == "function":
            name = ""
            while (char := (yield from feed.peek())) and char not in "\n{":
                name += yield from feed.take()
            yield from feed.blanks()
            yield from feed.starts("```json")
        yield from feed.blanks()
        if not name.strip() or (yield from feed.peek()) != "{":
            raise Malformed
        feed.forget()
        yield from feed.value(out.begin(name.strip()))
        yield from feed.blanks(also="`")
        yield from feed.starts(CALL_END)

    def grammar(self, rules: Mapping[str, str], mark: Callable[[str], str], many: bool) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            if self._plain:
                return f"{mark(CALL)} {quoted(name)} {mark(SEP)}"
            return f'{mark(CALL)} "function" {mark(SEP)} {quoted(name + _JSON)}'

        after = mark(CALL_END) if self._plain else f"{quoted(_JSON_END)} {mark(CALL_END)}"
        one = alternatives(rules, before, after)
        return f"calls: {mark(BEGIN)} call{'+' if many else ''} {mark(END)}\ncall: {one}"
