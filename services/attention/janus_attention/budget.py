"""How many prompt tokens a step may carry beside decoding streams, so that a long prompt does not hold them up.

Pure: step times come in, numbers go out.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence as Items

_WINDOW = 32
_FIRST = 16
"""Prompt tokens before anything was measured."""
_MOVED_S = 0.25
"""A step may be so much longer for streams that other workers lost: their readers wait, as those who decode do."""
_FIRST_MOVED = 64
"""Tokens of such streams before anything was measured."""
_REFRESH = 64
"""Steps after which one goes without prompts, to learn again what a step alone takes."""
_SURE = 3
"""Steps alone that are enough to go by."""
_DOUBT = 4
"""Such steps are this far apart while what was known seems wrong."""
_QUICKER = 0.8
"""A step alone that takes less than so much of what was known says that it is wrong."""


class PrefillBudget:
    """Prompt tokens per step: ``fixed``, or (0) as many as make a step ``max_stall`` times as long as without."""

    def __init__(self, *, most: int, fixed: int = 0, max_stall: float = 1.7) -> None:
        self.most = most
        self.fixed = fixed
        self.max_stall = max_stall
        self._alone: deque[float] = deque(maxlen=_WINDOW)
        self._mixed: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._loaded: deque[tuple[int, float]] = deque(maxlen=_WINDOW // 4)
        """Of steps with prompts, whether streams decoded in them or not."""
        self._since_alone = 0
        self._last = _FIRST

    def tokens(self, decoding: int) -> int:
        """Most prompt tokens of a step with ``decoding`` streams; 0 now and then, while those go on."""
        if not decoding:
            return self.most
        if self.fixed:
            return min(self.fixed, self.most)
        if self._since_alone >= _REFRESH:
            return 0
        if not self._alone or not self._mixed:
            return min(_FIRST, self.most)
        wanted = self._within((self.max_stall - 1) * statistics.median(self._alone))
        # A quiet moment is no reason to stall the next one: up by half at most, down at once.
        self._last = max(1, min(self.most, int(wanted), self._last + max(1, self._last // 2)))
        return self._last

    def moved(self, decoding: int) -> int:
        """Most tokens of a step, with ``decoding`` streams, of streams that were under way elsewhere."""
        if not decoding:
            return self.most
        if self.fixed:
            return min(self.fixed, self.most)
        # Small shares of a step cost more per token than large ones: what a whole step has done in its time is a bound
        # that the first large share raises at once, also for a worker that is new.
        wanted = [_MOVED_S * tokens / seconds for tokens, seconds in self._loaded if seconds > 0]
        if self._alone and self._mixed:
            wanted.append(self._within(_MOVED_S))
        return max(1, min(self.most, int(max(wanted, default=_FIRST_MOVED))))

    @property
    def rate(self) -> float:
        """Prompt tokens per second in the latest steps with prompts, at the best; 0: there was none."""
        return max((tokens / seconds for tokens, seconds in self._loaded if seconds > 0), default=0.0)

    def _within(self, seconds: float) -> float:
        """Prompt tokens that make a step so much longer."""
        alone = statistics.median(self._alone)
        count = sum(tokens for tokens, _ in self._mixed)
        beyond = sum(took - alone for _, took in self._mixed)
        return seconds * count / beyond if beyond > 0 else self.most

    def observe(self, *, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step is over."""
        if prompt_tokens:
            self._loaded.append((prompt_tokens, seconds))
        if not decoding:
            return
        if prompt_tokens:
            self._mixed.append((prompt_tokens, seconds))
            self._since_alone += 1
        else:
            known = statistics.median(self._alone or [seconds])
            if self._since_alone and seconds < _QUICKER * known:
                # Slow steps just before the prompts came would let these take too much for minutes. To learn slowly
                # that steps have become slower does no harm.
                self._alone.clear()
            self._alone.append(seconds)
            self._since_alone = _REFRESH - _DOUBT if len(self._alone) < _SURE and self._mixed else 0


def share(budget: int, wants: Items[int], quantum: int) -> list[int]:
    """Divide ``budget`` tokens among prompts that want so many, the first first.

    Nobody gets more than it wants; what small ones leave the large ones share alike; but a share is at least
    ``quantum`` tokens (or all that is wanted), as tiny ones cost more than they bring: the last then get none.
    """
    shares = [0] * len(wants)
    served = list(range(min(len(wants), max(1, budget // max(1, quantum)))))
    left = budget
    # Smallest want first: who needs less than an equal part leaves the rest to the others.
    for place, i in enumerate(sorted(served, key=lambda i: (wants[i], i))):
        shares[i] = min(wants[i], left // (len(served) - place))
        left -= shares[i]
    for i in served:
        more = min(wants[i] - shares[i], left)
        shares[i] += more
        left -= more
    for i in range(len(served), len(wants)):
        shares[i] = min(wants[i], left)
        left -= shares[i]
    return shares
