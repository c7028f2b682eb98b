"""Guesses of a stream's next tokens, for steps that check several at once. Pure.

A guess changes when tokens come, never which: each is compared with the token that the logits before it give.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Protocol


class Drafter(Protocol):
    """What makes guesses."""

    def propose(self, tokens: Items[int], most: int) -> list[int]:
        """Up to ``most`` guesses of what follows ``tokens``, none where it has no idea."""
        ...


class PromptLookup:
    """What followed the last tokens when they came before (prompt lookup decoding): good where text is quoted."""

    def __init__(self, longest: int = 4, shortest: int = 2, window: int = 2048) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._window = window

    def propose(self, tokens: Items[int], most: int) -> list[int]:
        recent = list(tokens[-self._window :])
        for length in self._lengths:
            if len(recent) <= length:
                continue
            key = recent[-length:]
            for start in range(len(recent) - length - 1, -1, -1):
                if recent[start] == key[0] and recent[start : start + length] == key:
                    return recent[start + length : start + length + most]
        return []
