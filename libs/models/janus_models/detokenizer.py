"""Token ids to text as they arrive, without ever splitting a character."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers

REPLACEMENT = "\ufffd"
HELD = 3
"""Bytes of a UTF-8 character that may have arrived before its last one."""
WINDOW = 64
"""Ids after which the context is cut even though no character has been completed."""


class IncrementalDetokenizer:
    """Text of one answer, piece by piece; the pieces joined are ``decode`` of all the ids.

    An incomplete UTF-8 character is held back until its remaining bytes arrive, so U+FFFD appears only
    for bytes that can never become a character. Bytes at the very end that form no complete character
    are dropped.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # Decoders look at neighbours (the first token loses its leading space; byte tokens join), so the ids
        # whose text was given out last stay in the window as context for the next ones.
        self._window: list[int] = []
        self._context = 0  # ids at the start of the window whose text was given out completely
        self._given = ""  # what was given out of the window's text

    def push(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete; '' while a character is incomplete."""
        return "".join([self._push_one(token_id) for token_id in ids])

    def flush(self) -> str:
        """The text still held back, once no more ids come."""
        text = self._decode(self._window).rstrip(REPLACEMENT)
        piece = text[len(self._given) :]
        self._window, self._context, self._given = [], 0, ""
        return piece

    def _push_one(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        stable = _without_incomplete(text)
        if (
            stable != text
            and len(self._window) - self._context <= HELD
            and not stable.startswith(self._given)
        ):
            return (
                ""  # byte-fallback decoders spoil a whole run of bytes while its last character is incomplete
            )
        piece = stable[len(self._given) :]
        if piece:
            self._given = stable
            if stable == text:
                self._shift(self._context)
        elif len(self._window) > WINDOW:
            self._shift(len(self._window) - WINDOW // 4)
        return piece

    def _shift(self, start: int) -> None:
        """Drop the ids before ``start``; the rest counts as given out, save an incomplete character."""
        self._window = self._window[start:]
        self._context = len(self._window)
        self._given = _without_incomplete(self._decode(self._window))

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)


def _without_incomplete(text: str) -> str:
    end = len(text)
    while end and len(text) - end < HELD and text[end - 1] == REPLACEMENT:
        end -= 1
    return text[:end]
