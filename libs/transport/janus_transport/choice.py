"""Which scheme a step's layers are exchanged by: predicted, then measured. Pure: times come in, choices go out.

The prediction decides, with what all loads' measured steps have taught it (:mod:`janus_transport.belief`). Another
scheme is tried only where it may be quicker within the prediction's uncertainty, one step at a time, until
that is clear; what trials are expected to cost is kept within a share of all time. Loads are told apart by active
workers and by tokens, a fifth more or less.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from janus_transport.belief import Belief
from janus_transport.cost import DEFAULT, Cost, Links, Sizes, cost
from janus_transport.plan import Edge, Plan, make_plan
from janus_transport.topology import Scheme, Topology

_WINDOW = 15
"""Steps of one scheme that are remembered."""
_BASE = 3
"""Steps of a load before another scheme is tried in it."""
_PER_OCTAVE = 4
"""Loads per doubling of tokens."""
_LOADS = 512
_MARGIN = 0.02
"""Another one must be this much quicker."""
_DOUBT = 1.6
"""Standard deviations by which a prediction may be wrong."""
_ROUND = 6
"""Steps of one scheme that a round of trials takes at most."""
_SHARE = 0.02
"""Of all time, for what trials are expected to cost."""
_HORIZON = 100
"""Steps of a load for which a better scheme is expected to serve."""
_ADVANCE = 2.0
"""Of which so many steps' time is there from the beginning."""
_CREDIT = 16.0
"""Steps of a load whose share may be saved up at most, in times of its step."""
_FIRST, _LONGEST = 64, 4096
"""Steps until a verdict is put in doubt again; doubled each time that changes nothing."""
_NOISE = 0.01
"""Of steps at least."""


@dataclass(slots=True)
class _Load:
    costs: dict[Scheme, Cost]
    """Of the schemes that come to different messages."""
    current: Scheme
    times: dict[Scheme, deque[float]] = field(default_factory=dict)
    tried: dict[Scheme, int] = field(default_factory=dict)
    """Steps of each in this round of trials."""
    trial: Scheme | None = None
    patience: int = _FIRST
    left: int = _FIRST


