"""Whether the cohort's steps are worth splitting into two micro-batches. Pure: step times come in, advice goes out.

With two, attention of one overlaps the MoE phase of the other, and what was waiting becomes work; but each
layer then reads its experts' weights twice, for half as many tokens each. Which of the two weighs more
depends on model, batch, links and machine, so it is measured: now and then a few steps go the other way.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

_WINDOW = 16
"""Steps of one kind that are remembered."""
_ENOUGH = 5
"""Steps of each kind for a verdict."""
_MARGIN = 0.05
"""Another way must be this much shorter: what is nearly equal stays as it is."""
_OVERLAP = 0.1
"""Least share of a step both in MoE passes and outside them: less cannot be overlapped with gain."""
_FIRST, _LONGEST = 16, 4096
"""Steps until the other way is tried; doubled each time it was tried in vain."""
_TRIAL = 4 * _ENOUGH
"""Steps after which a trial that the attention workers do not follow is over."""


@dataclass(slots=True)
class _Load:
    """What is known of steps with about so many tokens."""

    whole: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    split: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    waited: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """Share of a whole step in which no MoE pass ran."""
    advice: bool = False
    patience: int = _FIRST
    left: int = _FIRST
    """Steps until the next trial; during one, 0."""
    trial: int = 0
    """Steps of the trial under way; 0: none is."""


class LaneAdvisor:
    """Advice from the times of the cohort's steps, as MoE rank 0 sees them.

    Loads are told apart by the tokens of a step, in powers of two. The advice for one stays until the other way
    was shorter by a margin in a trial of a few steps; trials become rarer as they change nothing.
    """

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}
        self._load: _Load | None = None
        self._was_split = False

    @property
    def split(self) -> bool:
        """Whether a step like the one under way is better split."""
        load = self._load
        return load is not None and load.advice != bool(load.trial)

    def begin(self, tokens: int, *, split: bool) -> None:
        """A step of so many tokens in the whole cohort begins; ``split``: somebody did."""
        self._load = self._loads.setdefault(tokens.bit_length(), _Load()) if tokens > 1 else None
        self._was_split = split

    def observe(self, *, seconds: float, waited: float) -> None:
        """The step took so long, from its first frames to the next one's, of which no pass ran in ``waited``."""
        load = self._load
        if load is None:
            return
        (load.split if self._was_split else load.whole).append(seconds)
        if not self._was_split and seconds > 0:
            load.waited.append(waited / seconds)
        if load.trial:
            self._try(load)
            return
        load.left -= 1
        current = load.split if load.advice else load.whole
        if load.left <= 0 and len(current) >= _ENOUGH:
            load.left = load.patience
            if load.advice or _OVERLAP <= statistics.median(load.waited) <= 1 - _OVERLAP:
                load.trial = 1
                (load.whole if load.advice else load.split).clear()

    @staticmethod
    def _try(load: _Load) -> None:
        load.trial += 1
        current, other = (load.split, load.whole) if load.advice else (load.whole, load.split)
        if len(other) >= _ENOUGH:
            if statistics.median(other) < (1 - _MARGIN) * statistics.median(current):
                load.advice, load.patience = not load.advice, _FIRST
            else:
                load.patience = min(2 * load.patience, _LONGEST)
        elif load.trial <= _TRIAL:
            return
        else:  # nobody splits, or somebody always does: nothing to learn
            load.patience = min(2 * load.patience, _LONGEST)
        load.trial, load.left = 0, load.patience
