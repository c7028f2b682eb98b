"""Text that arrives in pieces, read by a parser that is written as if it were all there. Pure.

A parser is a generator: it reads with ``yield from`` and is suspended where the text so far ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Yields when it needs more text; its value is what was read."""

_BLANKS = " \t\r\n"
_DEPTH = 256


class Malformed(Exception):
    """This is no call after all."""


class Feed:
    """What came and what is read of it."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self.closed = False

    def put(self, text: str) -> None:
        """More text; what is read and not marked is forgotten."""
        keep = self._at if self._mark is None else self._mark
        self._text = self._text[keep:] + text
        self._at -= keep
        self._mark = None if self._mark is None else 0

    def mark(self, word: str = "") -> None:
        """Remember what is read from here on, for :meth:`back`; and ``word``, which was just read."""
        self._mark = self._at - len(word)

    def forget(self) -> None:
        """What was read since the mark is settled."""
        self._mark = None

    def back(self) -> str:
        """What was read since the mark; nothing when it is settled."""
        text = "" if self._mark is None else self._text[self._mark : self._at]
        self._mark = None
        return text

    def peek(self) -> Reading[str]:
        """The next character; '' at the end."""
        while self._at >= len(self._text):
            if self.closed:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> Reading[str]:
        """Read one character; Malformed at the end."""
        char = yield from self.peek()
        if not char:
            raise Malformed
        self._at += 1
        return char

    def blanks(self, also: str = "") -> Reading[None]:
        """Read over blanks, and the characters of ``also``."""
        while (char := (yield from self.peek())) and char in _BLANKS + also:
            self._at += 1

    def starts(self, word: str) -> Reading[bool]:
        """Read ``word`` if it comes next; waits only while it still can."""
        while True:
            rest = self._text[self._at : self._at + len(word)]
            if rest == word:
                self._at += len(word)
                return True
            if not word.startswith(rest) or self.closed:
                return False
            yield

    def expect(self, word: str) -> Reading[None]:
        """Read ``word``; Malformed when something else comes."""
        if not (yield from self.starts(word)):
            raise Malformed

    def until(self, words: Sequence[str], give: Callable[[str], None]) -> Reading[str]:
        """Give out text up to the first of ``words``, which is read and returned; '' at the end.

        Text is given as soon as none of the words can begin in it.
        """
        while True:
            rest = self._text[self._at :]
            hits = [(at, word) for word in words if (at := rest.find(word)) >= 0]
            if hits:
                at, word = min(hits)
                self._at += at + len(word)
                if at:
                    give(rest[:at])
                return word
            keep = 0 if self.closed else max(_overlap(rest, word) for word in words)
            if len(rest) > keep:
                self._at += len(rest) - keep
                give(rest[: len(rest) - keep])
            if self.closed:
                return ""
            yield

    def string(self) -> Reading[str]:
        """Read a JSON string."""
        raw = yield from self._string(lambda _: None)
        try:
            value = json.loads(raw, strict=False)
        except ValueError as error:
            raise Malformed from error
        return str(value)

    def _string(self, give: Callable[[str], None]) -> Reading[str]:
        yield from self.expect('"')
        raw, escaped = '"', False
        give(raw)
        while len(raw) == 1 or escaped or not raw.endswith('"'):
            char = yield from self.take()
            escaped = char == '"' and (len(raw) - len(raw.rstrip("\\"))) % 2 == 1
            raw += char
            give(char)
        return raw

    def value(self, give: Callable[[str], None]) -> Reading[None]:
        """Read one JSON value and give its text out as it comes; Malformed when brackets do not match."""
        closing: list[str] = []
        while True:
            char = yield from self.peek()
            if char == '"':
                yield from self._string(give)
            elif char and char in "{[":
                closing.append("}" if char == "{" else "]")
                if len(closing) > _DEPTH:
                    raise Malformed
                give((yield from self.take()))
                continue
            elif char and char in "}]":
                if not closing or closing.pop() != char:
                    raise Malformed
                give((yield from self.take()))
            elif closing:
                give((yield from self.take()))
                continue
            else:
                yield from self._scalar(give)
            if not closing:
                return

    def _scalar(self, give: Callable[[str], None]) -> Reading[None]:
        raw = ""
        while (char := (yield from self.peek())) and char not in _BLANKS + ",]}":
            raw += yield from self.take()
        try:
            json.loads(raw)
        except ValueError as error:
            raise Malformed from error
        give(raw)


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``word``."""
    sizes = range(min(len(word) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(word[:size])), 0)


def run(reading: Reading[Any]) -> bool:
    """Let a parser read as far as it can; whether it is done."""
    return next(reading, reading) is reading