class Chooser:
    """Chooses for a cohort. The same loads and times give the same choices."""

    def __init__(
        self, topology: Topology, sizes: Sizes, *, links: Links = DEFAULT, learn: bool = True
    ) -> None:
        """``learn``: else predict alone."""
        self.links = links
        self.belief = Belief(links)
        self._topology = topology
        self._sizes = sizes
        self._learn = learn
        self._loads: dict[tuple[int, int], _Load] = {}
        self._plans: dict[tuple[Scheme, tuple[int, ...]], Plan] = {}
        self._credit: float | None = None
        """Seconds that trials may cost."""

    def choose(self, tokens: Mapping[int, int], *, trial: bool = True) -> tuple[Scheme, float]:
        """The scheme for a step with these rows by active attention rank, and its predicted seconds per layer.

        ``trial``: the step may try another scheme than the best known, and :meth:`observe` will follow.
        """
        load = self._load(tokens)
        scheme = load.trial if load.trial is not None and trial else load.current
        return scheme, self.belief.seconds(load.costs[scheme])

    def predictions(self, tokens: Mapping[int, int]) -> dict[Scheme, float]:
        """Predicted seconds per layer of every scheme."""
        return {scheme: self.belief.seconds(found) for scheme, found in self._costs(tokens).items()}

    def _costs(self, tokens: Mapping[int, int]) -> dict[Scheme, Cost]:
        active = tuple(sorted(tokens))
        return {
            scheme: cost(self._plan(scheme, active), self._topology, tokens, self.links, self._sizes)
            for scheme in Scheme
        }

    def _plan(self, scheme: Scheme, active: tuple[int, ...]) -> Plan:
        plan = self._plans.get((scheme, active))
        if plan is None:
            if len(self._plans) > 64:
                self._plans.clear()
            plan = self._plans[scheme, active] = make_plan(scheme, self._topology, active)
        return plan

    def _load(self, tokens: Mapping[int, int]) -> _Load:
        active = tuple(sorted(tokens))
        key = (hash(active), round(_PER_OCTAVE * math.log2(max(1, sum(tokens.values())))))
        load = self._loads.get(key)
        if load is None:
            different: dict[tuple[Edge, ...], Scheme] = {}
            for scheme in Scheme:
                # With one worker on a node schemes may come to the same messages.
                different.setdefault(self._plan(scheme, active).edges, scheme)
            costs = self._costs(tokens)
            costs = {scheme: costs[scheme] for scheme in different.values()}
            if len(self._loads) >= _LOADS:
                del self._loads[next(iter(self._loads))]
            best = min(costs, key=lambda scheme: (self.belief.seconds(costs[scheme]), scheme))
            load = self._loads[key] = _Load(costs, best)
        return load

    def observe(self, tokens: Mapping[int, int], scheme: Scheme, seconds: float) -> None:
        """A step with these rows went by ``scheme`` and took so long per layer, computing and all."""
        if not self._learn:
            return
        load = self._load(tokens)
        if scheme not in load.costs:
            return
        times = load.times.setdefault(scheme, deque(maxlen=_WINDOW))
        times.append(seconds)
        self._credit = _ADVANCE * seconds if self._credit is None else self._credit + _SHARE * seconds
        self._credit = min(self._credit, _CREDIT * seconds)
        if scheme is load.trial:
            load.tried[scheme] = load.tried.get(scheme, 0) + 1
            self._credit -= max(0.0, seconds - statistics.median(load.times[load.current]))
        self._think(load)

    def _think(self, load: _Load) -> None:
        """Settle on the quickest, or find a scheme that is worth a step."""
        base = load.times.get(load.current, ())
        load.trial = None
        if len(base) < _BASE or len(load.costs) < 2:
            return
        assert self._credit is not None
        now, noise = _level(base)
        apart = {s: self._apart(load, s, now, noise) for s in load.costs if s is not load.current}
        best = min(apart, key=lambda s: (apart[s][0], s))
        if best in load.tried and apart[best][0] < -_MARGIN * now:
            self._teach(load, now, noise)
            load.current, load.patience = best, _FIRST
            load.left = load.patience
            load.tried.clear()
            return
        worth = {
            s: mean - _DOUBT * sd
            for s, (mean, sd) in apart.items()
            if mean - _DOUBT * sd < -_MARGIN * now and load.tried.get(s, 0) < _ROUND
        }
        if worth:
            tried = min(worth, key=lambda s: (worth[s], s))
            mean, sd = apart[tried]
            if mean <= min(self._credit, _HORIZON * _gain(mean, sd)):
                load.trial = tried
            return
        if load.tried:
            self._teach(load, now, noise)
            load.tried.clear()
        load.left -= 1
        if load.left <= 0:
            load.patience = min(2 * load.patience, _LONGEST)
            load.left = load.patience
            self.belief.age()
            for other in apart:
                load.times.pop(other, None)

    def _apart(self, load: _Load, scheme: Scheme, now: float, noise: float) -> tuple[float, float]:
        """By how much a scheme is slower than the current one: predicted, and measured as far as it was."""
        mean, sd = self.belief.difference(load.costs[scheme], load.costs[load.current])
        times = load.times.get(scheme)
        if not times:
            return mean, sd
        seen, error = statistics.median(times) - now, _error(noise, len(times), len(load.times[load.current]))
        weight = 1 / (1 + (error / sd) ** 2) if sd > 0 else 0.0
        return mean + weight * (seen - mean), sd * (1 - weight) ** 0.5

    def _teach(self, load: _Load, now: float, noise: float) -> None:
        """What a round of trials has shown."""
        for scheme in load.tried:
            times = load.times.get(scheme)
            if times:
                error = _error(noise, len(times), len(load.times[load.current]))
                seen = statistics.median(times) - now
                self.belief.learn(load.costs[scheme], load.costs[load.current], seen, error)


def _level(times: deque[float] | tuple[float, ...]) -> tuple[float, float]:
    """Median of steps' times, and the standard deviation of one."""
    middle = statistics.median(times)
    spread = statistics.median(abs(t - middle) for t in times)
    return middle, max(1.48 * spread, _NOISE * middle)


def _gain(mean: float, sd: float) -> float:
    """Expected value of how much quicker a scheme is, where it is."""
    if sd <= 0:
        return max(0.0, -mean)
    z = -mean / sd
    return sd * (z * (1 + math.erf(z / 2**0.5)) / 2 + math.exp(-z * z / 2) / (2 * math.pi) ** 0.5)


def _error(noise: float, one: int, other: int) -> float:
    """Standard deviation of the difference of two medians of so many steps."""
    return noise * (1.57 * (1 / one + 1 / other)) ** 0.5
