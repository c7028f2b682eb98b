"""Settings of the autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerSettings(ServiceSettings):
    """What the autoscaler needs to know."""

    window_s: float = setting(30.0, minimum=1, maximum=600)
    """Seconds of measurements that an observation covers."""
    tpot_ms: float = setting(200.0, minimum=0.001, maximum=600_000)
    """Objective until one is set: 95th percentile of time per output token, milliseconds."""
    max_workers: int = setting(64, minimum=1, maximum=4096)
    """Largest size of either pool when the objective names none."""
