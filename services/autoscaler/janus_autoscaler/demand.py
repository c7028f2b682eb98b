"""What is asked of the mesh, from what was observed: arrivals, lengths, and what waits or has piled up. Pure."""

from __future__ import annotations

import math

from janus_scaling import Demand

from janus_autoscaler.observe import Observation

SURPRISE = 2.5
"""A rise of arrivals counts at once when it is this many standard deviations of a Poisson process above the mean."""
MOST = 100.0
"""A rise beyond this is taken for it: what was there before says nothing of it."""
ENOUGH = 3
"""Requests that must have ended before their length is believed."""


def demand(seen: Observation, *, target_s: float, lookback_s: float) -> Demand:
    """The demand to plan for.

    Arrivals, not tokens generated, say what is asked: a mesh that is too small generates what it can. Streams beyond
    those that the rate would keep busy within the objective have piled up, and count as backlog by half their length.

    Args:
        target_s: objective of the time per output token.
        lookback_s: what ``seen``'s rates cover.
    """
    rate, grown = seen.requests_per_second, 1.0
    # The largest of the rises that chance does not explain, over the last interval and parts of it.
    risen = [r for s, r in seen.bursts if r > rate and _rise(seen, s, r)]
    if risen:
        grown, rate = min(MOST, max(risen) / rate) if rate else 1.0, max(risen)
    length, generated = seen.output_tokens_per_request, seen.output_tokens_per_second
    known = length > 0 and seen.finished >= ENOUGH
    tokens = rate * length if known else generated * grown
    if rate * lookback_s < ENOUGH:
        tokens = max(tokens, generated)  # few, long streams
    if not known:
        length = max(length, generated / rate if rate * lookback_s >= 1 else 0.0, 1.0)
    piled = max(0.0, seen.running - tokens * target_s)
    prompts = seen.prompt_tokens_per_second * grown
    return Demand(
        tokens_per_s=tokens, prompt_tokens_per_s=prompts, context=max(1.0, seen.context),
        prompt_length=max(1.0, prompts / rate) if rate else 1.0,
        backlog_tokens=seen.waiting * length + piled * length / 2, streams=seen.running + seen.waiting,
    )  # fmt: skip


def _rise(seen: Observation, seconds: float, recent: float) -> bool:
    """Whether ``recent`` is more than chance against the rate before those seconds."""
    earlier = seen.window_seconds - seconds
    if earlier <= 0:
        return False
    before = max(0.0, seen.requests_per_second * seen.window_seconds - recent * seconds) / earlier
    return (recent - before) * seconds > SURPRISE * math.sqrt(max(1.0, before * seconds))


def idle(seen: Observation) -> bool:
    """Whether nothing is asked: no arrivals, no streams."""
    return not (seen.requests_per_second or seen.running or seen.waiting or seen.recent_requests_per_second)
