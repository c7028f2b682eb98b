"""Settings of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import ServiceSettings, setting

POLICIES = ("optimal", "aebs", "token-balanced", "random")
EXCHANGES = ("auto", "1pc", "2pc-1", "2pc-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings(ServiceSettings):
    """What the scheduler needs to know."""

    min_attention: int = setting(1, minimum=1, maximum=4096)
    """Attention workers that must be ready before the first cohort forms."""
    min_experts: int = setting(1, minimum=1, maximum=4096)
    """MoE workers that must be ready before the first cohort forms."""
    gating: str = setting("moe", choices=("moe", "attention"))
    """Side that runs the router: moe (EGate) or attention (AGate)."""
    scheduling: str = setting("optimal", choices=POLICIES)
    """Activation scheduling policy."""
    exchange: str = setting("auto", choices=EXCHANGES)
    """How layers are exchanged between nodes: auto, 1pc (one phase), 2pc-1 or 2pc-2 (two phases)."""
    settle_s: float = setting(0.3, minimum=0, maximum=60)
    """Seconds the set of ready workers must stay the same before a cohort forms."""
    min_replicas: int = setting(1, minimum=1, maximum=64)
    """Replicas of each expert on distinct workers, as far as their slots allow."""
    rebalance_s: float = setting(30.0, minimum=0, maximum=86400)
    """Seconds between looks whether another placement of replicas pays; 0: only when asked."""
    rebalance_horizon_s: float = setting(300.0, minimum=1, maximum=86400)
    """Seconds within which a move of replicas must pay for itself."""
