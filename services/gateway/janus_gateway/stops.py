"""Stop strings over text that arrives in pieces. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Gives text out as soon as no stop string can begin in it, and never a part of a stop string.

    >>> scanner = StopScanner(["END"])
    >>> scanner.push("one E"), scanner.push("Ncore E"), scanner.push("ND two")
    (('one ', None), ('ENcore ', None), ('', 'END'))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(s for s in stops if s))
        self._held = ""

    @property
    def held(self) -> int:
        """Characters held back because a stop string may have begun."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str | None]:
        """``(text to give out, stop string met)``; after a stop string was met, nothing more comes.

        Of several stop strings the one that is complete first wins; of those complete at the same
        character, the one that begins first.
        """
        if not self._stops:
            return text, None
        seen = self._held + text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := seen.find(stop)) >= 0]
        if hits:
            _, at, stop = min(hits)
            self._held = ""
            return seen[:at], stop
        keep = max(self._overlap(seen, stop) for stop in self._stops)
        out = seen[: len(seen) - keep]
        self._held = seen[len(seen) - keep :]
        return out, None

    def flush(self) -> str:
        """What is held, once no more text comes: it has become no stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(seen: str, stop: str) -> int:
        """Length of the longest end of ``seen`` that is a beginning of ``stop``."""
        for size in range(min(len(stop) - 1, len(seen)), 0, -1):
            if seen.endswith(stop[:size]):
                return size
        return 0
