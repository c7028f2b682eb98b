"""An answer that is JSON of a call from its first character: Llama 3.1 and later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from janus_gateway.tools.base import Output, ToolFormat, alternatives, call_id, fallback, quoted, read_call
from janus_gateway.tools.feed import Feed, Malformed, Reading

TAG = "<|python_tag|>"


class Llama(ToolFormat):
    """``{"name": "f", "parameters": {...}}``, several with semicolons between them; perhaps after a tag."""

    name = "llama"
    markers = (TAG,)

    def detect(self, template: str) -> bool:
        """Their templates know a tool's answer as ipython's."""
        return TAG in template or ("ipython" in template and '"parameters"' in template)

    def new_id(self) -> str:
        """Any."""
        return call_id()

    def parse(self, feed: Feed, out: Output, known: frozenset[str]) -> Reading[None]:
        """Calls of known tools, or text: JSON of anything else is the answer itself."""
        feed.mark()
        yield from feed.blanks()
        yield from feed.starts(TAG)
        yield from feed.blanks()
        try:
            while (yield from feed.peek()) == "{":
                yield from read_call(feed, out, known)
                feed.mark()
                yield from feed.blanks(also=";")
        except Malformed:
            pass
        if out.calls and not (yield from feed.peek()):
            return
        fallback(feed, out)
        while (yield from feed.until([TAG], out.text.append)):
            pass

    def grammar(self, rules: Mapping[str, str], mark: Callable[[str], str], many: bool) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            return quoted(f'{{"name": "{name}", "parameters": ')

        more = ' ("; " call)*' if many else ""
        return f"calls: call{more}\ncall: {alternatives(rules, before, quoted('}'))}"
