"""Which tokens a sequence has had, and how often: what penalties look at, kept up to date token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_FIRST = 256


class TokenHistory:
    """Distinct tokens of prompt and output, with their number in the output."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.zeros(_FIRST, np.int64)
        self._counts = np.zeros(_FIRST, np.float32)
        self._seen = 0

    def update(self, tokens: Sequence[int], prompt: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in what ``tokens`` has grown by since the last call; its first ``prompt`` are the prompt.

        Returns ids int64 [N], distinct, and their counts in the output fp32 [N]; views that the next call changes.
        """
        for index in range(self._seen, len(tokens)):
            place = self._place(tokens[index])
            if index >= prompt:
                self._counts[place] += 1
        self._seen = len(tokens)
        size = len(self._places)
        return torch.from_numpy(self._ids[:size]), torch.from_numpy(self._counts[:size])

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place
