"""What is asked of the system: rates, lengths, what waits already, and a forecast that knows the season."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from janus_scaling.checks import number, whole

INF = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Load over a window. Raises ScalingError."""

    tokens_per_s: float
    """lambda, output tokens per second. 0: no traffic."""
    prompt_tokens_per_s: float = 0.0
    """Prompt tokens per second that no prefix cache holds."""
    context: float = 256.0
    """S, mean tokens in the cache of a running stream."""
    prompt_length: float = 16.0
    """Mean tokens of a prompt; TTFT depends on it."""
    backlog_tokens: float = 0.0
    """Output tokens that requests in queues will need."""
    streams: float = 0.0
    """Streams that there are already, waiting ones included: the target is to hold for as many, though by the rates
    fewer were expected."""

    def __post_init__(self) -> None:
        for name in (
            "tokens_per_s",
            "prompt_tokens_per_s",
            "context",
            "prompt_length",
            "backlog_tokens",
            "streams",
        ):
            number(name, getattr(self, name), 0, 1e15)

    @property
    def prompt_share(self) -> float:
        """Prompt tokens for each output token: what a step carries of them beside its decoding streams."""
        return self.prompt_tokens_per_s / self.tokens_per_s if self.tokens_per_s else 0.0

    def with_backlog(self, drain_s: float) -> Demand:
        """The demand that also works off the backlog within ``drain_s``: a rate blind to queues never would."""
        number("drain_s", drain_s, 0, INF, above=True)
        return replace(
            self, tokens_per_s=self.tokens_per_s + self.backlog_tokens / drain_s, backlog_tokens=0.0
        )

    def scaled(self, factor: float) -> Demand:
        """The same mix at ``factor`` times the rate."""
        return replace(
            self,
            tokens_per_s=self.tokens_per_s * factor,
            prompt_tokens_per_s=self.prompt_tokens_per_s * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasonalForecast:
    """Mean rate by phase of a season (a day, say), and how the present compares with it. State in, state out.

    The forecast for a later moment is that phase's level times the present's ratio to its own level; where a phase
    was never seen, the last rate.
    """

    season_s: float = 86_400.0
    phases: int = 96
    """Parts of the season."""
    weight: float = 0.3
    """Of a new season against what was known of the phase."""
    levels: tuple[float, ...] = field(default=())
    """Per phase; NaN: never seen."""
    last: float = 0.0

    def __post_init__(self) -> None:
        number("season_s", self.season_s, 0, INF, above=True)
        whole("phases", self.phases, 1, 100_000)
        number("weight", self.weight, 0, 1, above=True)
        if not self.levels:
            object.__setattr__(self, "levels", (math.nan,) * self.phases)

    def phase(self, at_s: float) -> int:
        """Phase of a moment."""
        return min(self.phases - 1, int(at_s % self.season_s / self.season_s * self.phases))

    def observe(self, at_s: float, rate: float) -> SeasonalForecast:
        """With the mean rate of the phase that ends about ``at_s``."""
        number("rate", rate, 0, 1e15)
        at, levels = self.phase(at_s), list(self.levels)
        levels[at] = rate if math.isnan(levels[at]) else (1 - self.weight) * levels[at] + self.weight * rate
        return replace(self, levels=tuple(levels), last=rate)

    def predict(self, now_s: float, ahead_s: float) -> float:
        """Rate expected at ``now_s + ahead_s``."""
        here, there = self.levels[self.phase(now_s)], self.levels[self.phase(now_s + ahead_s)]
        if math.isnan(here) or math.isnan(there):
            return self.last
        # A quiet phase says little about a busy one: the ratio is held to what a day differs from another by.
        ratio = min(2.0, max(0.5, self.last / here)) if here > 0 else 1.0
        return there * ratio
