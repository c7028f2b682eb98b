"""Settings of the MoE worker."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import setting
from janus_worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSettings(WorkerSettings):
    """The MoE worker's own."""

    slots: int = setting(0, minimum=0, maximum=1024)
    """Expert slots per layer; 0: as many as the model has experts."""
