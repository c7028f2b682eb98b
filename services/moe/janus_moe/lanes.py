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
"""Steps by which the share of waiting is judged."""
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

    waited: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """Share of a whole step in which no MoE pass ran."""
    seconds: dict[bool, list[float]] = field(default_factory=dict)
    """Of the trial's steps, whole (False) and split (True)."""
    advice: bool = False
    patience: int = _FIRST
    left: int = _FIRST
    """Steps until the next trial."""
    trial: int = 0
    """Steps of the trial under way, one more; 0: none is."""


class LaneAdvisor:
    """Advice from the times of the cohort's steps, as MoE rank 0 sees them.

    Loads are told apart by the tokens of a step, in powers of two. The advice for one stays until the other way
    was shorter by a margin in a trial, a few steps of both kinds in turns, since times drift; trials become rarer as
    they change nothing.
    """

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}
        self._load: _Load | None = None

    @property
    def split(self) -> bool:
        """Whether a step like the last one is better split."""
        load = self._load
        return load is not None and load.advice != bool(load.trial % 2)

    def observe(self, *, tokens: int, split: bool, seconds: float, waited: float) -> None:
        """A step is over.

        Args:
            tokens: of the whole cohort.
            split: whether any worker had two lanes.
            seconds: from its first frames to the next step's.
            waited: of these, seconds in which no pass ran.
        """
        load = self._load = self._loads.setdefault(tokens.bit_length(), _Load()) if tokens > 1 else None
        if load is None:
            return
        if not split and seconds > 0:
            load.waited.append(waited / seconds)
        if load.trial:
            load.seconds[split].append(seconds)
            self._judge(load)
            return
        load.left -= 1
        if load.left <= 0:
            load.left = load.patience
            if load.advice or _can_overlap(load.waited):
                load.trial, load.seconds = 1, {False: [], True: []}

    @staticmethod
    def _judge(load: _Load) -> None:
        load.trial += 1
        current, other = load.seconds[load.advice], load.seconds[not load.advice]
        if min(len(current), len(other)) >= _ENOUGH:
            if statistics.median(other) < (1 - _MARGIN) * statistics.median(current):
                load.advice, load.patience = not load.advice, _FIRST
            else:
                load.patience = min(2 * load.patience, _LONGEST)
        elif load.trial <= _TRIAL:
            return
        else:  # nobody splits, or somebody always does: nothing to learn
            load.patience = min(2 * load.patience, _LONGEST)
        load.trial, load.left = 0, load.patience


def _can_overlap(waited: deque[float]) -> bool:
    return len(waited) > 0 and _OVERLAP <= statistics.median(waited) <= 1 - _OVERLAP
